"""A corpus: usable tracks in a fixed order. They are held as columns, because there may be a million."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pandas
import pyarrow
import pyarrow.compute

from datamodules.audio.find_files import SkippedFile
from datamodules.corpora.manifest import file_path, source_names, table_name, typed
from spectrostream.errors import UserError

# The columns on which the choice of crops may depend. The place of a corpus and the times of its files do not matter.
_IDENTITY = (
    *("corpus", "name", "split", "group", "artist", "genre", "frames", "sample_rate", "channels", "size_bytes"),
    *("loudness_lufs", "peak_dbfs", "clipped_share", "silent_share", "side_to_mid_db", "bandwidth_hz"),
    *("content_hash", "duplicate_of"),
)
_UNKNOWN_SIZE = -1


class EmptyCorpusError(UserError):
    """A folder or manifests without usable audio; the message says what was found and what to type."""


@dataclass(frozen=True)
class Track:
    """One usable track, with the numbers of its header.

    Attributes:
        path: Its file, or the folder of its parts.
        name: Unique path below the corpus' folder with forward slashes; see `manifest.table_name`.
        size_bytes: Of all its files; None if a manifest does not have it.
        parts: Files whose sum is the track; () if `path` is the file.
    """

    path: Path
    name: str
    duration_seconds: float
    sample_rate: int
    channels: int
    size_bytes: int | None
    parts: tuple[Path, ...] = ()


class Tracks(Sequence[Track]):
    """The rows of a corpus' table as tracks; an access makes the track."""

    def __init__(self, table: pandas.DataFrame) -> None:
        self._columns = {name: _texts(table[name]) for name in ("root", "name", "track", "parts")}
        # A million rows share a few folders, and the columns are sent to every reading process.
        self._columns["root"] = self._columns["root"].dictionary_encode()
        self._numbers = {name: table[name].to_numpy(np.int64) for name in ("sample_rate", "channels")}
        # A column with missing values would be sent as floats or objects.
        self._numbers["size_bytes"] = table["size_bytes"].to_numpy(np.int64, na_value=_UNKNOWN_SIZE)
        self._seconds = _durations(table)

    def __len__(self) -> int:
        return len(self._seconds)

    @overload
    def __getitem__(self, index: int) -> Track: ...
    @overload
    def __getitem__(self, index: slice) -> list[Track]: ...
    def __getitem__(self, index: int | slice) -> Track | list[Track]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        root, name, track, parts = (self._columns[key][index].as_py() for key in ("root", "name", "track", "parts"))
        size = int(self._numbers["size_bytes"][index])
        return Track(
            path=file_path(root, name),
            name=track,
            duration_seconds=float(self._seconds[index]),
            sample_rate=int(self._numbers["sample_rate"][index]),
            channels=int(self._numbers["channels"][index]),
            size_bytes=None if size == _UNKNOWN_SIZE else size,
            parts=tuple(file_path(root, part) for part in parts.split("\n") if part),
        )

    def root_of(self, index: int) -> Path:
        """Return the folder of a track's corpus."""
        return file_path(self._columns["root"][index].as_py(), "")

    def below(self, folder: Path) -> np.ndarray:
        """Return the places of the tracks whose names are below a folder, int64 `[tracks below]`."""
        roots = self._columns["root"]
        is_below = np.zeros(len(self), bool)
        for number, text in enumerate(roots.dictionary.to_pylist()):
            root = file_path(text, "")
            of_root = roots.indices.to_numpy() == number
            if root.is_relative_to(folder):
                is_below |= of_root
            elif folder.is_relative_to(root):
                start = f"{table_name(folder.relative_to(root))}/"
                starts = pyarrow.compute.starts_with(self._columns["name"], start)
                is_below |= of_root & starts.to_numpy(zero_copy_only=False)
        return np.flatnonzero(is_below)


