"""Which seconds of a corpus are trained on and which are held out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from datamodules.corpus import Corpus, Track

SPLITS = ("end", "track")

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

    def sample_range(self, sample_rate: int) -> tuple[int, int]:
        """First and one past the last of the samples at `sample_rate` Hz that lie within the span."""
        start = math.ceil(self.start_seconds * sample_rate - _ROUNDING)
        return start, math.floor(self.end_seconds * sample_rate + _ROUNDING)

    def pieces(self, seconds: float, *, sample_rate: int, minimum_seconds: float) -> list[Span]:
        """Consecutive pieces of `seconds`, on whole samples; a last one below `minimum_seconds` is dropped."""
        start, stop = self.sample_range(sample_rate)
        length = round(seconds * sample_rate)
        edges = [(edge, min(edge + length, stop)) for edge in range(start, stop, length)]
        shortest = round(minimum_seconds * sample_rate)
        return [Span(self.track_index, a / sample_rate, b / sample_rate) for a, b in edges if b - a >= shortest]


@dataclass(frozen=True)
class Split:
    """Training and held-out spans, which never overlap; `undivided` tracks are too short and wholly in training."""

    train: tuple[Span, ...]
    held_out: tuple[Span, ...]
    undivided: tuple[int, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Length of all training spans, in seconds."""
        return sum(span.duration_seconds for span in self.train)

    @property
    def held_out_seconds(self) -> float:
        """Length of all held-out spans, in seconds."""
        return sum(span.duration_seconds for span in self.held_out)


def split_spans(
    corpus: Corpus,
    *,
    split: str = "end",
    held_out_seconds: float = 5.0,
    held_out_fraction: float = 0.25,
    gap_seconds: float = 0.1,
    minimum_seconds: float = 1.28,
) -> Split:
    """Divide the corpus; a pure function of the tracks' names and durations.

    Args:
        corpus: what to divide.
        split: "end" holds out the end of each track; "track" holds out whole tracks, chosen by a hash of their names,
            so that adding tracks moves no other track to the other side.
        held_out_seconds: with "end", how much of each track.
        held_out_fraction: with "end", at most this part of a track; with "track", about this part of the tracks.
        gap_seconds: with "end", used by neither side, so that no resampler or decoder looks across the border.
        minimum_seconds: a span is at least this long; a track too short for two such spans is training as a whole.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown, allowed are {', '.join(map(repr, SPLITS))}")
    if split == "track":
        return _split_by_track(corpus, held_out_fraction)
    train: list[Span] = []
    held_out: list[Span] = []
    undivided: list[int] = []
    for index, track in enumerate(corpus.tracks):
        held = min(held_out_seconds, held_out_fraction * track.duration_seconds)
        border = track.duration_seconds - held
        if held > 0 and held >= minimum_seconds and border - gap_seconds >= minimum_seconds:
            train.append(Span(index, 0.0, border - gap_seconds))
            held_out.append(Span(index, border, track.duration_seconds))
        else:
            train.append(_whole(index, track))
            undivided.append(index)
    return Split(tuple(train), tuple(held_out), tuple(undivided))


def _split_by_track(corpus: Corpus, held_out_fraction: float) -> Split:
    train: list[Span] = []
    held_out: list[Span] = []
    for index, track in enumerate(corpus.tracks):
        side = held_out if _name_in_unit_interval(track.name) < held_out_fraction else train
        side.append(_whole(index, track))
    return Split(tuple(train), tuple(held_out))


def _whole(index: int, track: Track) -> Span:
    return Span(index, 0.0, track.duration_seconds)


def _name_in_unit_interval(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
