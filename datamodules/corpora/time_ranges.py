"""Time ranges of tracks, held as columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

# Seconds times rate misses a whole number of samples by at most this, because of float64.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TimeRange:
    """A range of one track, in seconds; `track_index` is the track's place in `Corpus.tracks`."""

    track_index: int
    start_seconds: float
    end_seconds: float

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.end_seconds - self.start_seconds


class TimeRanges(Sequence[TimeRange]):
    """Time ranges in order: `tracks` int64 `[ranges]`, `starts` and `ends` float64 `[ranges]` in seconds."""

    def __init__(self, tracks: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.tracks = np.asarray(tracks, np.int64)
        self.starts = np.asarray(starts, np.float64)
        self.ends = np.asarray(ends, np.float64)

    @classmethod
    def of(cls, ranges: Iterable[TimeRange]) -> TimeRanges:
        """Make the columns from single ranges."""
        rows = [(one.track_index, one.start_seconds, one.end_seconds) for one in ranges]
        tracks, starts, ends = np.array(rows, np.float64).reshape(-1, 3).T
        return cls(tracks, starts, ends)

    def __len__(self) -> int:
        return len(self.tracks)

    @overload
    def __getitem__(self, index: int) -> TimeRange: ...
    @overload
    def __getitem__(self, index: slice) -> TimeRanges: ...
    def __getitem__(self, index: int | slice) -> TimeRange | TimeRanges:
        if isinstance(index, slice):
            return self.at(np.arange(len(self))[index])
        return TimeRange(int(self.tracks[index]), float(self.starts[index]), float(self.ends[index]))

    def __repr__(self) -> str:
        return f"TimeRanges({list(self[:10])}{' and more' if len(self) > 10 else ''})"

    def at(self, which: np.ndarray) -> TimeRanges:
        """Return the ranges at these places, or those that a mask selects."""
        return TimeRanges(self.tracks[which], self.starts[which], self.ends[which])

    @property
    def seconds(self) -> float:
        """Length of all ranges together, in seconds."""
        return float((self.ends - self.starts).sum())

    def sample_ranges(self, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first sample at `sample_rate` Hz in each range, and one past the last, int64 `[ranges]`."""
        first = np.ceil(self.starts * sample_rate - _ROUNDING).astype(np.int64)
        return first, np.floor(self.ends * sample_rate + _ROUNDING).astype(np.int64)

    def start_counts(self, seconds: float, sample_rate: int) -> np.ndarray:
        """Return at how many samples of each range a whole crop of `seconds` can begin, int64 `[ranges]`."""
        first, last = self.sample_ranges(sample_rate)
        return np.maximum(last - first - round(seconds * sample_rate) + 1, 0)

    def cut(self, seconds: float, *, sample_rate: int, minimum_seconds: float, limit: int | None = None) -> TimeRanges:
        """Cut each range into consecutive ranges of `seconds`, on whole samples.

        Args:
            seconds: Length of each.
            sample_rate: In Hz.
            minimum_seconds: The last one of a range may be shorter, but not shorter than this.
            limit: At most this many, in order and evenly spread over all.
        """
        first, last = self.sample_ranges(sample_rate)
        length = round(seconds * sample_rate)
        samples = np.maximum(last - first, 0)
        counts = samples // length + (samples % length >= max(round(minimum_seconds * sample_rate), 1))
        number = evenly_spread(int(counts.sum()), limit)
        # For each result, the range that it is cut from, and how many of that range come before it.
        until = np.cumsum(counts)
        source = np.searchsorted(until, number, side="right")
        starts = first[source] + (number - (until - counts)[source]) * length
        ends = np.minimum(starts + length, last[source])
        return TimeRanges(self.tracks[source], starts / sample_rate, ends / sample_rate)


def evenly_spread(total: int, limit: int | None) -> np.ndarray:
    """Choose at most `limit` of the numbers below `total`, in order and evenly spread; all without a limit.

    The numbers are divided into `limit` equal parts, and a hash chooses one in each part. With equal distances, all
    could be the beginnings of their tracks. The choice is the same on every machine and with every library version.
    """
    if limit is None or limit >= total:
        return np.arange(total)
    edges = np.arange(limit + 1) * total // max(limit, 1)
    places = [hashed_number(f"{part} of {limit}") * int(size) >> 64 for part, size in enumerate(np.diff(edges))]
    return edges[:-1] + np.array(places, np.int64)


def hashed_number(key: str) -> int:
    """Hash a key to 64 uniform bits, the same on every machine and with every library version."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
