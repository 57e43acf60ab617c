"""A file beside its target, until it is complete and takes the target's name; what killed processes left is removed."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".unfinished"


def open_beside(target: Path) -> BinaryIO:
    """A new hidden file in the target's folder, open for writing; its `name` is its path.

    Removes the files that processes which ended without cleaning up left for the same target, and none that is still
    open somewhere. Raises OSError if the file cannot be made.
    """
    # Beside the target, because a rename is atomic only within one filesystem.
    _remove_leftovers(target)
    file = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}{_SUFFIX}").open("xb")
    with suppress(OSError):  # a filesystem without locks, where nothing is removed either
        _lock(file)
    return file


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the target's name at the end; after an error the target is as it was.

    Raises OSError: no permission, no room.
    """
    with open_beside(target) as file:
        beside = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    # Shortened, because a name may have 255 bytes, and a character up to 4.
    return f".{target.name[:50]}."


def _remove_leftovers(target: Path) -> None:
    with suppress(OSError), os.scandir(target.parent) as entries:  # a folder may be writable but not readable
        for entry in entries:
            if entry.name.startswith(_prefix(target)) and entry.name.endswith(_SUFFIX):
                _remove_unless_open(Path(entry.path))


if sys.platform == "win32":

    def _lock(file: BinaryIO) -> None:
        """Nothing is to be done: an open file cannot be removed there."""

    def _remove_unless_open(path: Path) -> None:
        with suppress(OSError):
            path.unlink()

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        """Until the file is closed or its process ends, however it ends. OSError if somebody else holds it."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _remove_unless_open(path: Path) -> None:
        with suppress(OSError), path.open("r+b") as file:
            _lock(file)
            path.unlink()
