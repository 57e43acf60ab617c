"""Stretches of tracks, held as columns."""

from __future__ import annotations

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

    def pieces(self, seconds: float, *, sample_rate: int, minimum_seconds: float, limit: int | None = None) -> Spans:
        """Consecutive pieces of `seconds` of each span, on whole samples; a last one needs `minimum_seconds`.

        limit: at most so many of all the pieces, in order and evenly spread.
        """
        first, last = self.sample_ranges(sample_rate)
        length = round(seconds * sample_rate)
        samples = np.maximum(last - first, 0)
        counts = samples // length + (samples % length >= max(round(minimum_seconds * sample_rate), 1))
        total = int(counts.sum())
        number = _spread(total, total if limit is None else limit)
        # Of which span each piece is, and how many pieces of that span stand before it.
        until = np.cumsum(counts)
        span = np.searchsorted(until, number, side="right")
        starts = first[span] + (number - (until - counts)[span]) * length
        return Spans(self.tracks[span], starts / sample_rate, np.minimum(starts + length, last[span]) / sample_rate)

    def spread(self, limit: int) -> Spans:
        """At most `limit` of the spans, in order and evenly spread."""
        return self.at(_spread(len(self), limit))


def _spread(total: int, limit: int) -> np.ndarray:
    count = min(limit, total)
    return np.arange(count) * total // max(count, 1)
