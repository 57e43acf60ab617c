"""Which crop is in which batch: pure functions of seed, batch and slot.

There is no state: a run that is resumed, or that has other workers or ranks, gets the same music in the same batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from datamodules.corpora.time_ranges import TimeRanges

# (batch index since the start of the run, slot within the batch of all ranks)
CropKey = tuple[int, int]

# Bits of the mass of all ranges. A millionth of the music beside a million other ranges has its share to within 1e-6.
_MASS_BITS = 60


@dataclass(frozen=True)
class Crop:
    """Where a crop begins and how it is varied."""

    track_index: int
    start_seconds: float
    gain_db: float = 0.0
    swap_channels: bool = False


class Draws(Protocol):
    """Draws the crops of a training."""

    @property
    def track_indices(self) -> frozenset[int]:
        """The tracks that crops are drawn from."""

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """Return the crop for `slot` of batch `step`.

        Args:
            seed: Of the run.
            step: Index of the batch since the start of the run.
            slot: Within the batch of all ranks.
            attempt: How often this crop was drawn before.
            without: Tracks to leave out.
        """


@dataclass(frozen=True, eq=False)
class RandomCrops:
    """Draws crops that start with equal probability at every sample at which a whole crop fits into its range.

    Attributes:
        ranges: Where crops may be; ranges shorter than a crop are not used.
        crop_seconds: Length of a crop.
        sample_rate: In Hz; crops start on whole samples of it.
        weights: How much more likely each range is, second for second, float64 `[ranges]`; 0 is never. None: all equal.
        gain_db_range: Lowest and highest gain, uniform in dB; (0, 0) is off.
        swap_channels_probability: Probability that left and right are exchanged.

    Raises:
        ValueError: No range with a weight holds a crop.
    """

    ranges: TimeRanges
    crop_seconds: float
    sample_rate: int
    weights: np.ndarray | None = None
    gain_db_range: tuple[float, float] = (0.0, 0.0)
    swap_channels_probability: float = 0.0

    def __post_init__(self) -> None:
        if not self.mass.any():
            raise ValueError(
                f"none of {len(self.ranges)} training ranges holds a crop of {self.crop_seconds:g} s; "
                "lower data.crop_seconds"
            )

    @cached_property
    def starts(self) -> np.ndarray:
        """At how many samples of each range a crop may start, int64 `[ranges]`."""
        return self.ranges.start_counts(self.crop_seconds, self.sample_rate)

    @cached_property
    def mass(self) -> np.ndarray:
        """How likely each range is, int64 `[ranges]`."""
        return range_mass(self.starts, self.weights)

    @cached_property
    def _first(self) -> np.ndarray:
        return self.ranges.sample_ranges(self.sample_rate)[0]

    @cached_property
    def _mass_until(self) -> np.ndarray:
        return np.cumsum(self.mass)

    @cached_property
    def track_indices(self) -> frozenset[int]:
        """The tracks that crops are drawn from."""
        return frozenset(self.ranges.tracks[self.mass > 0].tolist())

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """Return the crop for `slot` of batch `step`, see `Draws`."""
        place, gain, swap = _uniform_numbers(f"{seed}:{step}:{slot}:{attempt}")
        mass, until = self.mass, self._mass_until
        if without:
            mass = np.where(np.isin(self.ranges.tracks, list(without)), 0, mass)
            until = np.cumsum(mass)
        # `place` has 64 bits: this is place * total / 2**64 in exact arithmetic.
        position = place * int(until[-1]) >> 64
        chosen = int(np.searchsorted(until, position, side="right"))
        within = position - int(until[chosen] - mass[chosen])
        start = int(self._first[chosen]) + within * int(self.starts[chosen]) // int(mass[chosen])
        low, high = self.gain_db_range
        return Crop(
            track_index=int(self.ranges.tracks[chosen]),
            start_seconds=start / self.sample_rate,
            gain_db=low + (high - low) * gain / 2**64,
            swap_channels=swap / 2**64 < self.swap_channels_probability,
        )


def range_mass(starts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return how likely each range is, int64 `[ranges]`: whole numbers, so that draws are exact on every machine.

    Args:
        starts: See `TimeRanges.start_counts`.
        weights: See `RandomCrops`.
    """
    if weights is None:
        return starts
    mass = starts * weights
    # A power of two changes nothing but the last rounding. The sum stays below 2**61.
    _, exponent = math.frexp(math.fsum(mass))
    return np.rint(np.ldexp(mass, _MASS_BITS - exponent)).astype(np.int64)


def _uniform_numbers(key: str) -> tuple[int, int, int]:
    """Return three uniform 64-bit integers, the same on every machine and with every library version."""
    digest = hashlib.blake2b(key.encode(), digest_size=24).digest()
    first, second, third = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8, 16))
    return first, second, third
