"""The table of evaluation segments: the same music for every run and every codec, also when the corpus grows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas

from datamodules.corpora.corpus import Corpus
from datamodules.corpora.splits import Split
from datamodules.corpora.time_ranges import TimeRanges
from spectrostream.atomic_files import write_whole
from spectrostream.errors import UserError

_COLUMNS = ("corpus", "track", "start_seconds", "duration_seconds")
# In seconds; the table has nine digits.
_ROUNDING = 1e-6


class SegmentsError(UserError):
    """A table of segments that cannot be used; the message says what is wrong and what to type."""


def write_segments(path: Path, corpus: Corpus, segments: TimeRanges) -> None:
    """Write a CSV of the segments, which appears whole or not at all.

    Tracks and times are those of the scanned music, so the table also holds for music that was prepared of it.

    Raises:
        SegmentsError: The file exists with another content; it may be a table that has results.
    """
    rows = corpus.table.iloc[segments.tracks]
    table = pandas.DataFrame(
        {
            "corpus": rows["corpus"].to_numpy(),
            "track": corpus.sources.iloc[segments.tracks].to_numpy(),
            "start_seconds": segments.starts + corpus.starts[segments.tracks],
            "duration_seconds": segments.ends - segments.starts,
            "content_hash": rows["content_hash"].to_numpy(),
        }
    )
    content = table.to_csv(index=False, float_format="%.9f", lineterminator="\n").encode()
    if path.exists():
        if path.read_bytes() != content:
            raise SegmentsError(f"{str(path)!r} is there and is not this table; type another file, or remove it first")
        return
    write_whole(path, content)


def read_segments(path: Path, corpus: Corpus, split: Split, *, sample_rate: int = 48000) -> list[TimeRanges]:
    """Find the segments of a table in the corpus. No audio is read.

    Returns:
        For each segment, in the table's order, a range of its track, or ranges of consecutive pieces of the track. They
        add up to the segment, to the sample at `sample_rate` Hz.

    Raises:
        SegmentsError: There is no such table; the corpus lacks a track or has it with another content; a segment ends
            beyond its track, is in a missing piece, or crosses pieces of another rate; two segments have the same
            start; a segment is trained on.
    """
    table = _read(path)
    is_empty = table["duration_seconds"] * sample_rate < 0.5
    _require(path, table, is_empty | (table["start_seconds"] < 0), "has no length")
    # Names of segments have three digits.
    is_repeated = table.round({"start_seconds": 3}).duplicated(["corpus", "track", "start_seconds"])
    _require(path, table, is_repeated, "is listed twice")
    places = _places(table, corpus, sample_rate)
    missing = table.loc[~table.index.isin(places["segment"]), "track"]
    if len(missing):
        what = f"{len(missing)} of {len(table)} tracks are not in the corpus, the first {missing.iloc[0]!r}"
        raise _unusable(path, what, ":")
    parts = _consecutive_parts(places)
    is_there = table.index.isin(parts["segment"])
    _require(path, table, ~is_there, "goes beyond the end of its track, or lies in a piece of it that is missing")
    ranges = TimeRanges(parts["row"].to_numpy(), parts["start"].to_numpy(), parts["end"].to_numpy())
    for are_wrong, what in (
        (_cannot_be_joined(parts, sample_rate), f"crosses the border of two pieces that are not at {sample_rate} Hz"),
        (_is_other_music(parts), "holds other music than when the table was made"),
        (_overlap(ranges, split.train, len(corpus.table)), "is trained on"),
    ):
        _require(path, table, table.index.isin(parts.loc[are_wrong, "segment"]), what)
    borders = np.flatnonzero(np.diff(parts["segment"])) + 1
    return [ranges.at(which) for which in np.split(np.arange(len(ranges)), borders)]


def _places(table: pandas.DataFrame, corpus: Corpus, sample_rate: int) -> pandas.DataFrame:
    """Return, for each segment, the rows of the corpus that are its track or pieces of it, and its range in each.

    Columns in seconds: `start` and `end` in the row (an end before the start is an empty range), `begins` and `ends` of
    the segment in its track.
    """
    rows = pandas.DataFrame(
        {
            "corpus": corpus.table["corpus"],
            "track": corpus.sources,
            "row": np.arange(len(corpus.table)),
            "offset": corpus.starts,
            "seconds": corpus.durations,
            "sample_rate": corpus.table["sample_rate"],
            "content_hash_now": corpus.table["content_hash"],
        }
    )
    # On whole samples, so that the parts of a segment add up to its length.
    begins = (table["start_seconds"] * sample_rate).round() / sample_rate
    ends = begins + (table["duration_seconds"] * sample_rate).round() / sample_rate
    wanted = table.assign(segment=table.index, begins=begins, ends=ends)
    places = wanted.merge(rows, on=["corpus", "track"]).sort_values(["segment", "offset", "row"])
    places["start"] = (places["begins"] - places["offset"]).clip(lower=0)
    places["end"] = np.minimum(places["ends"] - places["offset"], places["seconds"])
    return places


def _consecutive_parts(places: pandas.DataFrame) -> pandas.DataFrame:
    """Return, for each segment, the first row that has all of it, or the consecutive rows that have it together."""
    touched = places[places["end"] - places["start"] > _ROUNDING]
    starts, ends = touched["start"] + touched["offset"], touched["end"] + touched["offset"]
    is_whole = (starts < touched["begins"] + _ROUNDING) & (ends > touched["ends"] - _ROUNDING)
    whole = touched[is_whole].drop_duplicates("segment")
    segment = touched["segment"]
    follows = (starts - ends.groupby(segment).shift().fillna(touched["begins"])).abs() < _ROUNDING
    is_last = ~segment.duplicated(keep="last")
    is_joined = follows & (~is_last | (ends > touched["ends"] - _ROUNDING))
    joined = touched[is_joined.groupby(segment).transform("all") & ~segment.isin(whole["segment"])]
    return pandas.concat([whole, joined]).sort_values(["segment", "offset"])


def _cannot_be_joined(parts: pandas.DataFrame, sample_rate: int) -> pandas.Series:
    # Each piece is resampled by itself, so at another rate the border would be audible.
    return parts["segment"].duplicated(keep=False) & (parts["sample_rate"] != sample_rate)


def _is_other_music(parts: pandas.DataFrame) -> pandas.Series:
    if "content_hash" not in parts:
        return parts["segment"] < 0
    then, now = parts["content_hash"], parts["content_hash_now"]
    return (then != "") & (now != "") & (then != now)


def segments_fingerprint(path: Path, limit: int | None = None) -> str:
    """Return the first 12 hexadecimal digits of the table's SHA-256, and the effect of a lower `limit`.

    Raises:
        SegmentsError: The table cannot be read.
    """
    try:
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise _unusable(path, f"cannot be read ({error.strerror})") from error
    if limit is None or limit >= (listed := len(_read(path))):
        return digits
    return f"{digits}, {limit} of {listed}"


def _unusable(path: Path, what: str, colon: str = "") -> SegmentsError:
    return SegmentsError(
        f"data.evaluation_segments={str(path)!r}{colon} {what}; write the table again with `spectrostream data "
        "segments`, or train with the manifests it was written for"
    )


def _read(path: Path) -> pandas.DataFrame:
    try:
        table = pandas.read_csv(path, dtype={"corpus": str, "track": str, "content_hash": str}, keep_default_na=False)
    except FileNotFoundError as error:
        raise _unusable(path, "does not exist") from error
    except (ValueError, OSError) as error:
        raise _unusable(path, f"cannot be read ({error})") from error
    missing = [column for column in _COLUMNS if column not in table]
    numbers = [column for column in _COLUMNS[2:] if column in table and table[column].dtype.kind not in "fi"]
    if missing or numbers or table.empty:
        problem = f"no column {', '.join(missing)}" if missing else f"no numbers in {numbers}" if numbers else "no rows"
        raise _unusable(path, f"has {problem}")
    return table


def _require(path: Path, table: pandas.DataFrame, is_wrong: np.ndarray | pandas.Series, what: str) -> None:
    if is_wrong.any():
        first = table[is_wrong].iloc[0]
        which = f"that of {first['track']!r} at {first['start_seconds']:.3f} s {what}"
        raise _unusable(path, f"{is_wrong.sum()} of {len(table)} segments cannot be used; {which}", ":")


def _overlap(segments: TimeRanges, trained: TimeRanges, tracks: int) -> np.ndarray:
    """Return whether each segment overlaps a training range; a track has at most one training range."""
    starts, ends = np.full(tracks, np.inf), np.full(tracks, -np.inf)
    starts[trained.tracks], ends[trained.tracks] = trained.starts, trained.ends
    return (segments.starts < ends[segments.tracks]) & (segments.ends > starts[segments.tracks])
