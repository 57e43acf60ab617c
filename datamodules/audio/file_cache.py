"""What a process has found out about files, so that it need not be found out at each read."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
_MOST_FILES = 30_000


class FileMemory(Generic[T]):
    """One value for each of the files that were asked for last; 6 MB when it is full of numbers.

    A file that has changed in size or time is another file.
    """

    def __init__(self, most_files: int = _MOST_FILES) -> None:
        self._most_files = most_files
        # By the hash of name, size and time, for long names would be most of the memory. It has 64 bits: that any two
        # of 30,000 files have the same one is less likely than 1 in 10^10.
        self._values: OrderedDict[int, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def value(self, path: Path, status: os.stat_result, find_out: Callable[[], T]) -> T:
        """What is known of the file with this status, else what `find_out` says. Several threads may ask."""
        identity = hash((str(path), status.st_size, status.st_mtime_ns))
        try:
            value = self._values[identity]
        except KeyError:
            value = find_out()
        # Also puts back what another thread has just pushed out.
        self._values[identity] = value
        self._values.move_to_end(identity)
        if len(self._values) > self._most_files:
            self._values.popitem(last=False)
        return value
