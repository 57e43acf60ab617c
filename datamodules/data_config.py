"""The configuration of the data, `data.*` on the command line and in YAML."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spectrostream.errors import UserError

# How a corpus is divided, see `DataConfig.split`.
SPLITS = ("end", "track", "official")
_SHORTEST_SECONDS = 0.01
# Keys that are text or null, and what kind of text.
_TEXTS = {
    "shards": "a folder or an address",
    "shard_cache": "a folder",
    "s3_endpoint": "an address",
    "keep": "a condition",
    "balance": "a column",
    "evaluation_segments": "a file",
}


class DataConfigError(UserError, ValueError):
    """A value that is not allowed: the message quotes the key, the value and what is allowed."""


@dataclass(frozen=True)
class Weight:
    """How much more likely, second for second, tracks are which fulfil a condition on the manifest's columns."""

    factor: float
    condition: str

    @classmethod
    def of(cls, text: str) -> Weight:
        """From "FACTOR where CONDITION". Raises DataConfigError."""
        number, _, condition = str(text).partition(" where ")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not (math.isfinite(factor) and factor >= 0 and condition.strip()):
            raise DataConfigError(
                f"data.weights: {text!r} is not possible; type a number, 0 or more, and a condition, for instance "
                "data.weights=[\"2 where genre == 'Rock'\"]"
            )
        return cls(factor, condition.strip())


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how it is cut; also an OmegaConf schema."""

    root: str | None = None
    """Folder of music, searched with all folders below it; null is the demo corpus of the package. With one manifest:
    where that corpus is now, if it moved after the scan. Allowed: null or a folder."""
    manifests: tuple[str, ...] = ()
    """Tables written by `spectrostream data scan` or `data prepare`, instead of a folder; several are joined. Allowed:
    a list of files."""
    shards: str | None = None
    """What `spectrostream data prepare --format shards` wrote. Allowed: null, a folder or an address (http://, s3://,
    ...)."""
    keep: str | None = None
    """Condition on the manifests' columns that a track must fulfil, for instance "bandwidth_hz > 18000". Allowed: null
    or a condition."""
    weights: tuple[str, ...] = ()
    """Tracks that are more or less likely than others, for instance "2 where genre == 'Rock'"; all factors that apply
    are multiplied. Allowed: a list of "FACTOR where CONDITION"."""
    balance: str | None = None
    """Column of the manifests (corpus, genre, ...) whose values get equal shares before the weights apply. Allowed:
    null or a column."""
    crop_seconds: float = 1.28
    """Length of a training crop in seconds; 1.28 s are 61440 samples at 48 kHz. Allowed: 0.01 or more. Source: paper;
    DAC has 0.38."""
    batch_size: int = 8
    """Crops per process; the global batch is this times the number of processes. Allowed: 1 or more. Source: the
    paper's global batch is 128, DAC's 72."""
    seed: int = 0
    """Seed of the crops: the same seed gives the same crops for any number of workers and, except with shards, of
    processes. Allowed: 0 or more."""
    window_shards: int = 4
    """Shards that training draws from at a time, before it goes to the next ones; 0 draws from all at once, for a local
    disk. Allowed: 0 or more."""
    window_passes: float = 1.0
    """How often the music of these shards is drawn before the next ones follow. Allowed: above 0."""
    shard_cache: str | None = None
    """Folder where this machine keeps shards that come over a network; null is ~/.cache/spectrostream. Allowed: null or
    a folder."""
    shard_cache_gigabytes: float = 64.0
    """Largest size of that folder in GB. Allowed: above 0."""
    s3_endpoint: str | None = None
    """Address of an S3-compatible server for s3:// shards; null is AWS_ENDPOINT_URL, or Amazon's. Allowed: null or an
    address."""
    num_workers: int = 0
    """Processes that read files; 0 reads in the training process, which is best with cache_audio. Allowed: 0 or more.
    """
    split: str | None = None
    """How the corpus is divided: "end" holds out the last seconds of each track; "track" whole tracks or albums, chosen
    by a hash of their names; "official" uses the corpus' own division, and "track" where it has none. null is
    "official" for manifests and shards, "end" otherwise. Allowed: null, end, track, official."""
    held_out_seconds: float = 5.0
    """With split "end": seconds held out of each track; 0 holds out nothing. Allowed: 0 or more."""
    held_out_fraction: float = 0.25
    """With split "end": largest part of a track that is held out. Otherwise: the part of the tracks that is held out,
    half of it for the evaluation. Allowed: 0 or more, below 1."""
    gap_seconds: float = 0.1
    """With split "end": seconds before the held-out part that are never used, so that nothing leaks across. Allowed: 0
    or more."""
    validation_crops: int = 64
    """Most held-out crops in one validation, spread evenly over all of them; 0 validates nothing. Allowed: 0 or more.
    """
    evaluation_segment_seconds: float = 10.0
    """Length of the held-out evaluation segments in seconds. Allowed: 0.01 or more."""
    evaluation_segments: str | None = None
    """Table of fixed evaluation segments, as `spectrostream data segments` writes it, instead of evenly spread ones.
    Allowed: null or a file."""
    cache_audio: bool | None = None
    """Whether decoded tracks stay in memory (23 MB per minute and process); null does so for a corpus shorter than half
    an hour. Allowed: true, false, null."""
    gain_db_range: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest random gain of a training crop in dB; [0, 0] turns it off. Allowed: two numbers, the lower
    first."""
    normalize_lufs: float | None = None
    """Loudness in LUFS that each training crop is brought to before the gain; null leaves it. Allowed: null, or above
    -70, at most 0. Source: DAC trains at -16."""
    swap_channels_probability: float = 0.0
    """Probability that left and right of a training crop are exchanged. Allowed: 0 to 1."""
    silence_threshold_db: float = -60.0
    """A training crop is drawn again when its RMS is below this level, in dB re full scale. Allowed: any number."""
    silence_redraws: int = 8
    """How often a silent crop is drawn again at most; then it is used as it is. Allowed: 0 or more."""
    read_timeout_seconds: float = 60.0
    """A read that takes longer, in seconds, counts as a broken file, so that a hanging disk or server does not stop the
    training. Allowed: above 0."""

    def __post_init__(self) -> None:
        self._check("root", lambda v: v is None or (isinstance(v, str) and v != ""), "null or a folder")
        for key, what in _TEXTS.items():
            self._check(key, lambda v: v is None or (isinstance(v, str) and v != ""), f"null or {what}")
        for key, what in (("manifests", "files"), ("weights", "texts")):
            self._check(key, lambda v: not isinstance(v, str) and all(_is_text(one) for one in v), f"a list of {what}")
        if not self.manifests and self.shards is None:
            for key in ("keep", "weights", "balance"):
                self._check(key, lambda v: not v, "data.manifests=[FILE.parquet] beside it, whose columns it is about")
        if self.shards is not None:
            self._check("manifests", lambda v: not v, "either manifests or data.shards")
            self._check("root", lambda v: v is None, "either data.root or data.shards")
        for key in ("window_passes", "shard_cache_gigabytes"):
            self._check(key, lambda v: _is_number(v) and v > 0, "a number above 0")
        for text in self.weights:
            Weight.of(text)
        self._check("normalize_lufs", lambda v: v is None or (_is_number(v) and -70 < v <= 0), "null or LUFS, -70 to 0")
        self._check("read_timeout_seconds", lambda v: _is_number(v) and v > 0, "seconds, more than 0")
        for key in ("crop_seconds", "evaluation_segment_seconds"):
            self._check(key, lambda v: _is_number(v) and v >= _SHORTEST_SECONDS, f"{_SHORTEST_SECONDS} seconds or more")
        for key in ("held_out_seconds", "gap_seconds"):
            self._check(key, lambda v: _is_number(v) and v >= 0, "seconds, 0 or more")
        self._check("batch_size", lambda v: _is_integer(v) and v >= 1, "a whole number, 1 or more")
        for key in ("seed", "num_workers", "validation_crops", "silence_redraws", "window_shards"):
            self._check(key, lambda v: _is_integer(v) and v >= 0, "a whole number, 0 or more")
        self._check("split", lambda v: v is None or v in SPLITS, f"null or {' or '.join(SPLITS)}")
        self._check("held_out_fraction", lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
        self._check("swap_channels_probability", lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
        self._check("silence_threshold_db", _is_number, "decibels, for instance -60")
        self._check("cache_audio", lambda v: v is None or isinstance(v, bool), "true, false or null")
        self._check("gain_db_range", _is_range, "two numbers in dB, the lower first, for instance [-6, 0]")
        # OmegaConf hands tuples over as lists.
        object.__setattr__(self, "manifests", tuple(self.manifests))
        object.__setattr__(self, "weights", tuple(self.weights))
        object.__setattr__(self, "gain_db_range", (float(self.gain_db_range[0]), float(self.gain_db_range[1])))

    @property
    def chosen_split(self) -> str:
        """How the corpus is divided."""
        return self.split or ("official" if self.manifests or self.shards else "end")

    def _check(self, key: str, is_allowed: Callable[[Any], bool], allowed: str) -> None:
        value = getattr(self, key)
        if not is_allowed(value):
            raise DataConfigError(f"data.{key}={value!r} is not allowed; type data.{key}=VALUE with {allowed}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
