"""Find tracks with the same content, and those that are on both sides of a split."""

from __future__ import annotations

from dataclasses import dataclass

import pandas

from datamodules.corpora.manifest import source_names


@dataclass(frozen=True)
class Duplicates:
    """Numbers of tracks that have the content of an earlier track, and of tracks whose content is in two splits."""

    copies: int
    across_splits: int


def mark_duplicates(table: pandas.DataFrame) -> pandas.DataFrame:
    """Fill the column `duplicate_of`: corpus/name of the first track, by corpus and name, with the same content.

    Rows without a content hash (headers only, a bad file) have no duplicates. The pieces of a track, which all have its
    hash, are no duplicates of each other.
    """
    table = table.reset_index(drop=True)
    hashed = table[table["content_hash"] != ""].sort_values(["corpus", "name"], kind="stable")
    titles, tracks = hashed["corpus"] + "/" + hashed["name"], _tracks(hashed)
    copies = tracks != tracks.groupby(hashed["content_hash"]).transform("first")
    firsts = titles.groupby(hashed["content_hash"]).transform("first")
    marks = firsts[copies].reindex(table.index, fill_value="")
    return table.assign(duplicate_of=marks.astype("str"))


def count_duplicates(table: pandas.DataFrame) -> Duplicates:
    """Count the duplicates in the rows of one or more manifests; a track in pieces counts once."""
    hashed = mark_duplicates(table[table["content_hash"] != ""])
    tracks = _tracks(hashed)
    divided = hashed[hashed["split"] != ""]
    splits = divided.groupby("content_hash")["split"].transform("nunique")
    copies, leaks = tracks[hashed["duplicate_of"] != ""], tracks[splits.index[splits > 1]]
    return Duplicates(copies.nunique(), leaks.nunique())


def _tracks(table: pandas.DataFrame) -> pandas.Series:
    """Return a value for each row, equal for pieces of one track; only rows with a `source_name` are pieces."""
    if "source_name" not in table:
        return table.index.to_series()
    return table["corpus"] + "/" + source_names(table)
