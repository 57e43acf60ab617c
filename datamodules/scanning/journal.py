"""The finished tracks of a scan, on disk, one line of JSON for each, so that a killed scan can resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from datamodules.scanning.measuring import VERSION, Measurement


class TrackKey(NamedTuple):
    """The files of a track, as `manifest.table_name` writes them."""

    root: str
    name: str
    parts: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The outcome of one track: a measurement, or the problem because of which the track cannot be used.

    The size and the time of change are from before the track was read.
    """

    size_bytes: int | None
    modified_ns: int | None
    measurement: Measurement | None
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether more than the header was read, or nothing more can be read."""
        return self.measurement is None or bool(self.measurement.content_hash)

    @property
    def is_current(self) -> bool:
        """Whether this version of the code measures the same."""
        return self.measurement is None or self.measurement.measurement_version == VERSION

    def is_about(self, size_bytes: int, modified_ns: int) -> bool:
        """Whether the files still have the same size and time of change."""
        return (self.size_bytes, self.modified_ns) == (size_bytes, modified_ns)


class ScanJournal:
    """A file to which finished tracks are appended, in an existing folder. Use it as a context."""

    def __init__(self, path: Path) -> None:
        # Unbuffered, so that a killed process loses no finished track.
        self._file = path.open("ab", buffering=0)
        # The last line may be torn.
        self._file.write(b"\n" if self._file.tell() else b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: TrackKey, finished: Finished) -> None:
        """Append a track."""
        line = json.dumps(key._asdict() | asdict(finished))
        self._file.write(line.encode() + b"\n")


def read_journal(path: Path) -> dict[TrackKey, Finished]:
    """Read the tracks of a journal, if there is one; lines that are torn or of another kind are ignored."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    entries = (_entry(line) for line in lines)
    return dict(entry for entry in entries if entry)


def _entry(line: bytes) -> tuple[TrackKey, Finished] | None:
    try:
        row: Mapping[str, Any] = json.loads(line)
        measurement = None if row["measurement"] is None else Measurement(**row["measurement"])
        finished = Finished(row["size_bytes"], row["modified_ns"], measurement, row["problem"])
        return TrackKey(row["root"], row["name"], row["parts"]), finished
    except (ValueError, KeyError, TypeError):
        return None