class Corpus:
    """Usable tracks, sorted by name.

    Attributes:
        where: The folder or the manifests, for messages.
        table: Usable rows of manifests, sorted by the unique column `track`, which is added: the row's name, after the
            corpus' name if rows of several corpora have the same names.
        skipped: The files that are not used.
    """

    def __init__(self, where: str, table: pandas.DataFrame, skipped: Sequence[SkippedFile] = ()) -> None:
        self.where = where
        self.table = _by_name(typed(table))
        self.skipped = skipped
        self.tracks = Tracks(self.table)

    @cached_property
    def durations(self) -> np.ndarray:
        """Seconds of each track, float64 `[tracks]`."""
        return _durations(self.table)

    @property
    def sources(self) -> pandas.Series:
        """The name of each track at the scan, see `manifest.source_names`."""
        return source_names(self.table)

    @cached_property
    def source_tracks(self) -> pandas.Series:
        """The column `track` of the scanned music; it is the same for everything that was prepared of it.

        Two folders that were scanned as one corpus may have tracks of the same name. Such music must be prepared before
        a training, and then this is the name of the prepared track.
        """
        sources, corpora = self.sources, self.table["corpus"]
        rows = pandas.DataFrame({"corpus": corpora, "source": sources, "start": self.starts})
        if rows.duplicated().any():
            return _without_piece(self.table)
        is_first = ~rows.duplicated(["corpus", "source"])
        return corpora + "/" + sources if sources[is_first].duplicated().any() else sources

    @property
    def starts(self) -> np.ndarray:
        """Start of each row in its scanned track, in seconds; 0 except for pieces of long tracks in shards."""
        if "piece_start_seconds" not in self.table:
            return np.zeros(len(self.table))
        return self.table["piece_start_seconds"].fillna(0.0).to_numpy(np.float64)

    @property
    def duration_seconds(self) -> float:
        """Length of all tracks together, in seconds."""
        return float(self.durations.sum())

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that crops depend on; equal corpora in other places have the same."""
        digest = hashlib.sha256()
        for name in _IDENTITY:
            column = self.table[name]
            digest.update(b"%s\0%d\0" % (name.encode(), len(column)))
            if column.dtype.kind in "fi" or str(column.dtype) == "Int64":
                digest.update(column.to_numpy(np.float64, na_value=np.nan).tobytes())
            else:
                lengths, text = _text_bytes(column)
                digest.update(lengths)
                digest.update(text)
        return digest.hexdigest()


def _durations(table: pandas.DataFrame) -> np.ndarray:
    return table["frames"].to_numpy(np.float64) / table["sample_rate"].to_numpy(np.float64)


def _without_piece(table: pandas.DataFrame) -> pandas.Series:
    """Return the names of the whole tracks."""
    if "piece" not in table:
        return table["track"]
    names = [name.removesuffix(f"#{piece}") for name, piece in zip(table["track"], table["piece"], strict=True)]
    return pandas.Series(names, index=table.index, dtype="str")


def _text_bytes(column: pandas.Series) -> tuple[bytes, memoryview]:
    """Return the lengths of the values, and all values joined; joining a million in Python takes seconds."""
    values = _texts(column)
    _, offsets, text = values.buffers()
    ends = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return np.diff(ends).tobytes(), memoryview(text)[ends[0] : ends[-1]] if text else memoryview(b"")


def _texts(column: pandas.Series) -> pyarrow.LargeStringArray:
    values = pyarrow.array(column, pyarrow.large_string())
    return values.combine_chunks() if isinstance(values, pyarrow.ChunkedArray) else values


def _by_name(table: pandas.DataFrame) -> pandas.DataFrame:
    named = _sorted(table.assign(track=table["name"]))
    if _is_repeated(named).any():
        named = _sorted(table.assign(track=table["corpus"] + "/" + table["name"]))
    twice = named.loc[_is_repeated(named), "track"]
    if len(twice):
        raise UserError(
            f"{len(twice)} tracks are there twice, the first {twice.iloc[0]!r}; name each manifest once; where "
            "several folders were scanned, type for each `spectrostream data scan FOLDER --name NAME --out MANIFEST` "
            "again, with a name of its own, and prepare again what was prepared"
        )
    return named.reset_index(drop=True)


def _sorted(table: pandas.DataFrame) -> pandas.DataFrame:
    return table if table["track"].is_monotonic_increasing else table.sort_values("track")


def _is_repeated(table: pandas.DataFrame) -> pandas.Series:
    # In a sorted table equal names are neighbours.
    return table["track"] == table["track"].shift()
