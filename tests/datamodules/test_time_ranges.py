from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.time_ranges import TimeRange, TimeRanges, evenly_spread

SECONDS = st.floats(0, 100)


@given(SECONDS, st.floats(0.01, 60), st.floats(0.5, 20), st.sampled_from([44100, 48000, 22050]))
def test_parts_follow_each_other_on_whole_samples(start: float, length: float, seconds: float, rate: int) -> None:
    whole = TimeRange(3, start, start + length)
    parts = TimeRanges.of([whole]).cut(seconds, sample_rate=rate, minimum_seconds=seconds)
    # Rounding to whole samples may cost a part where the whole is an almost exact multiple.
    assert (
        length / seconds - 1.01 - 60 / (rate * seconds)
        <= len(parts)
        <= length / seconds * (1 + 2 / (rate * seconds)) + 1e-3
    )
    for part in parts:
        assert part.start_seconds >= whole.start_seconds - 1e-6
        assert part.end_seconds <= whole.end_seconds + 1e-6
        assert round(part.start_seconds * rate) == pytest.approx(part.start_seconds * rate, abs=1e-4)
        assert round(part.duration_seconds * rate) == round(seconds * rate)
    for left, right in itertools.pairwise(parts):
        assert left.end_seconds == right.start_seconds


@given(st.lists(st.tuples(SECONDS, st.floats(0, 60)), max_size=6), st.floats(0.5, 20))
def test_parts_of_many_ranges_are_those_of_each_one_after_the_other(
    rows: list[tuple[float, float]], seconds: float
) -> None:
    ranges = [TimeRange(index, start, start + length) for index, (start, length) in enumerate(rows)]
    options = {"sample_rate": 48000, "minimum_seconds": seconds / 3}
    together = list(TimeRanges.of(ranges).cut(seconds, **options))
    assert together == [part for whole in ranges for part in TimeRanges.of([whole]).cut(seconds, **options)]


def test_a_short_last_part_is_dropped() -> None:
    def lengths(end: float) -> list[float]:
        parts = TimeRanges.of([TimeRange(0, 0.0, end)]).cut(10.0, sample_rate=48000, minimum_seconds=2.0)
        return [part.duration_seconds for part in parts]

    assert lengths(23.0) == [10.0, 10.0, 3.0]
    assert lengths(21.9) == [10.0, 10.0]


@given(st.integers(0, 50), st.integers(0, 60))
def test_spread_ranges_are_in_order_and_even(count: int, limit: int) -> None:
    ranges = TimeRanges.of(TimeRange(index, 0.0, 1.0) for index in range(count))
    chosen = [whole.track_index for whole in ranges.at(evenly_spread(len(ranges), limit))]
    assert len(chosen) == min(count, limit)
    assert chosen == [whole.track_index for whole in ranges.at(evenly_spread(len(ranges), limit))]
    # One in each of as many equal parts.
    for part, index in enumerate(chosen):
        assert part * count // len(chosen) <= index < (part + 1) * count // len(chosen)


def test_spread_parts_are_as_often_from_each_part_of_the_tracks() -> None:
    tracks = TimeRanges(np.arange(1000), np.zeros(1000), np.full(1000, 30.0))
    options = {"sample_rate": 48000, "minimum_seconds": 2.0}
    parts = tracks.cut(10.0, limit=100, **options)
    starts = {start: int(np.sum(parts.starts == start)) for start in (0.0, 10.0, 20.0)}
    assert sum(starts.values()) == 100
    assert min(starts.values()) > 20
    # The same on every machine.
    assert parts[:3].tracks.tolist() == [3, 11, 21]
    assert parts[:3].starts.tolist() == [10.0, 10.0, 10.0]
    everything = tracks.cut(10.0, **options)
    assert list(tracks.cut(10.0, limit=5000, **options)) == list(everything)


@given(st.integers(2, 12), st.integers(1, 6))
def test_spreading_does_not_meet_one_part_of_the_tracks_alone(parts: int, every: int) -> None:
    tracks = TimeRanges(np.arange(60 * every), np.zeros(60 * every), np.full(60 * every, float(parts)))
    chosen = tracks.cut(1.0, sample_rate=100, minimum_seconds=1.0, limit=60)
    assert len(set(chosen.starts.tolist())) > parts / 2


def test_ranges_are_a_sequence() -> None:
    rows = [TimeRange(1, 0.0, 2.0), TimeRange(4, 1.0, 1.5)]
    ranges = TimeRanges.of(rows)
    assert (list(ranges), len(ranges), ranges[-1], list(ranges[:1])) == (rows, 2, rows[1], rows[:1])
    assert ranges.seconds == 2.5
    assert len(TimeRanges.of([])) == 0
