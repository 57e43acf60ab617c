from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from corpus_tables import corpus_of_lengths, corpus_of_rows
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.corpus import Corpus
from datamodules.corpora.manifest import SPLITS as SIDES
from datamodules.corpora.manifest import ManifestError
from datamodules.corpora.splits import Split, split_corpus
from datamodules.corpora.time_ranges import TimeRange

DURATIONS = st.lists(st.integers(2400, 48000000).map(lambda frames: frames / 48000), min_size=1, max_size=12)
ROWS = st.fixed_dictionaries(
    {
        "corpus": st.sampled_from(["fma", "maestro"]),
        "split": st.sampled_from(["", *SIDES]),
        "group": st.sampled_from(["", "a", "b", "c", "d"]),
        "content_hash": st.sampled_from(["", "1", "2", "3"]),
    }
)


def tracks(spans: Iterable[TimeRange]) -> list[int]:
    return [span.track_index for span in spans]


def assert_disjoint(corpus: Corpus, split: Split, gap_seconds: float) -> None:
    for span in [*split.train, *split.test]:
        assert 0 <= span.start_seconds < span.end_seconds <= corpus.tracks[span.track_index].duration_seconds
    for held_out in split.test:
        for train in split.train:
            if train.track_index == held_out.track_index:
                assert train.end_seconds + gap_seconds <= held_out.start_seconds + 1e-9


@pytest.mark.slow
@given(DURATIONS, st.floats(0, 20), st.floats(0, 0.99), st.floats(0, 1), st.floats(0.02, 3))
def test_training_and_held_out_seconds_never_overlap(
    durations: list[float], held_out: float, fraction: float, gap: float, minimum: float
) -> None:
    corpus = corpus_of_lengths(durations)
    split = split_corpus(
        corpus,
        held_out_seconds=held_out,
        held_out_fraction=fraction,
        gap_seconds=gap,
        minimum_seconds=minimum,
    )
    assert_disjoint(corpus, split, gap)
    assert tracks(split.train) == list(range(len(durations)))
    assert set(tracks(split.test)) == set(range(len(durations))) - set(split.undivided)
    assert list(split.test) == list(split.validation)
    assert split.is_shared
    for span in split.test:
        assert minimum <= span.duration_seconds + 1e-9
        assert span.duration_seconds <= held_out + 1e-9
    for index in split.undivided:
        assert split.train[index].duration_seconds == durations[index]


@pytest.mark.slow
@given(DURATIONS, st.floats(0, 0.99))
def test_split_by_track_gives_each_track_to_one_side(durations: list[float], fraction: float) -> None:
    split = split_corpus(corpus_of_lengths(durations), split="track", held_out_fraction=fraction)
    held_out = tracks(split.test) if split.is_shared else [*tracks(split.validation), *tracks(split.test)]
    assert sorted([*tracks(split.train), *held_out]) == list(range(len(durations)))
    assert split.train_seconds + split.held_out_seconds == pytest.approx(sum(durations))


def test_split_by_track_does_not_move_tracks_when_others_are_added() -> None:
    few, many = (split_corpus(corpus_of_lengths([10.0] * count), split="track") for count in (100, 1000))
    for side in ("train", "validation", "test"):
        more = tracks(getattr(many, side))
        assert tracks(getattr(few, side)) == [index for index in more if index < 100]
    assert 100 < len(many.test) < 150
    assert 100 < len(many.validation) < 150
    assert not many.is_shared


def test_the_split_that_the_defaults_make() -> None:
    split = split_corpus(corpus_of_lengths([100.0, 12.0, 3.0]))
    assert list(split.train) == [TimeRange(0, 0.0, 94.9), TimeRange(1, 0.0, 8.9), TimeRange(2, 0.0, 3.0)]
    assert list(split.test) == [TimeRange(0, 95.0, 100.0), TimeRange(1, 9.0, 12.0)]
    assert split.undivided == (2,)


TRACK = {"name": "a.wav", "content_hash": "x", "frames": 600 * 48000}


