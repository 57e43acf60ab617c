"""Tracks with the same content: which they are, and whether they stand on both sides of a split."""

from __future__ import annotations

from dataclasses import dataclass

import pandas

from datamodules.corpora.manifest import source_names


@dataclass(frozen=True)
class Duplicates:
    """Counts of tracks.

    copies: tracks with the content of another one that comes first.
    across_splits: tracks whose content stands in another split too; a model that is trained on one is tested on it.
    """

    copies: int
    across_splits: int


def mark_duplicates(table: pandas.DataFrame) -> pandas.DataFrame:
    """The manifest with `duplicate_of` filled: corpus/name of the first track with the same content, by both names.

    Without a content hash (headers only, a bad file) nothing is known and nothing said. The pieces of one track, which
    all have its hash, are no copies of each other.
    """
    table = table.reset_index(drop=True)
    hashed = table[table["content_hash"] != ""].sort_values(["corpus", "name"], kind="stable")
    titles, tracks = hashed["corpus"] + "/" + hashed["name"], _tracks(hashed)
    copies = tracks != tracks.groupby(hashed["content_hash"]).transform("first")
    firsts = titles.groupby(hashed["content_hash"]).transform("first")
    marks = firsts[copies].reindex(table.index, fill_value="")
    return table.assign(duplicate_of=marks.astype("str"))


def count_duplicates(table: pandas.DataFrame) -> Duplicates:
    """Of one manifest or of several, one below the other; a track in pieces counts once."""
    hashed = mark_duplicates(table[table["content_hash"] != ""])
    tracks = _tracks(hashed)
    divided = hashed[hashed["split"] != ""]
    splits = divided.groupby("content_hash")["split"].transform("nunique")
    copies, leaks = tracks[hashed["duplicate_of"] != ""], tracks[splits.index[splits > 1]]
    return Duplicates(copies.nunique(), leaks.nunique())


def _tracks(table: pandas.DataFrame) -> pandas.Series:
    """Equal where rows are of one track, whose name they have as `source_name`; without that column, none are."""
    if "source_name" not in table:
        return table.index.to_series()
    return table["corpus"] + "/" + source_names(table)
