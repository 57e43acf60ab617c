"""The log of a prepared folder, one line of JSON for each job, so that a killed run can resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from datamodules.preparing.jobs import Job, Made, MadeFile, Settings
from spectrostream.atomic_files import lock
from spectrostream.errors import UserError

_NAME = "prepared.jsonl"
_LOCK = ".prepare.lock"


class PrepareError(UserError):
    """Music that cannot be prepared in this way; the message says what to type."""


class LoggedTrack(NamedTuple):
    """A track in the log.

    Attributes:
        prepared: Its name below the folder.
        source_name: Its name at the scan; None in the log of an older version.
        content_hash: The hash of its samples at the scan; "" if unknown.
        seconds: Length of all its pieces.
    """

    prepared: str
    source_name: str | None
    content_hash: str
    seconds: float


class PrepareLog:
    """The log of an output folder. Use it as a context, which keeps other processes out of the folder.

    Attributes:
        manifests: Resolved paths of the manifests that were prepared into the folder.
        roots: Folders of their music.

    Raises:
        PrepareError: Another process works in the folder, or it was prepared with other settings.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self._out = out
        self._settings = settings
        # Identity of a job -> its result, and the sources of its tracks.
        self._done: dict[str, tuple[Made, Mapping[str, Any]]] = {}
        self.manifests: set[str] = set()
        self.roots: set[str] = set()

    def __enter__(self) -> Self:
        self._out.mkdir(parents=True, exist_ok=True)
        self._lock = (self._out / _LOCK).open("ab")
        if not lock(self._lock, wait=False):
            self._lock.close()
            raise PrepareError(f"Another process prepares into {str(self._out)!r}; wait for it or type another --out")
        try:
            self._read()
            self._file = (self._out / _NAME).open("ab")
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.close()

    def begin(self, manifests: Sequence[str], roots: Sequence[str]) -> None:
        """Log the manifests and the folders of the jobs that follow."""
        # The last line may be torn.
        self._file.write(b"\n" if self._file.tell() else b"")
        self._append({"settings": asdict(self._settings), "manifests": list(manifests), "roots": list(roots)})

    def made(self, job: Job) -> Made | None:
        """Return the logged result of the job; None if there is none."""
        made, _ = self._done.get(job.identity(), (None, None))
        return made

    def files(self) -> Iterator[MadeFile]:
        """Iterate over all files that were made in this folder, also those that were removed since."""
        for made, _ in self._done.values():
            yield from made.files

    def tracks(self) -> list[LoggedTrack]:
        """Return all tracks that were made in this folder; the last one of each name."""
        tracks = (track for made, sources in self._done.values() for track in _tracks(made, sources))
        return list({track.prepared: track for track in tracks}.values())

    def add(self, job: Job, made: Made) -> None:
        """Log a finished job."""
        line = made.to_line(job)
        self._done[line["job"]] = made, line["sources"]
        self._append(line)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _read(self) -> None:
        try:
            content = (self._out / _NAME).read_bytes()
        except FileNotFoundError:
            return
        for text in content.splitlines():
            try:
                line = json.loads(text)
                if "settings" in line:
                    self._require_same(line["settings"])
                    self.manifests |= _texts(line.get("manifests"))
                    self.roots |= _texts(line.get("roots"))
                else:
                    sources = line.get("sources")
                    self._done[line["job"]] = Made.from_line(line), sources if isinstance(sources, dict) else {}
            except (ValueError, KeyError, TypeError, AttributeError):  # torn, or of another kind
                continue

    def _require_same(self, before: Mapping[str, Any]) -> None:
        now = asdict(self._settings)
        if before == now:
            return
        changed = ", ".join(f"{key}={before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key])
        raise PrepareError(f"{str(self._out)!r} was prepared in another way ({changed}); type another --out")


def _texts(values: object) -> set[str]:
    return {value for value in values if isinstance(value, str)} if isinstance(values, list) else set()


def _tracks(made: Made, sources: Mapping[str, Any]) -> list[LoggedTrack]:
    seconds: Counter[str] = Counter()
    try:
        for name, row in made.rows:
            seconds[name] += row["duration_seconds"]
    except (KeyError, TypeError):  # a line of another kind
        return []
    return [LoggedTrack(name, *_source(sources.get(name)), total) for name, total in seconds.items()]


def _source(value: object) -> tuple[str | None, str]:
    match value:
        case [str(name), str(content_hash)]:
            return name, content_hash
    return None, ""
