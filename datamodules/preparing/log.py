"""What was prepared so far, a line for each job, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
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
    """Music that cannot be prepared as asked; the message says what to type."""


class LoggedTrack(NamedTuple):
    """A track that was made.

    prepared: what it is called below the folder. source_name, content_hash: as it was scanned; None and "" where an
    older version wrote the log. seconds: of all its pieces.
    """

    prepared: str
    source_name: str | None
    content_hash: str
    seconds: float


class PrepareLog:
    """The log of a folder that is prepared into; use as a context, which keeps other processes from the folder.

    manifests, roots: what was prepared into it so far, as `begin` was told; resolved paths, and roots of their rows.

    Raises PrepareError: another process works in the folder, or it was prepared in another way.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self._out = out
        self._settings = settings
        self._lines: dict[str, Mapping[str, Any]] = {}
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
        """To be called before jobs are added: the files and the folders they are of, as `manifests` and `roots`."""
        # A line that was cut off by a kill must not swallow the next one.
        self._file.write(b"\n" if self._file.tell() else b"")
        self._append({"settings": asdict(self._settings), "manifests": list(manifests), "roots": list(roots)})

    def made(self, job: Job) -> Made | None:
        """What became of the job when it was done before; None if it was not."""
        line = self._lines.get(job.identity())
        return None if line is None else _made(line)

    def files(self) -> Iterator[MadeFile]:
        """All that was ever made in this folder, whether it is still there or not."""
        for line in self._lines.values():
            made = _made(line)
            if made is not None:
                yield from made.files

    def tracks(self) -> list[LoggedTrack]:
        """Those that were ever made in this folder; of two that were called the same, the one that was made last."""
        tracks: dict[str, LoggedTrack] = {}
        for line in self._lines.values():
            tracks |= {track.prepared: track for track in _tracks(line)}
        return list(tracks.values())

    def add(self, job: Job, made: Made) -> None:
        """The job is done."""
        line = made.to_line(job)
        self._lines[line["job"]] = line
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
            except ValueError:  # cut off by a kill
                continue
            if not isinstance(line, dict):
                continue
            if "settings" in line:
                self._require_same(line["settings"])
                self.manifests |= _texts(line.get("manifests"))
                self.roots |= _texts(line.get("roots"))
            elif isinstance(line.get("job"), str):
                self._lines[line["job"]] = line

    def _require_same(self, before: Mapping[str, Any]) -> None:
        now = asdict(self._settings)
        if before == now:
            return
        changed = ", ".join(f"{key}={before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key])
        raise PrepareError(f"{str(self._out)!r} was prepared in another way ({changed}); type another --out")


def _texts(values: object) -> set[str]:
    return {value for value in values if isinstance(value, str)} if isinstance(values, list) else set()


def _made(line: Mapping[str, Any]) -> Made | None:
    try:
        return Made.from_line(line)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _tracks(line: Mapping[str, Any]) -> list[LoggedTrack]:
    made = _made(line)
    if made is None:
        return []
    sources = line.get("sources")
    known = sources if isinstance(sources, dict) else {}
    seconds: dict[str, float] = {}
    try:
        for name, row in made.rows:
            seconds[name] = seconds.get(name, 0.0) + row["duration_seconds"]
        return [LoggedTrack(name, *_source(known.get(name)), total) for name, total in seconds.items()]
    except (KeyError, TypeError):  # none of ours
        return []


def _source(value: object) -> tuple[str | None, str]:
    match value:
        case [str(name), str(content_hash)]:
            return name, content_hash
    return None, ""
