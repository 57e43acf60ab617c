"""What a scan has finished so far, on disk: one line of JSON for each track, so that a killed scan goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from datamodules.scanning.measuring import VERSION, Measurement


class TrackKey(NamedTuple):
    """Which files a track is made of, as `manifest.table_name` writes them."""

    root: str
    name: str
    parts: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The outcome of one track; the size and the time of change are those from before it was read.

    problem: why it cannot be used, then there is no measurement; else empty.
    """

    size_bytes: int | None
    modified_ns: int | None
    measurement: Measurement | None
    problem: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether more than headers was read, as far as the file allows."""
        return self.measurement is None or bool(self.measurement.content_hash)

    @property
    def is_current(self) -> bool:
        """Whether the same would be measured today, as far as the version of the code tells."""
        return self.measurement is None or self.measurement.measurement_version == VERSION

    def is_about(self, size_bytes: int, modified_ns: int) -> bool:
        """Whether the files have not changed since."""
        return (self.size_bytes, self.modified_ns) == (size_bytes, modified_ns)


class ScanJournal:
    """Finished tracks, appended one by one; what is added outlives this process. Use as a context.

    path: made if it is not there; its folder must be.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: a killed process must not take finished minutes with it.
        self._file = path.open("ab", buffering=0)
        if _ends_within_a_line(path):
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: TrackKey, finished: Finished) -> None:
        """One more track."""
        line = json.dumps(key._asdict() | asdict(finished))
        self._file.write(line.encode() + b"\n")


def read_journal(path: Path) -> dict[TrackKey, Finished]:
    """What a journal says; nothing if there is none. A line that is torn or means something else is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    entries = (_entry(line) for line in lines)
    return dict(entry for entry in entries if entry)


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _entry(line: bytes) -> tuple[TrackKey, Finished] | None:
    try:
        row: Mapping[str, Any] = json.loads(line)
        measurement = row["measurement"]
        key = TrackKey(row["root"], row["name"], row["parts"])
        return key, Finished(
            row["size_bytes"],
            row["modified_ns"],
            None if measurement is None else Measurement(**measurement),
            row["problem"],
        )
    except (ValueError, KeyError, TypeError):
        return None
