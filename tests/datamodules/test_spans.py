from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.spans import Span, Spans, evenly_spread

SECONDS = st.floats(0, 100)


@given(SECONDS, st.floats(0.01, 60), st.floats(0.5, 20), st.sampled_from([44100, 48000, 22050]))
def test_pieces_follow_each_other_on_whole_samples(start: float, length: float, seconds: float, rate: int) -> None:
    span = Span(3, start, start + length)
    pieces = Spans.of([span]).pieces(seconds, sample_rate=rate, minimum_seconds=seconds)
    # Rounding to whole samples may cost a piece where the span is an almost exact multiple.
    assert (
        length / seconds - 1.01 - 60 / (rate * seconds)
        <= len(pieces)
        <= length / seconds * (1 + 2 / (rate * seconds)) + 1e-3
    )
    for piece in pieces:
        assert piece.start_seconds >= span.start_seconds - 1e-6
        assert piece.end_seconds <= span.end_seconds + 1e-6
        assert round(piece.start_seconds * rate) == pytest.approx(piece.start_seconds * rate, abs=1e-4)
        assert round(piece.duration_seconds * rate) == round(seconds * rate)
    for left, right in itertools.pairwise(pieces):
        assert left.end_seconds == right.start_seconds


@given(st.lists(st.tuples(SECONDS, st.floats(0, 60)), max_size=6), st.floats(0.5, 20))
def test_pieces_of_many_spans_are_those_of_each_one_after_the_other(
    rows: list[tuple[float, float]], seconds: float
) -> None:
    spans = [Span(index, start, start + length) for index, (start, length) in enumerate(rows)]
    options = {"sample_rate": 48000, "minimum_seconds": seconds / 3}
    together = list(Spans.of(spans).pieces(seconds, **options))
    assert together == [piece for span in spans for piece in Spans.of([span]).pieces(seconds, **options)]


def test_a_short_last_piece_is_dropped() -> None:
    def lengths(end: float) -> list[float]:
        pieces = Spans.of([Span(0, 0.0, end)]).pieces(10.0, sample_rate=48000, minimum_seconds=2.0)
        return [piece.duration_seconds for piece in pieces]

    assert lengths(23.0) == [10.0, 10.0, 3.0]
    assert lengths(21.9) == [10.0, 10.0]


@given(st.integers(0, 50), st.integers(0, 60))
def test_spread_spans_are_in_order_and_even(count: int, limit: int) -> None:
    spans = Spans.of(Span(index, 0.0, 1.0) for index in range(count))
    chosen = [span.track_index for span in spans.at(evenly_spread(len(spans), limit))]
    assert len(chosen) == min(count, limit)
    assert chosen == [span.track_index for span in spans.at(evenly_spread(len(spans), limit))]
    # One in each of as many equal parts.
    for part, index in enumerate(chosen):
        assert part * count // len(chosen) <= index < (part + 1) * count // len(chosen)


def test_spread_pieces_are_as_often_from_each_part_of_the_tracks() -> None:
    clips = Spans(np.arange(1000), np.zeros(1000), np.full(1000, 30.0))
    options = {"sample_rate": 48000, "minimum_seconds": 2.0}
    pieces = clips.pieces(10.0, limit=100, **options)
    starts = {start: int(np.sum(pieces.starts == start)) for start in (0.0, 10.0, 20.0)}
    assert sum(starts.values()) == 100
    assert min(starts.values()) > 20
    # The same on every machine.
    assert pieces[:3].tracks.tolist() == [3, 11, 21]
    assert pieces[:3].starts.tolist() == [10.0, 10.0, 10.0]
    everything = clips.pieces(10.0, **options)
    assert list(clips.pieces(10.0, limit=5000, **options)) == list(everything)


@given(st.integers(2, 12), st.integers(1, 6))
def test_spreading_does_not_meet_one_part_of_the_tracks_alone(pieces: int, every: int) -> None:
    clips = Spans(np.arange(60 * every), np.zeros(60 * every), np.full(60 * every, float(pieces)))
    chosen = clips.pieces(1.0, sample_rate=100, minimum_seconds=1.0, limit=60)
    assert len(set(chosen.starts.tolist())) > pieces / 2


def test_spans_are_a_sequence() -> None:
    rows = [Span(1, 0.0, 2.0), Span(4, 1.0, 1.5)]
    spans = Spans.of(rows)
    assert (list(spans), len(spans), spans[-1], list(spans[:1])) == (rows, 2, rows[1], rows[:1])
    assert spans.seconds == 2.5
    assert len(Spans.of([])) == 0
