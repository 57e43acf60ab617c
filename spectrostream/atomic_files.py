"""Files that appear complete or not at all, and locks that end with their process.

A file is written beside its target and takes the target's name when it is complete. If a process is killed before, the
next writer of the same target removes its unfinished file.
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
"""Pattern of the end of an unfinished file's name. A dot and the target's name come before it."""


def open_beside(target: Path) -> BinaryIO:
    """Open a new hidden file in the target's folder for writing; its `name` is its path.

    Finish it with `take_name` or `discard`. Unfinished files of the same target are removed, if no process has them
    open.

    Raises:
        OSError: The file cannot be created.
    """
    # In the same folder, because a rename is atomic only within one filesystem.
    _remove_leftovers(target)
    file = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}{_SUFFIX}").open("xb")
    lock(file, wait=False)
    return file


def take_name(file: BinaryIO, target: Path) -> None:
    """Sync and close a file from `open_beside`, and give it the target's name.

    Raises:
        OSError: The disk is full, or the target is a folder.
    """
    sync(file)
    if sys.platform == "win32":  # which cannot rename an open file
        file.close()
    # Elsewhere the file stays locked until it has its name, so that no other process removes it.
    Path(file.name).replace(target)
    file.close()


def discard(file: BinaryIO) -> None:
    """Close a file from `open_beside`, and remove it unless it has its target's name."""
    with suppress(OSError):  # on a full disk the last bytes cannot be written, but they are not needed
        file.close()
    Path(file.name).unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the target's name at the end; an error leaves the target unchanged.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    file = open_beside(target)
    try:
        yield file
        take_name(file, target)
    finally:
        discard(file)


def write_whole(target: Path, content: bytes | str) -> None:
    """Write a file that appears complete or not at all; text is UTF-8. Create the folders above it.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def copy_whole(source: IO[bytes], target: Path) -> None:
    """Write the content of an open file; see `write_whole`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as file:
        shutil.copyfileobj(source, file, 2**20)


def sync(file: IO[bytes]) -> None:
    """Wait until everything that was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def lock(file: IO[bytes], *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed or its process ends, even if the process is killed.

    Args:
        file: The open file.
        shared: Let others hold a shared lock at the same time.
        wait: Wait until others release the lock.

    Returns:
        False if somebody else holds the lock. True also on a filesystem without locks.
    """
    try:
        _flock(file, shared=shared, wait=wait)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _prefix(target: Path) -> str:
    # Shortened, because a name has at most 255 bytes, and a character up to 4.
    return f".{target.name[:50]}."


def _remove_leftovers(target: Path) -> None:
    with suppress(OSError), os.scandir(target.parent) as entries:  # a folder may be writable but not readable
        for entry in entries:
            if entry.name.startswith(_prefix(target)) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    _remove_unless_open(Path(entry.path))


if sys.platform == "win32":

    def _flock(file: IO[bytes], *, shared: bool, wait: bool) -> None:
        """Do nothing, because Windows cannot remove an open file anyway."""

    def _remove_unless_open(path: Path) -> None:
        path.unlink()

else:
    import fcntl

    def _flock(file: IO[bytes], *, shared: bool, wait: bool) -> None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))

    def _remove_unless_open(path: Path) -> None:
        with path.open("r+b") as file:
            # Not `lock`, which returns True on a filesystem without locks: there, nothing may be removed.
            _flock(file, shared=False, wait=False)
            path.unlink()
