"""Files that bring the process down that reads them: which one each process is at, and which are read no more.

No exception comes out of a decoder that crashes, so a process notes each file before it reads it, in memory that the
one that started it shares.
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
    """Shared by so many processes: the file that each is reading."""

    def __init__(self, context: BaseContext, processes: int) -> None:
        self._memory = context.RawArray("c", processes * _MARK_BYTES)

    def put(self, number: int, name: bytes) -> None:
        """What process `number` reads now; nothing is b""."""
        text = name[: _MARK_BYTES - 1] + b"\0"
        start = number * _MARK_BYTES
        self._memory[start : start + len(text)] = text

    def path_of(self, number: int) -> Path | None:
        """What process `number` was reading when it was last heard of; None if nothing."""
        name = self._memory[number * _MARK_BYTES : (number + 1) * _MARK_BYTES].split(b"\0", 1)[0]
        return Path(os.fsdecode(name)) if name else None


# Of this process: where it notes what it reads, what that is, and the reason of each file that is not to be read.
_own: tuple[Marks, int] | None = None
_reading: Path | None = None
_refused: dict[Path, str] = {}


def note_in(marks: Marks, number: int) -> None:
    """From now on this process notes in mark `number` what it reads."""
    global _own
    _own = (marks, number)


def refuse(reasons: Mapping[Path, str]) -> None:
    """From now on these files are unreadable in this process, for the reasons given."""
    _refused.update(reasons)


def refused() -> dict[Path, str]:
    """The files that this process refuses to read, and why."""
    return dict(_refused)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around all that a decoder does with a file. Raises AudioFileError where the file is refused."""
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
    except UnicodeEncodeError:  # no file can be called so, and opening it says that
        marks.put(number, b"")
    try:
        yield
    finally:
        # A read that was given up may end while another is at work.
        if _reading is path:
            marks.put(number, b"")
