"""Stretches of tracks, held as columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

# Seconds times rate that should be a whole number of samples may miss it by a rounding error of float64.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Span:
    """A stretch of one track, in seconds; `track_index` points into `Corpus.tracks`."""

    track_index: int
    start_seconds: float
    end_seconds: float

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.end_seconds - self.start_seconds


class Spans(Sequence[Span]):
    """Spans in order.

    tracks: int64 `[spans]`, which track of the corpus.
    starts, ends: float64 `[spans]`, in seconds.
    """

    def __init__(self, tracks: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        self.tracks = np.asarray(tracks, np.int64)
        self.starts = np.asarray(starts, np.float64)
        self.ends = np.asarray(ends, np.float64)

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Spans:
        """The same, from one by one."""
        rows = [(span.track_index, span.start_seconds, span.end_seconds) for span in spans]
        tracks, starts, ends = np.array(rows, np.float64).reshape(-1, 3).T
        return cls(tracks, starts, ends)

    def __len__(self) -> int:
        return len(self.tracks)

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> Spans: ...
    def __getitem__(self, index: int | slice) -> Span | Spans:
        if isinstance(index, slice):
            return self.at(np.arange(len(self))[index])
        return Span(int(self.tracks[index]), float(self.starts[index]), float(self.ends[index]))

    def __iter__(self) -> Iterator[Span]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Spans({list(self[:10])}{' and more' if len(self) > 10 else ''})"

    def at(self, which: np.ndarray) -> Spans:
        """Those at these places, or those for which a mask holds."""
        return Spans(self.tracks[which], self.starts[which], self.ends[which])

    @property
    def seconds(self) -> float:
        """Length of all together, in seconds."""
        return float((self.ends - self.starts).sum())

    def sample_ranges(self, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last of the samples at `sample_rate` Hz within each span, int64 `[spans]`."""
        first = np.ceil(self.starts * sample_rate - _ROUNDING).astype(np.int64)
        return first, np.floor(self.ends * sample_rate + _ROUNDING).astype(np.int64)

    def start_counts(self, seconds: float, sample_rate: int) -> np.ndarray:
        """At how many samples of each span a whole crop of `seconds` may begin, int64 `[spans]`."""
        first, last = self.sample_ranges(sample_rate)
        return np.maximum(last - first - round(seconds * sample_rate) + 1, 0)

    def pieces(self, seconds: float, *, sample_rate: int, minimum_seconds: float, limit: int | None = None) -> Spans:
        """Consecutive pieces of `seconds` of each span, on whole samples; a last one needs `minimum_seconds`.

        limit: at most so many of all the pieces, in order and evenly spread.
        """
        first, last = self.sample_ranges(sample_rate)
        length = round(seconds * sample_rate)
        samples = np.maximum(last - first, 0)
        counts = samples // length + (samples % length >= max(round(minimum_seconds * sample_rate), 1))
        total = int(counts.sum())
        number = evenly_spread(total, limit)
        # Of which span each piece is, and how many pieces of that span stand before it.
        until = np.cumsum(counts)
        span = np.searchsorted(until, number, side="right")
        starts = first[span] + (number - (until - counts)[span]) * length
        return Spans(self.tracks[span], starts / sample_rate, np.minimum(starts + length, last[span]) / sample_rate)


def evenly_spread(total: int, limit: int | None) -> np.ndarray:
    """At most `limit` of the numbers below `total`, in order and evenly spread; all without a limit.

    There is one in each of as many equal parts, at a place of its own: at equal distances they could all be the first
    pieces of their tracks. The same on every machine and with every library version.
    """
    if limit is None or limit >= total:
        return np.arange(total)
    edges = np.arange(limit + 1) * total // max(limit, 1)
    places = [hashed_number(f"{part} of {limit}") * int(size) >> 64 for part, size in enumerate(np.diff(edges))]
    return edges[:-1] + np.array(places, np.int64)


def hashed_number(key: str) -> int:
    """Uniform over 64 bits, the same on every machine and with every library version."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
