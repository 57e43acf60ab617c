"""What an earlier manifest of the same folder is still good for: measurements, and what somebody wrote into it."""

from __future__ import annotations

from dataclasses import fields

import pandas

from datamodules.manifest import COLUMNS
from datamodules.scanning.journal import Finished, TrackKey
from datamodules.scanning.measuring import Measurement

_MEASURED = tuple(field.name for field in fields(Measurement))
# What people fill in by hand where the corpus and the files' tags say nothing.
_BY_HAND = ("split", "group", "artist", "album", "genre")


def known_rows(earlier: pandas.DataFrame | None) -> dict[TrackKey, Finished]:
    """The good rows."""
    if earlier is None:
        return {}
    rows = earlier[(earlier["problem"] == "") & earlier["frames"].notna()]
    plain = rows.astype(object).where(rows.notna(), None)
    keys = map(TrackKey, plain["root"], plain["name"], plain["parts"])
    measurements = (Measurement(*values) for values in plain[list(_MEASURED)].itertuples(index=False, name=None))
    return dict(zip(keys, map(Finished, plain["size_bytes"], plain["modified_ns"], measurements), strict=True))


def with_additions(table: pandas.DataFrame, earlier: pandas.DataFrame | None) -> pandas.DataFrame:
    """The new manifest with what somebody added to the earlier one, by track: columns of their own, and a split, a
    group and so on where the new one has none.
    """
    if earlier is None:
        return table
    key = list(TrackKey._fields)
    rows = earlier.drop_duplicates(key).set_index(key).convert_dtypes()
    rows = rows.reindex(pandas.MultiIndex.from_frame(table[key])).set_axis(table.index)
    by_hand = {column: table[column].mask(table[column] == "", rows[column].fillna("")) for column in _BY_HAND}
    own = [column for column in rows if column not in COLUMNS]
    return pandas.concat([table.assign(**by_hand), rows[own]], axis=1)
