"""A folder of downloaded shards that all processes of a machine share; the least recently used ones are removed.

The name of a shard there is its SHA-256. One process downloads it under another name and renames it; the others wait.
Locks end with their processes, so nobody waits for a killed one. Use a local disk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from datamodules.shards.index import Shard
from spectrostream.atomic_files import discard, lock, open_beside, take_name

logger = logging.getLogger(__name__)

Download = Callable[[IO[bytes]], None]


class ShardCache:
    """Shards on this disk.

    Args:
        folder: Created if missing.
        capacity_bytes: Exceeded only if shards that are in use at the same time need more.
    """

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        self.folder = folder
        self.capacity_bytes = capacity_bytes
        self._is_warned = False

    def hold(self, shard: Shard, download: Download) -> IO[bytes]:
        """Open a shard for reading; nobody removes it until it is closed. Errors of `download` are not caught."""
        while True:
            held = self._held(shard)
            if held is not None:
                return held
            with self._locked(shard.sha256[:2]):  # of 256 locks: another process may be downloading it
                held = self._held(shard)
                if held is not None:
                    return held
                self._fetch(shard, download)

    def note_failure(self, shard: Shard) -> None:
        """Tell the other processes not to try this shard now."""
        self._failure(shard).parent.mkdir(parents=True, exist_ok=True)
        self._failure(shard).touch()

    def has_failed(self, shard: Shard, since: float) -> bool:
        """Whether a process failed to fetch it after that time, in seconds since the epoch."""
        try:
            return self._failure(shard).stat().st_mtime > since
        except OSError:
            return False

    def _failure(self, shard: Shard) -> Path:
        return self.folder / "failed" / shard.sha256

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _held(self, shard: Shard) -> IO[bytes] | None:
        path = self._path(shard)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        lock(file, shared=True)
        status = os.fstat(file.fileno())
        if status.st_nlink and status.st_size == shard.size_bytes:
            with suppress(OSError):
                os.utime(path)  # used just now
            return file
        # It was removed between opening and locking, or is not whole.
        file.close()
        if status.st_nlink:
            path.unlink(missing_ok=True)
        return None

    def _fetch(self, shard: Shard, download: Download) -> None:
        path = self._path(shard)
        with self._locked("room"):
            self._make_room(shard)
            file = open_beside(path)
            # The other processes count its final size.
            file.truncate(shard.size_bytes)
        try:
            download(file)
            take_name(file, path)
        finally:
            discard(file)

    def _make_room(self, shard: Shard) -> None:
        files = sorted(_files(self.folder))
        excess = sum(size for _, size, _ in files) + shard.size_bytes - self.capacity_bytes
        for _, size, path in files:
            if excess <= 0:
                return
            if _removed(path):
                excess -= size
        if excess > 0 and not self._is_warned:
            self._is_warned = True
            needed = (self.capacity_bytes + excess) / 1e9
            logger.warning(
                "The cache of shards in %r grows beyond its %.1f GB, because all of it is in use; "
                "type data.shard_cache_gigabytes=%.1f",
                str(self.folder),
                self.capacity_bytes / 1e9,
                needed,
            )

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("ab") as file:
            lock(file)
            yield


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield time of last use, size and path of each shard, finished or not."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_file() and entry.name.endswith((".tar", ".unfinished")):
                    status = entry.stat()
                    yield status.st_mtime, status.st_size, Path(entry.path)


def _removed(path: Path) -> bool:
    """Remove a file; return False if it is in use."""
    try:
        with path.open("rb") as file:
            if not lock(file, wait=False):
                return False
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
