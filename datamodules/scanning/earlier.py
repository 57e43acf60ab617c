"""What an earlier manifest of the same folder is still good for: measurements, and what somebody wrote into it."""

from __future__ import annotations

import re
from dataclasses import fields

import pandas

from datamodules.corpora.manifest import COLUMNS
from datamodules.scanning.journal import Finished, TrackKey
from datamodules.scanning.measuring import Measurement
from datamodules.scanning.pool import BROUGHT_DOWN, TOOK_LONGER, UNMEASURED, UNREADABLE

_MEASURED = tuple(field.name for field in fields(Measurement))
# What people fill in by hand where the corpus and the files' tags say nothing.
_BY_HAND = ("split", "group", "artist", "album", "genre")
# Reasons that lie in a disk, in rights or in too little memory, as the pool and `open_audio` word them (of a part,
# after its name): the same file may well be read another time. Where memory ends, a process is told so, or ended from
# outside, by SIGKILL (9) or SIGTERM (15).
_PASSING_REASONS = (
    *("cannot be opened", UNREADABLE, TOOK_LONGER),
    *(f"{BROUGHT_DOWN}-9)", f"{BROUGHT_DOWN}-15)", f"{UNMEASURED}MemoryError"),
)
_PASSING = re.compile(rf"(?:^|': )(?:{'|'.join(map(re.escape, _PASSING_REASONS))})")


def known_rows(earlier: pandas.DataFrame | None, *, headers_only: bool = False) -> dict[TrackKey, Finished]:
    """The good rows, whose files need not be measured again while they are the same.

    headers_only: also those with a problem in the file itself, of which its header may know nothing, as of NaN among
    the samples. Whoever decodes the file sees whether it is still there.
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
    outcomes = (
        Finished(size, modified, None if problem else measurement, problem)
        for size, modified, problem, measurement in zip(
            plain["size_bytes"], plain["modified_ns"], plain["problem"], measurements, strict=True
        )
    )
    return dict(zip(keys, outcomes, strict=True))


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
