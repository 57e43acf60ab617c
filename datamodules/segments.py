"""The table of evaluation segments: the same music for every run and every system, whatever else a corpus grows to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas

from datamodules.corpus import Corpus
from datamodules.spans import Spans
from datamodules.splits import Split
from spectrostream.errors import UserError
from spectrostream.unfinished import whole_file

_COLUMNS = ("corpus", "track", "start_seconds", "duration_seconds")
# Seconds; the table has nine digits.
_ROUNDING = 1e-6


class SegmentsError(UserError):
    """A table of segments that cannot be used; the message says what is wrong and what to type."""


def write_segments(path: Path, corpus: Corpus, segments: Spans) -> None:
    """Writes a CSV of the segments, which appears whole or not at all.

    Tracks and times are those of the music as it was scanned, so that the table also holds for what was prepared of it.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        table.to_csv(file, index=False, float_format="%.9f")


def read_segments(path: Path, corpus: Corpus, split: Split) -> Spans:
    """The segments that a table lists, in its order.

    Raises:
        SegmentsError: no such table; tracks that the corpus lacks or has with another content; a segment beyond its
            track's end or across two pieces of it; music that is trained on.
    """
    table = _read(path)
    places = _places(table, corpus)
    missing = table.loc[~table.index.isin(places["segment"]), "track"]
    if len(missing):
        raise SegmentsError(
            f"data.evaluation_segments={str(path)!r}: {len(missing)} of {len(table)} tracks are not in the corpus, "
            f"the first {missing.iloc[0]!r}; {_REMEDY}"
        )
    _require(path, table, (table["start_seconds"] < 0) | (table["duration_seconds"] <= 0), "has no length")
    inside = places[places["is_inside"]].drop_duplicates("segment")
    reason = "goes beyond the end of its track, or of a piece of it"
    _require(path, table, ~table.index.isin(inside["segment"]), reason)
    tracks = inside["row"].to_numpy()
    starts = inside["start"].to_numpy()
    segments = Spans(tracks, starts, starts + table["duration_seconds"].to_numpy(np.float64))
    _require_same_content(path, table, corpus.table["content_hash"].to_numpy(object)[tracks])
    _require(path, table, _overlap(segments, split.train, len(corpus.table)), "is trained on")
    return segments


def _places(table: pandas.DataFrame, corpus: Corpus) -> pandas.DataFrame:
    """For each segment the rows of the corpus that are its track or pieces of it, and whether it lies in one."""
    rows = pandas.DataFrame(
        {
            "corpus": corpus.table["corpus"],
            "track": corpus.sources,
            "row": np.arange(len(corpus.table)),
            "offset": corpus.starts,
            "seconds": corpus.durations,
        }
    )
    wanted = table.assign(segment=table.index)
    places = wanted.merge(rows, on=["corpus", "track"]).sort_values(["segment", "row"])
    places["start"] = places["start_seconds"] - places["offset"]
    end = places["start"] + places["duration_seconds"]
    places["is_inside"] = (places["start"] > -_ROUNDING) & (end < places["seconds"] + _ROUNDING)
    return places


def segments_fingerprint(path: Path) -> str:
    """The first 12 hexadecimal digits of the table's SHA-256; SegmentsError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise SegmentsError(f"data.evaluation_segments={str(path)!r} {reason}; {_REMEDY}") from error


_REMEDY = "write the table again with `spectrostream data segments`, or train with the manifests it was written for"


def _read(path: Path) -> pandas.DataFrame:
    try:
        table = pandas.read_csv(path, dtype={"corpus": str, "track": str, "content_hash": str}, keep_default_na=False)
    except FileNotFoundError as error:
        raise SegmentsError(f"data.evaluation_segments={str(path)!r} does not exist; {_REMEDY}") from error
    except (ValueError, OSError) as error:
        raise SegmentsError(f"data.evaluation_segments={str(path)!r} cannot be read ({error}); {_REMEDY}") from error
    missing = [column for column in _COLUMNS if column not in table]
    numbers = [column for column in _COLUMNS[2:] if column in table and table[column].dtype.kind not in "fi"]
    if missing or numbers or table.empty:
        problem = f"no column {', '.join(missing)}" if missing else f"no numbers in {numbers}" if numbers else "no rows"
        raise SegmentsError(f"data.evaluation_segments={str(path)!r} has {problem}; {_REMEDY}")
    return table


def _require_same_content(path: Path, table: pandas.DataFrame, now: np.ndarray) -> None:
    if "content_hash" not in table:
        return
    then = table["content_hash"].to_numpy(object)
    _require(path, table, (then != "") & (now != "") & (then != now), "holds other music than when the table was made")


def _require(path: Path, table: pandas.DataFrame, is_wrong: np.ndarray | pandas.Series, what: str) -> None:
    if is_wrong.any():
        first = table[is_wrong].iloc[0]
        raise SegmentsError(
            f"data.evaluation_segments={str(path)!r}: {is_wrong.sum()} of {len(table)} segments cannot be used; that "
            f"of {first['track']!r} at {first['start_seconds']:.3f} s {what}; {_REMEDY}"
        )


def _overlap(segments: Spans, trained: Spans, tracks: int) -> np.ndarray:
    """For each segment whether it shares time with a training span; a track has at most one of these."""
    starts, ends = np.full(tracks, np.inf), np.full(tracks, -np.inf)
    starts[trained.tracks], ends[trained.tracks] = trained.starts, trained.ends
    return (segments.starts < ends[segments.tracks]) & (segments.ends > starts[segments.tracks])
