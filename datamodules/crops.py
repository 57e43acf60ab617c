"""Which crop stands where in training: pure functions of seed, batch and slot.

No state is kept anywhere, so a run that is resumed, or run with other workers or ranks, sees the same music in the same
place.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from datamodules.corpora.time_ranges import TimeRanges

# (batch index since the start of the run, slot within the batch of all ranks)
CropKey = tuple[int, int]

# Of the mass of all spans: one that is a millionth of the others, beside a million of them, still has a share to 1e-6.
_MASS_BITS = 60


@dataclass(frozen=True)
class Crop:
    """Where a crop begins, and how it is varied: gain in dB, left and right exchanged or not."""

    track_index: int
    start_seconds: float
    gain_db: float = 0.0
    swap_channels: bool = False


class Draws(Protocol):
    """Where the crops of a training lie."""

    @property
    def track_indices(self) -> frozenset[int]:
        """The tracks that crops are drawn from."""

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """The crop for `slot` of batch `step`; `attempt` counts redraws, `without` names tracks to leave out."""


class RandomCrops:
    """Crops that start with equal probability at every sample of the spans at which a whole crop fits.

    Args:
        spans: where crops may lie; those shorter than a crop are not used.
        crop_seconds: length of a crop.
        sample_rate: in Hz; crops start on whole samples of it.
        weights: how much more likely than others each span is, second for second, float64 `[spans]`; 0 is never.
        gain_db_range: lowest and highest gain, uniform in dB; (0, 0) is off.
        swap_channels_probability: of exchanging left and right.

    Raises:
        ValueError: no span with a weight holds a crop.
    """

    def __init__(
        self,
        spans: TimeRanges,
        *,
        crop_seconds: float,
        sample_rate: int,
        weights: np.ndarray | None = None,
        gain_db_range: tuple[float, float] = (0.0, 0.0),
        swap_channels_probability: float = 0.0,
    ) -> None:
        first, _ = spans.sample_ranges(sample_rate)
        starts = spans.start_counts(crop_seconds, sample_rate)
        mass = span_mass(starts, weights)
        usable = mass > 0
        if not usable.any():
            raise ValueError(
                f"none of {len(spans)} training spans holds a crop of {crop_seconds:g} s; lower data.crop_seconds"
            )
        self._sample_rate = sample_rate
        self._gain_db_range = gain_db_range
        self._swap_channels_probability = swap_channels_probability
        self._tracks = spans.tracks[usable]
        self._first_starts = first[usable]
        # How many samples of each span a crop may start at, and how likely the span is, in whole numbers.
        self._starts = starts[usable]
        self._mass = mass[usable]
        self._mass_until = np.cumsum(self._mass)

    @cached_property
    def track_indices(self) -> frozenset[int]:
        """The tracks that crops are drawn from."""
        return frozenset(self._tracks.tolist())

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """The crop for `slot` of batch `step`; `attempt` counts redraws, `without` names tracks to leave out."""
        place, gain, swap = _uniform_numbers(f"{seed}:{step}:{slot}:{attempt}")
        mass, until = self._mass, self._mass_until
        if without:
            mass = np.where(np.isin(self._tracks, list(without)), 0, mass)
            until = np.cumsum(mass)
        # place is a 64-bit integer: place * total / 2**64 in exact arithmetic.
        position = place * int(until[-1]) >> 64
        span = int(np.searchsorted(until, position, side="right"))
        within = position - int(until[span] - mass[span])
        start = int(self._first_starts[span]) + within * int(self._starts[span]) // int(mass[span])
        low, high = self._gain_db_range
        return Crop(
            track_index=int(self._tracks[span]),
            start_seconds=start / self._sample_rate,
            gain_db=low + (high - low) * gain / 2**64,
            swap_channels=swap / 2**64 < self._swap_channels_probability,
        )


def span_mass(starts: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """How likely each span is, int64 `[spans]`: whole numbers, so that draws are exact on every machine.

    starts: see `TimeRanges.start_counts`. weights: second for second; None is one for all.
    """
    if weights is None:
        return starts
    mass = starts * weights
    # By a power of two, so that nothing but the last rounding changes the numbers; together they stay below 2**61.
    _, exponent = math.frexp(math.fsum(mass))
    return np.rint(np.ldexp(mass, _MASS_BITS - exponent)).astype(np.int64)


def _uniform_numbers(key: str) -> tuple[int, int, int]:
    """Three uniform 64-bit integers, the same on every machine and with every library version."""
    digest = hashlib.blake2b(key.encode(), digest_size=24).digest()
    return (
        int.from_bytes(digest[:8], "big"),
        int.from_bytes(digest[8:16], "big"),
        int.from_bytes(digest[16:], "big"),
    )


class StepSampler(Sampler[list[CropKey]]):
    """Endless batches of keys `(batch_index, slot)`, a function of batch index, rank and world size.

    Batch k of a run is the same whether or not the run was interrupted before it. The ranks share one global batch of
    `batch_size * world_size` slots.

    Args:
        batch_size: crops per rank.
        rank: of this process.
        world_size: number of processes.
        start_batch: the first batch index, or a function that is asked for it whenever an iteration begins.
    """

    def __init__(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1, start_batch: int | Callable[[], int] = 0
    ) -> None:
        if not (batch_size >= 1 and 0 <= rank < world_size):
            raise ValueError(
                f"{batch_size=}, {rank=}, {world_size=}: needed are batch_size >= 1 and 0 <= rank < world_size"
            )
        self._slots = range(rank * batch_size, (rank + 1) * batch_size)
        self._start_batch = start_batch

    def __iter__(self) -> Iterator[list[CropKey]]:
        start = self._start_batch() if callable(self._start_batch) else self._start_batch
        for batch_index in itertools.count(start):
            yield [(batch_index, slot) for slot in self._slots]
