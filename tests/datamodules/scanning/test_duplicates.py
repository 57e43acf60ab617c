"""Copies are found across corpora, and leaks across splits are counted."""

from __future__ import annotations

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.manifest import typed
from datamodules.scanning.duplicates import Duplicates, count_duplicates, mark_duplicates


def _table(*rows: tuple[str, str, str, str]) -> pandas.DataFrame:
    return typed(pandas.DataFrame(rows, columns=["corpus", "name", "content_hash", "split"]))


def test_the_first_by_corpus_and_name_is_the_original() -> None:
    table = _table(
        ("musdb", "a.wav", "1", "test"),
        ("fma", "z.mp3", "1", "train"),
        ("fma", "b.mp3", "2", "train"),
        ("fma", "y.mp3", "1", "train"),
        ("fma", "c.mp3", "", ""),
        ("fma", "d.mp3", "", ""),
    )

    marked = mark_duplicates(table)

    assert marked["duplicate_of"].tolist() == ["fma/y.mp3", "fma/y.mp3", "", "", "", ""]
    assert marked["name"].tolist() == table["name"].tolist()
    assert count_duplicates(table) == Duplicates(copies=2, across_splits=3)


def test_copies_within_a_split_or_without_one_are_no_leak() -> None:
    table = _table(("a", "1", "x", "train"), ("a", "2", "x", "train"), ("a", "3", "y", ""), ("a", "4", "y", "test"))

    assert count_duplicates(table) == Duplicates(copies=2, across_splits=0)


def test_an_empty_table_has_none() -> None:
    assert count_duplicates(_table()) == Duplicates(0, 0)
    assert list(mark_duplicates(_table()).columns) == list(_table().columns)


@pytest.mark.slow
@given(hashes=st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=12))
def test_one_of_each_content_is_left(hashes: list[str]) -> None:
    marked = mark_duplicates(_table(*(("folder", f"{i:02}", content, "") for i, content in enumerate(hashes))))

    originals = marked[(marked["duplicate_of"] == "") & (marked["content_hash"] != "")]
    assert sorted(originals["content_hash"]) == sorted(set(hashes) - {""})
    copies = marked[marked["duplicate_of"] != ""]
    for name, content, first in zip(copies["name"], copies["content_hash"], copies["duplicate_of"], strict=True):
        index = hashes.index(content)
        assert first == f"folder/{index:02}"
        assert index < int(name)


def test_pieces_of_one_track_are_no_copies_of_each_other() -> None:
    pieces = _table(
        ("fma", "fma/a.wav#0", "1", "train"),
        ("fma", "fma/a.wav#1", "1", "train"),
        ("fma", "fma/b.wav#0", "1", "test"),
        ("fma", "fma/b.wav#1", "1", "test"),
        ("fma", "fma/c.wav", "2", "test"),
    ).assign(source_name=["a.wav", "a.wav", "b.wav", "b.wav", "c.wav"])

    assert count_duplicates(pieces) == Duplicates(copies=1, across_splits=2)
    assert mark_duplicates(pieces)["duplicate_of"].tolist() == ["", "", "fma/fma/a.wav#0", "fma/fma/a.wav#0", ""]
    assert count_duplicates(pieces.iloc[:2]) == Duplicates(copies=0, across_splits=0)


def test_a_scanned_track_and_what_was_prepared_from_it_are_one() -> None:
    prepared = _table(("fma", "fma/a.flac", "1", "")).assign(source_name=["a.wav"])
    scanned = _table(("fma", "a.wav", "1", ""), ("fma", "copy.wav", "1", ""))

    assert count_duplicates(pandas.concat([prepared, scanned])) == Duplicates(copies=1, across_splits=0)


def test_another_corpus_has_other_tracks_by_the_same_name() -> None:
    table = _table(("a", "x.wav", "1", "train"), ("b", "x.wav", "1", "test")).assign(source_name="x.wav")

    assert count_duplicates(table) == Duplicates(copies=1, across_splits=2)
