"""Files that crash the process that reads them: which file each process reads, and which are no longer read.

A decoder that crashes raises no exception. So each process notes a file before it reads it, in memory that it shares
with its parent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path

from datamodules.audio.opening import AudioFileError

# No system opens a longer name.
_MARK_BYTES = 4096


class Marks:
    """Shared memory that holds the file each process is reading."""

    def __init__(self, context: BaseContext, processes: int) -> None:
        self._memory = context.RawArray("c", processes * _MARK_BYTES)

    def put(self, number: int, name: bytes) -> None:
        """Note the file that process `number` reads now; b"" is none."""
        text = name[: _MARK_BYTES - 1] + b"\0"
        start = number * _MARK_BYTES
        self._memory[start : start + len(text)] = text

    def path_of(self, number: int) -> Path | None:
        """Return the file that process `number` noted last; None if it was reading none."""
        name = self._memory[number * _MARK_BYTES : (number + 1) * _MARK_BYTES].split(b"\0", 1)[0]
        return Path(os.fsdecode(name)) if name else None


# Of this process: where it notes what it reads, the file that it reads, and why other files are not read.
_own: tuple[Marks, int] | None = None
_reading: Path | None = None
_refused: dict[Path, str] = {}


def note_in(marks: Marks, number: int) -> None:
    """Let this process note what it reads, as number `number`."""
    global _own
    _own = (marks, number)


def refuse(reasons: Mapping[Path, str]) -> None:
    """Make these files unreadable in this process, for the given reasons."""
    _refused.update(reasons)


def refused() -> dict[Path, str]:
    """Return the files that this process refuses to read, and why."""
    return dict(_refused)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Enclose all that a decoder does with a file; AudioFileError if the file is refused."""
    global _reading
    if path in _refused:
        raise AudioFileError.of(path, _refused[path])
    if _own is None:
        yield
        return
    marks, number = _own
    _reading = path
    try:
        marks.put(number, os.fsencode(path))
    except UnicodeEncodeError:  # no file can have this name; opening it says so
        marks.put(number, b"")
    try:
        yield
    finally:
        # A read that was given up may end during the next one.
        if _reading is path:
            marks.put(number, b"")
