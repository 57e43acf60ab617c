from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpus import Corpus, Track
from datamodules.splits import Span, Split, split_spans

DURATIONS = st.lists(st.floats(0.05, 1000.0), min_size=1, max_size=12)


def corpus_of(durations: list[float]) -> Corpus:
    tracks = [Track(Path(f"{i}.wav"), f"{i}.wav", seconds, 48000, 2, 1000) for i, seconds in enumerate(durations)]
    return Corpus(Path(), tuple(tracks), ())


def assert_disjoint(corpus: Corpus, split: Split, gap_seconds: float) -> None:
    for span in split.train + split.held_out:
        assert 0 <= span.start_seconds < span.end_seconds <= corpus.tracks[span.track_index].duration_seconds
    for held_out in split.held_out:
        for train in split.train:
            if train.track_index == held_out.track_index:
                assert train.end_seconds + gap_seconds <= held_out.start_seconds + 1e-9


@given(DURATIONS, st.floats(0, 20), st.floats(0, 0.99), st.floats(0, 1), st.floats(0.02, 3))
def test_training_and_held_out_seconds_never_overlap(
    durations: list[float], held_out: float, fraction: float, gap: float, minimum: float
) -> None:
    corpus = corpus_of(durations)
    split = split_spans(
        corpus,
        held_out_seconds=held_out,
        held_out_fraction=fraction,
        gap_seconds=gap,
        minimum_seconds=minimum,
    )
    assert_disjoint(corpus, split, gap)
    assert [span.track_index for span in split.train] == list(range(len(durations)))
    assert {span.track_index for span in split.held_out} == set(range(len(durations))) - set(split.undivided)
    for span in split.held_out:
        assert minimum <= span.duration_seconds + 1e-9
        assert span.duration_seconds <= held_out + 1e-9
    for index in split.undivided:
        assert split.train[index].duration_seconds == durations[index]


@given(DURATIONS, st.floats(0, 0.99))
def test_split_by_track_gives_each_track_to_one_side(durations: list[float], fraction: float) -> None:
    corpus = corpus_of(durations)
    split = split_spans(corpus, split="track", held_out_fraction=fraction)
    sides = [span.track_index for span in split.train + split.held_out]
    assert sorted(sides) == list(range(len(durations)))
    assert split.train_seconds + split.held_out_seconds == pytest.approx(sum(durations))


def test_split_by_track_does_not_move_tracks_when_others_are_added() -> None:
    few, many = corpus_of([10.0] * 100), corpus_of([10.0] * 1000)
    held_out = [{s.track_index for s in split_spans(c, split="track").held_out} for c in (few, many)]
    assert held_out[0] == {index for index in held_out[1] if index < 100}
    assert 200 < len(held_out[1]) < 300


def test_the_split_that_the_defaults_make() -> None:
    split = split_spans(corpus_of([100.0, 12.0, 3.0]))
    assert split.train == (Span(0, 0.0, 94.9), Span(1, 0.0, 8.9), Span(2, 0.0, 3.0))
    assert split.held_out == (Span(0, 95.0, 100.0), Span(1, 9.0, 12.0))
    assert split.undivided == (2,)


def test_an_unknown_split_names_the_known() -> None:
    with pytest.raises(ValueError, match="'end', 'track'"):
        split_spans(corpus_of([10.0]), split="random")


@given(st.floats(0, 100), st.floats(0.01, 60), st.floats(0.5, 20), st.sampled_from([44100, 48000, 22050]))
def test_pieces_follow_each_other_on_whole_samples(start: float, length: float, seconds: float, rate: int) -> None:
    span = Span(3, start, start + length)
    pieces = span.pieces(seconds, sample_rate=rate, minimum_seconds=seconds)
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


def test_a_short_last_piece_is_dropped() -> None:
    lengths = [p.duration_seconds for p in Span(0, 0.0, 23.0).pieces(10.0, sample_rate=48000, minimum_seconds=2.0)]
    assert lengths == [10.0, 10.0, 3.0]
    assert len(Span(0, 0.0, 21.9).pieces(10.0, sample_rate=48000, minimum_seconds=2.0)) == 2
