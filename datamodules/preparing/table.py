"""The manifest of what was prepared: the old one's columns, true of the new files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from datamodules.corpora.manifest import source_names, table_name, typed
from datamodules.preparing.jobs import Settings


def prepared_table(
    table: pandas.DataFrame,
    names: pandas.Series,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    out: Path,
    settings: Settings,
) -> pandas.DataFrame:
    """A row for each file or piece.

    Args:
        table: the old manifest.
        names: what each of its rows became.
        rows: by these names, the columns that changed.
        out: the folder of the files; shards are found by whoever opens their index, wherever it lies.
        settings: what was made.
    """
    new = pandas.DataFrame([{"prepared": name, **row} for name, row in rows])
    before = table.assign(prepared=names).set_index("prepared").loc[new["prepared"]].reset_index()
    result = before.drop(columns=[column for column in new if column in before and column != "prepared"])
    result = pandas.concat([result, new.drop(columns="prepared")], axis=1)
    result["source_name"] = source_names(before)
    result["name"] = _row_names(result) if settings.as_shards else result["prepared"]
    result["root"] = "" if settings.as_shards else table_name(out.absolute())
    result["parts"] = ""
    result["loudness_lufs"] = before["loudness_lufs"] + result["gain_db"]
    if settings.as_shards:
        result["size_bytes"], result["modified_ns"] = result["member_bytes"], None
    # `group` stays as it was: the pieces of a track have one `source_name`, by which splits keep them together. The
    # hash stays too: what the music is does not change with its encoding.
    result["duplicate_of"] = _renamed(before["duplicate_of"], table, names)
    return typed(result.drop(columns="prepared"))


def _row_names(result: pandas.DataFrame) -> pandas.Series:
    is_divided = result.groupby("prepared")["piece"].transform("max") > 0
    return result["prepared"].where(~is_divided, result["prepared"] + "#" + result["piece"].astype("str"))


def _renamed(duplicate_of: pandas.Series, table: pandas.DataFrame, names: pandas.Series) -> pandas.Series:
    new_names = dict(zip(table["corpus"] + "/" + table["name"], table["corpus"] + "/" + names, strict=True))
    return duplicate_of.map(lambda old: new_names.get(old, ""))
