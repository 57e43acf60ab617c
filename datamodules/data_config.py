"""The configuration of the data, `data.*` on the command line and in YAML."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datamodules.splits import SPLITS
from spectrostream.errors import UserError

_SHORTEST_SECONDS = 0.01


class DataConfigError(UserError, ValueError):
    """A value that is not allowed: the message quotes the key, the value and what is allowed."""


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how it is cut; also an OmegaConf schema."""

    # Folder of music, searched with all below it; None is the demo corpus that comes with the package.
    root: str | None = None
    # Length of a training crop in seconds; 1.28 s are 61440 samples at 48 kHz.
    crop_seconds: float = 1.28
    # Crops per process; the global batch is this times the number of processes.
    batch_size: int = 8
    # Of the crops: same seed, same crops, whatever the number of workers or processes.
    seed: int = 0
    # Processes that read files; 0 reads in the training process, which is best with cache_audio.
    num_workers: int = 0
    # "end" holds out the last seconds of each track, "track" whole tracks chosen by a hash of their names.
    split: str = "end"
    # With split "end": seconds held out of each track; 0 holds out nothing.
    held_out_seconds: float = 5.0
    # With split "end": at most this part of a track; with "track": this part of the tracks.
    held_out_fraction: float = 0.25
    # With split "end": seconds before the held-out part that nobody uses, so that nothing leaks across.
    gap_seconds: float = 0.1
    # Most held-out crops in one validation, spread evenly over all there are; 0 validates nothing.
    validation_crops: int = 64
    # Length of the held-out excerpts for evaluation, in seconds.
    evaluation_segment_seconds: float = 10.0
    # Keep decoded tracks in memory (23 MB a minute and process); None does so for a corpus below half an hour.
    cache_audio: bool | None = None
    # Lowest and highest random gain of a training crop, in dB; (0, 0) is off.
    gain_db_range: tuple[float, float] = (0.0, 0.0)
    # Probability of exchanging left and right in a training crop.
    swap_channels_probability: float = 0.0
    # A training crop whose RMS is below this, in dB re full scale, is drawn again.
    silence_threshold_db: float = -60.0
    # How many times at most; then it is taken as it is.
    silence_redraws: int = 8

    def __post_init__(self) -> None:
        self._check("root", lambda v: v is None or (isinstance(v, str) and v != ""), "null or a folder")
        for key in ("crop_seconds", "evaluation_segment_seconds"):
            self._check(key, lambda v: _is_number(v) and v >= _SHORTEST_SECONDS, f"{_SHORTEST_SECONDS} seconds or more")
        for key in ("held_out_seconds", "gap_seconds"):
            self._check(key, lambda v: _is_number(v) and v >= 0, "seconds, 0 or more")
        self._check("batch_size", lambda v: _is_integer(v) and v >= 1, "a whole number, 1 or more")
        for key in ("seed", "num_workers", "validation_crops", "silence_redraws"):
            self._check(key, lambda v: _is_integer(v) and v >= 0, "a whole number, 0 or more")
        self._check("split", lambda v: v in SPLITS, " or ".join(SPLITS))
        self._check("held_out_fraction", lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
        self._check("swap_channels_probability", lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
        self._check("silence_threshold_db", _is_number, "decibels, for instance -60")
        self._check("cache_audio", lambda v: v is None or isinstance(v, bool), "true, false or null")
        self._check("gain_db_range", _is_range, "two numbers in dB, the lower first, for instance [-6, 0]")
        # OmegaConf hands tuples over as lists.
        object.__setattr__(self, "gain_db_range", (float(self.gain_db_range[0]), float(self.gain_db_range[1])))

    def _check(self, key: str, is_allowed: Callable[[Any], bool], allowed: str) -> None:
        value = getattr(self, key)
        if not is_allowed(value):
            raise DataConfigError(f"data.{key}={value!r} is not allowed; type data.{key}=VALUE with {allowed}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
