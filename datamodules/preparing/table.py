"""The manifest of the prepared files: the columns of the old one, with the values of the new files."""

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
    """Return the new manifest, with a row for each file or piece.

    Args:
        table: The old manifest.
        names: The new name of each of its rows.
        rows: New names, and the columns that changed.
        out: The folder of the files. Rows of shards have no folder, so that shards can be moved with their index.
        settings: What was made.
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
    # Splits keep the pieces of a track together by `source_name`. The hash stays that of the scanned music.
    result["duplicate_of"] = _renamed(before["duplicate_of"], table, names)
    return typed(result.drop(columns="prepared"))


def _row_names(result: pandas.DataFrame) -> pandas.Series:
    is_divided = result.groupby("prepared")["piece"].transform("max") > 0
    return result["prepared"].where(~is_divided, result["prepared"] + "#" + result["piece"].astype("str"))


def _renamed(duplicate_of: pandas.Series, table: pandas.DataFrame, names: pandas.Series) -> pandas.Series:
    new_names = dict(zip(table["corpus"] + "/" + table["name"], table["corpus"] + "/" + names, strict=True))
    return duplicate_of.map(lambda old: new_names.get(old, ""))