def pieces_of(count: int, seconds: float = 600.0, **common: object) -> list[dict[str, object]]:
    length = round(seconds * 48000) // count
    return [
        {
            "name": f"folder/a.wav.flac#{piece}",
            "source_name": "a.wav",
            "piece_start_seconds": piece * length / 48000,
            "frames": length,
            **common,
        }
        for piece in range(count)
    ]


def test_the_end_of_a_track_in_pieces_is_that_of_the_last_one() -> None:
    split = split_corpus(corpus_of_rows(pieces_of(2)))
    assert list(split.train) == [TimeRange(0, 0.0, 300.0), TimeRange(1, 0.0, 294.9)]
    assert list(split.test) == [TimeRange(1, 295.0, 300.0)]
    assert split.undivided == ()
    # The border lies in the second piece of three: the third is wholly held out.
    split = split_corpus(corpus_of_rows(pieces_of(3)), held_out_seconds=250.0, held_out_fraction=0.5)
    assert list(split.train) == [TimeRange(0, 0.0, 200.0), TimeRange(1, 0.0, 149.9)]
    assert list(split.test) == [TimeRange(1, 150.0, 200.0), TimeRange(2, 0.0, 200.0)]


@pytest.mark.slow
@given(st.integers(1, 7), st.floats(3, 60), st.floats(0, 40), st.floats(0, 0.9), st.floats(0, 1), st.floats(0.02, 3))
def test_pieces_and_copies_are_divided_as_the_track_itself(
    count: int, seconds: float, held_out: float, fraction: float, gap: float, minimum: float
) -> None:
    whole = {**TRACK, "frames": round(seconds * 48000) // count * count}
    copy = {**whole, "name": "copy.flac"}
    rows = [whole, copy, *pieces_of(count, seconds, content_hash="x")]
    options = {"held_out_fraction": fraction, "gap_seconds": gap, "minimum_seconds": minimum}
    corpus = corpus_of_rows(rows)
    split = split_corpus(corpus, held_out_seconds=held_out, **options)
    alone = split_corpus(corpus_of_rows([whole]), held_out_seconds=held_out, **options)
    edge = alone.test.starts[0] if len(alone.test) else whole["frames"] / 48000
    begins = corpus.starts
    for span in split.train:
        assert span.end_seconds + begins[span.track_index] <= edge - (gap if len(alone.test) else 0) + 1e-6
        assert span.duration_seconds >= minimum - 1e-9 or span.track_index in split.undivided
    for span in split.test:
        assert span.start_seconds + begins[span.track_index] >= edge - 1e-6
        assert span.duration_seconds >= minimum - 1e-9


def test_an_unknown_split_names_the_known() -> None:
    with pytest.raises(ValueError, match="'end', 'track', 'official'"):
        split_corpus(corpus_of_lengths([10.0]), split="random")


@pytest.mark.slow
@given(st.lists(ROWS, min_size=1, max_size=30), st.floats(0, 0.99), st.sampled_from(["track", "official"]))
def test_no_music_is_heard_on_two_sides(rows: list[dict[str, str]], fraction: float, how: str) -> None:
    split = split_corpus(corpus_of_rows(rows), split=how, held_out_fraction=fraction)
    sides = [set(tracks(split.train)), set(tracks(split.test))]
    if not split.is_shared:
        sides.append(set(tracks(split.validation)))
    assert sorted([*(index for side in sides for index in side), *split.duplicates]) == list(range(len(rows)))
    contents = [{rows[index]["content_hash"] for index in side} - {""} for side in sides]
    groups = [{rows[index]["group"] for index in side} - {""} for side in sides]
    for one in range(len(sides)):
        for other in range(one):
            assert not contents[one] & contents[other]
            if how == "track":
                assert not groups[one] & groups[other]


@pytest.mark.slow
@given(st.lists(ROWS, min_size=1, max_size=30))
def test_official_sides_are_kept(rows: list[dict[str, str]]) -> None:
    split = split_corpus(corpus_of_rows(rows), split="official")
    used = {index: row["split"] for index, row in enumerate(rows) if index not in split.duplicates}
    if not split.is_shared:
        for side in ("validation", "test"):
            assert {index for index, named in used.items() if named == side} <= set(tracks(getattr(split, side)))
    held_out = {*tracks(split.validation), *tracks(split.test)}
    assert not {index for index, named in used.items() if named in ("validation", "test")} - held_out


def test_a_corpus_without_an_own_division_is_divided_by_hash_beside_one_with_it() -> None:
    official = [{"corpus": "maestro", "split": SIDES[i % 3], "name": f"m{i:04d}"} for i in range(30)]
    plain = [{"corpus": "folder"} for _ in range(200)]
    alone = split_corpus(corpus_of_rows(plain), split="track")
    both = split_corpus(corpus_of_rows([*plain, *official]), split="official")
    for side, own in zip(("train", "validation", "test"), SIDES, strict=True):
        of_folder = [index for index in tracks(getattr(both, side)) if index < 200]
        assert of_folder == tracks(getattr(alone, side))
        assert len(getattr(both, side)) == len(of_folder) + sum(row["split"] == own for row in official)


def test_a_side_that_a_corpus_does_not_name_comes_from_its_training() -> None:
    rows = [{"corpus": "mine", "split": "test" if index < 50 else "train"} for index in range(400)]
    split = split_corpus(corpus_of_rows(rows), split="official")
    assert tracks(split.test) == list(range(50))
    assert 20 < len(split.validation) < 80
    assert not split.is_shared


def test_one_held_out_track_serves_validation_and_test() -> None:
    rows = [{"split": "test"}, {"split": "train"}, {"split": "train"}]
    split = split_corpus(corpus_of_rows(rows), split="official", held_out_fraction=0.0)
    assert (tracks(split.train), tracks(split.validation), tracks(split.test)) == ([1, 2], [0], [0])
    assert split.is_shared


def test_a_copy_of_test_music_is_not_trained_on() -> None:
    rows = [{"split": "train", "content_hash": "x"}, {"split": "test", "content_hash": "x"}, {"split": "validation"}]
    split = split_corpus(corpus_of_rows([*rows, {"split": "train"}]), split="official")
    assert split.duplicates == (0,)
    assert tracks(split.train) == [3]


def test_a_rendition_of_what_is_held_out_is_not_trained_on() -> None:
    rows = [{"split": "train", "group": "song"}, {"split": "test", "group": "song"}, {"split": "validation"}]
    split = split_corpus(corpus_of_rows([*rows, {"split": "train", "group": "other"}]), split="official")
    assert split.duplicates == (0,)
    assert tracks(split.train) == [3]
    elsewhere = {"split": "train", "group": "song", "corpus": "another"}
    assert split_corpus(corpus_of_rows([*rows, elsewhere]), split="official").duplicates == (0,)


def test_what_is_related_through_a_third_track_is_not_trained_on() -> None:
    """T has the samples of X, which is of the group of the test track Y."""
    rows = [
        {"corpus": "m", "name": "X", "group": "song", "split": "train", "content_hash": "1"},
        {"corpus": "m", "name": "Y", "group": "song", "split": "test"},
        {"corpus": "m", "name": "V", "split": "validation"},
        {"corpus": "c", "name": "T", "split": "train", "content_hash": "1"},
        {"corpus": "c", "name": "Z", "split": "train", "content_hash": "2"},
    ]
    corpus = corpus_of_rows(rows)
    split = split_corpus(corpus, split="official", held_out_fraction=0.0)
    assert [corpus.tracks[index].name for index in tracks(split.train)] == ["Z"]
    assert {corpus.tracks[index].name for index in split.duplicates} == {"T", "X"}


@pytest.mark.slow
@given(st.lists(ROWS, min_size=1, max_size=30), st.floats(0, 0.99), st.sampled_from(["track", "official"]))
def test_no_chain_of_copies_and_renditions_leads_to_a_stronger_side(
    rows: list[dict[str, str]], fraction: float, how: str
) -> None:
    split = split_corpus(corpus_of_rows(rows), split=how, held_out_fraction=fraction)
    related = {index: {index} for index in range(len(rows))}
    for one, other in itertools.combinations(range(len(rows)), 2):
        has_content = rows[one]["content_hash"] == rows[other]["content_hash"] != ""
        keys = [(row["corpus"], row["group"]) for row in (rows[one], rows[other])]
        if has_content or (keys[0] == keys[1] and rows[one]["group"]):
            together = related[one] | related[other]
            related |= dict.fromkeys(together, together)
    held_out = {*tracks(split.test), *tracks(split.validation)}
    for index in tracks(split.train):
        assert not related[index] & held_out
    for index in split.duplicates:
        assert related[index] & held_out


def test_a_song_in_two_formats_is_on_one_side() -> None:
    names = [f"{index:04d}{end}" for index in range(200) for end in (".flac", ".mp3", ".WAV", ".wav.ogg")]
    split = split_corpus(corpus_of_rows([{"name": name} for name in sorted(names)]), split="track")
    sides = [{index // 4 for index in tracks(getattr(split, side))} for side in SIDES]
    assert [len(side) for side in sides] == [len(getattr(split, side)) / 4 for side in SIDES]
    assert not split.duplicates
    # Whatever the tags say of it, and whatever a corpus' own division.
    rows = [{"name": "a.flac", "group": "one", "split": "test"}, {"name": "a.mp3", "group": "two", "split": "train"}]
    split = split_corpus(corpus_of_rows([*rows, {"split": "validation"}]), split="official")
    assert [split.duplicates, tracks(split.test)] == [(2,), [1]]


def test_a_name_without_an_extension_stays_whole() -> None:
    rows = [{"name": f"Vol. {index}"} for index in range(300)]
    assert all(len(getattr(split_corpus(corpus_of_rows(rows), split="track"), side)) > 20 for side in SIDES)


def test_silence_makes_no_music_related() -> None:
    rows = [{"split": side, "content_hash": "0", "silent_share": 1.0} for side in SIDES]
    assert split_corpus(corpus_of_rows(rows), split="official").duplicates == ()
    almost = [{**row, "silent_share": 0.99} for row in rows]
    assert len(split_corpus(corpus_of_rows(almost), split="official").duplicates) == 2


def test_scanned_and_prepared_music_keep_their_sides_beside_each_other() -> None:
    scanned = [{"corpus": "one", "name": f"{index:04d}.flac"} for index in range(100)]
    prepared = [{"corpus": "two", "name": f"p{index}.flac", "source_name": f"s{index}.wav"} for index in range(100)]
    both = corpus_of_rows([*scanned, *prepared])
    split = split_corpus(both, split="official")
    for rows in (scanned, prepared):
        alone = corpus_of_rows(rows)
        own = split_corpus(alone, split="official")
        for side in SIDES:
            expected = {alone.tracks[index].name for index in tracks(getattr(own, side))}
            found = {both.tracks[index].name for index in tracks(getattr(split, side))}
            assert expected == found & {track.name for track in alone.tracks}


def test_a_side_that_is_called_otherwise_is_refused() -> None:
    corpus = corpus_of_rows([{"split": "valid"}, {"split": "testing"}, {"split": "train"}])
    with pytest.raises(ManifestError, match=r"has 'testing', 'valid'; allowed are train, validation, test"):
        split_corpus(corpus, split="official")
    assert len(split_corpus(corpus, split="track").train)


def test_what_was_prepared_is_divided_as_what_was_scanned() -> None:
    scanned = [{"name": f"{index:04d}.mp3"} for index in range(200)]
    pieces = [
        {"name": f"folder/{index:04d}.mp3.flac#{piece}", "source_name": f"{index:04d}.mp3"}
        for index in range(200)
        for piece in range(3)
    ]
    one, other = (split_corpus(corpus_of_rows(rows), split="track") for rows in (scanned, pieces))
    for side in SIDES:
        of_pieces = tracks(getattr(other, side))
        assert {index // 3 for index in of_pieces} == set(tracks(getattr(one, side)))
        assert len(of_pieces) == 3 * len(getattr(one, side))
