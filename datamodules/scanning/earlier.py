"""What a new scan takes from an earlier manifest of the same folder: measurements, and what a user wrote into it."""

from __future__ import annotations

import re
from dataclasses import fields

import pandas

from datamodules.corpora.manifest import COLUMNS
from datamodules.scanning.journal import Finished, TrackKey
from datamodules.scanning.measuring import Measurement
from datamodules.scanning.pool import BROUGHT_DOWN, TOOK_LONGER, UNMEASURED, UNREADABLE

_MEASURED = tuple(field.name for field in fields(Measurement))
# Columns that users fill in if the corpus and the tags leave them empty.
_BY_HAND = ("split", "group", "artist", "album", "genre")
# Problems of the disk, of permissions or of memory, as the pool and `open_audio` write them (for a part, after its
# name): the next scan may be able to read the file. Too little memory ends a process by SIGKILL (9) or SIGTERM (15).
_PASSING_REASONS = (
    *("cannot be opened", UNREADABLE, TOOK_LONGER),
    *(f"{BROUGHT_DOWN}-9)", f"{BROUGHT_DOWN}-15)", f"{UNMEASURED}MemoryError"),
)
_PASSING = re.compile(rf"(?:^|': )(?:{'|'.join(map(re.escape, _PASSING_REASONS))})")


def known_rows(earlier: pandas.DataFrame | None, *, headers_only: bool = False) -> dict[TrackKey, Finished]:
    """Return the usable rows, whose files need not be measured again while they do not change.

    With `headers_only` also the rows with a problem in the file itself: NaN among the samples, for example, is not
    visible in a header.
    """
    if earlier is None:
        return {}
    good = _finished(earlier[(earlier["problem"] == "") & earlier["frames"].notna()])
    if not headers_only:
        return good
    lasting = (earlier["problem"] != "") & ~earlier["problem"].map(lambda reason: bool(_PASSING.search(reason)))
    return good | _finished(earlier[lasting])


def _finished(rows: pandas.DataFrame) -> dict[TrackKey, Finished]:
    plain = rows.astype(object).where(rows.notna(), None)
    keys = map(TrackKey, plain["root"], plain["name"], plain["parts"])
    measurements = (Measurement(*values) for values in plain[list(_MEASURED)].itertuples(index=False, name=None))
    columns = (plain["size_bytes"], plain["modified_ns"], plain["problem"], measurements)
    return {
        key: Finished(size, modified, None if problem else measurement, problem)
        for key, size, modified, problem, measurement in zip(keys, *columns, strict=True)
    }


def with_additions(table: pandas.DataFrame, earlier: pandas.DataFrame | None) -> pandas.DataFrame:
    """Add what a user wrote into the earlier manifest: own columns, and a split, group, ... that is new."""
    if earlier is None:
        return table
    key = list(TrackKey._fields)
    rows = earlier.drop_duplicates(key).set_index(key).convert_dtypes()
    rows = rows.reindex(pandas.MultiIndex.from_frame(table[key])).set_axis(table.index)
    by_hand = {column: table[column].mask(table[column] == "", rows[column].fillna("")) for column in _BY_HAND}
    own = [column for column in rows if column not in COLUMNS]
    return pandas.concat([table.assign(**by_hand), rows[own]], axis=1)
