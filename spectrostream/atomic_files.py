"""Files that appear whole or not at all, and locks that end with their process.

A file is written beside its target and takes the target's name when it is complete. What killed processes left is
removed by the next writer of the same target.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

_SUFFIX = ".unfinished"
UNFINISHED = rf"\.[0-9a-f]{{8}}\{_SUFFIX}"
"""Pattern of what a file's name has while it is written, behind a dot and the target's name."""


def open_beside(target: Path) -> BinaryIO:
    """Opens a new hidden file in the target's folder for writing; its `name` is its path.

    End it with `take_name` or `discard`. Removes the files that processes which ended without cleaning up left for the
    same target, and none that is still open somewhere.

    Raises:
        OSError: the file cannot be made.
    """
    # Beside the target, because a rename is atomic only within one filesystem.
    _remove_leftovers(target)
    file = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}{_SUFFIX}").open("xb")
    lock(file, wait=False)
    return file


def take_name(file: BinaryIO, target: Path) -> None:
    """Syncs and closes a file of `open_beside`, which takes the target's name.

    Raises:
        OSError: no room, or the target is a folder.
    """
    sync(file)
    if sys.platform == "win32":  # an open file cannot be renamed there
        file.close()
    # Elsewhere it stays locked until it has its name, so that nobody takes it for a leftover.
    Path(file.name).replace(target)
    file.close()


def discard(file: BinaryIO) -> None:
    """Closes a file of `open_beside` and removes it, unless it has taken its target's name."""
    with suppress(OSError):  # of what is not yet written, on a full disk; nothing of it is kept
        file.close()
    Path(file.name).unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Gives a file to write, which takes the target's name at the end; after an error the target is as it was.

    Raises:
        OSError: no permission, no room.
    """
    file = open_beside(target)
    try:
        yield file
        take_name(file, target)
    finally:
        discard(file)


def write_whole(target: Path, content: bytes | str) -> None:
    """Writes a file that appears whole or not at all; text is UTF-8. Makes the folders above it.

    Raises:
        OSError: no permission, no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_whole(source: IO[bytes], target: Path) -> None:
    """As `write_whole`, from an open file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        shutil.copyfileobj(source, file, 2**20)


def sync(file: IO[bytes]) -> None:
    """Returns when all that was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def lock(file: IO[bytes], *, shared: bool = False, wait: bool = True) -> bool:
    """Locks a file until it is closed or its process ends, however it ends.

    Args:
        file: open.
        shared: others may hold it too, if they share it.
        wait: until others let go of it.

    Returns:
        False if somebody else holds it. True also on a filesystem without locks.
    """
    try:
        _flock(file, shared=shared, wait=wait)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _prefix(target: Path) -> str:
    # Shortened, because a name may have 255 bytes, and a character up to 4.
    return f".{target.name[:50]}."


def _remove_leftovers(target: Path) -> None:
    with suppress(OSError), os.scandir(target.parent) as entries:  # a folder may be writable but not readable
        for entry in entries:
            if entry.name.startswith(_prefix(target)) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    _remove_unless_open(Path(entry.path))


if sys.platform == "win32":

    def _flock(file: IO[bytes], *, shared: bool, wait: bool) -> None:
        """Nothing is locked there, but an open file cannot be removed either."""

    def _remove_unless_open(path: Path) -> None:
        path.unlink()

else:
    import fcntl

    def _flock(file: IO[bytes], *, shared: bool, wait: bool) -> None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))

    def _remove_unless_open(path: Path) -> None:
        with path.open("r+b") as file:
            # Not `lock`: where there are no locks, nothing is removed.
            _flock(file, shared=False, wait=False)
            path.unlink()
