"""Joins parts of an open file, and bytes between them, to one file for reading."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import accumulate
from typing import IO


class JoinedFile(io.RawIOBase):
    """A file that consists of parts, in order.

    Args:
        file: The file with the parts; it stays open.
        parts: A range is a part of the file, from byte to byte; bytes are taken as they are.
    """

    def __init__(self, file: IO[bytes], parts: Sequence[range | bytes]) -> None:
        self._file = file
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position, which may be beyond the end."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ends[-1]}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read from the part at the position, not beyond its end."""
        for part, end in zip(self._parts, self._ends, strict=True):
            if self._position < end:
                rest = part[self._position - end :]
                count = self._read_part(rest, memoryview(buffer)[: len(rest)])
                self._position += count
                return count
        return 0

    def _read_part(self, part: range | bytes, buffer: memoryview) -> int:
        if isinstance(part, range):
            self._file.seek(part.start)
            return self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        buffer[:] = part[: len(buffer)]
        return len(buffer)
