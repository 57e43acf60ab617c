"""Where shards are: a folder that is read in place, or an address from which they are fetched once per machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlparse

import pandas

from datamodules.audio.opening import AudioFileError
from datamodules.shards.cache import ShardCache
from datamodules.shards.index import INDEX_NAME, LARGEST_INDEX_BYTES, Shard, ShardIndexError, read_index
from datamodules.shards.transfer import Remote, RemoteError
from spectrostream.errors import UserError

logger = logging.getLogger(__name__)

# A shard that failed is tried again after this time.
RETRY_AFTER_SECONDS = 600.0
_TRIED_ELSEWHERE = "another process has just tried"


class ShardError(AudioFileError):
    """A shard that is missing, damaged or does not arrive; training continues without it."""


class ShardStore:
    """The shards below one address.

    Args:
        url: A folder, file://, http(s)://, s3:// or another address that fsspec knows.
        cache_folder: Of the machine, for remote shards; None is `~/.cache/spectrostream/shards`.
        cache_bytes: Largest size of this folder.
        timeout_seconds: For connecting, and for each wait for more bytes.
        retries: How often to try again, each time after a longer pause.
        endpoint_url: Of an S3-compatible server; None is AWS_ENDPOINT_URL, or Amazon's.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        cache_folder: str | Path | None = None,
        cache_bytes: int = 64 * 10**9,
        timeout_seconds: float = 30.0,
        retries: int = 3,
        endpoint_url: str | None = None,
    ) -> None:
        self.url = str(url)
        self._folder = _local_folder(self.url)
        self._cache = ShardCache(_cache_folder(cache_folder), cache_bytes)
        self._remote = Remote(self.url, timeout_seconds=timeout_seconds, retries=retries, endpoint_url=endpoint_url)
        # By name: when each shard failed, and why.
        self._failed: dict[str, tuple[float, str]] = {}
        # When the server last sent the index; earlier failures say nothing about now.
        self._index_time = 0.0

    @property
    def is_local(self) -> bool:
        """True if shards are read in place."""
        return self._folder is not None

    def read_index(self) -> pandas.DataFrame:
        """Read and check the index.

        Raises:
            ShardIndexError: Missing, damaged, or the server fails again and again.
        """
        where = f"data.shards={self.url!r}: its {INDEX_NAME}"
        try:
            if self._folder is None:
                content = self._remote.content(INDEX_NAME, LARGEST_INDEX_BYTES)
            else:
                content = (self._folder / INDEX_NAME).read_bytes()
        except (OSError, RemoteError) as error:
            raise ShardIndexError(
                f"{where} cannot be read: {_reason(error)}; type data.shards=FOLDER with what "
                "`spectrostream data prepare --format shards` wrote, or with its address"
            ) from error
        except UserError as error:  # fsspec does not know this kind of address
            raise ShardIndexError(f"data.shards={error}") from error
        table = read_index(content, where)
        self._index_time = time.time()
        return table

    def require_cache_for(self, shards: Sequence[Shard]) -> None:
        """Check the machine's cache.

        Raises:
            UserError: It cannot be written to, or is smaller than a shard.
        """
        if self.is_local:
            return
        folder = str(self._cache.folder)
        try:
            self._cache.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(_unusable(folder, error.strerror or str(error))) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(_unusable(folder, "no files may be written there"))
        self._require_room(max(shards, key=lambda shard: shard.size_bytes))

    def hold(self, shard: Shard) -> IO[bytes]:
        """Open a shard for reading; it is not removed until it is closed.

        Raises:
            ShardError: Missing, of another size or hash than in the index, or too slow. No process of the machine tries
                it again for a while.
        """
        when, reason = self._failed.get(shard.name, (0.0, ""))
        if reason and time.monotonic() - when < RETRY_AFTER_SECONDS:
            raise self._error(shard, reason)
        try:
            file = self._held(shard)
        except (RemoteError, OSError) as error:
            raise self.given_up(shard, _reason(error)) from error
        self._failed.pop(shard.name, None)
        return file

    def given_up(self, shard: Shard, reason: str) -> ShardError:
        """Return the error of a shard that cannot be read; it is not tried again for a while."""
        if not reason.startswith(_TRIED_ELSEWHERE):
            logger.warning("The shard %s is left out for a while: %s", shard.name, reason)
        self._failed[shard.name] = (time.monotonic(), reason)
        return self._error(shard, reason)

    def has_failed(self, shard: Shard) -> bool:
        """Return whether this process could not read the shard the last time."""
        return shard.name in self._failed

    def _held(self, shard: Shard) -> IO[bytes]:
        if self._folder is not None:
            return _local(self._folder / shard.name, shard)
        self._require_room(shard)
        return self._cache.hold(shard, lambda file: self._download(shard, file))

    def _require_room(self, shard: Shard) -> None:
        if shard.size_bytes > self._cache.capacity_bytes:
            raise UserError(
                f"The shard {shard.name} has {shard.size_bytes} bytes, the cache of shards may have "
                f"{self._cache.capacity_bytes}; type data.shard_cache_gigabytes=NUMBER with some times as many"
            )

    def _download(self, shard: Shard, file: IO[bytes]) -> None:
        if self._cache.has_failed(shard, max(self._index_time, time.time() - RETRY_AFTER_SECONDS)):
            raise RemoteError(f"{_TRIED_ELSEWHERE} and could not fetch it")
        try:
            self._remote.download(shard.name, file, shard.size_bytes, shard.sha256)
        except RemoteError:
            self._cache.note_failure(shard)
            raise

    def _error(self, shard: Shard, reason: str) -> ShardError:
        return ShardError(f"the shard {shard.name!r} of {self.url!r} {reason}", reason)


def _reason(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


def _unusable(folder: str, reason: str) -> str:
    remedy = "type data.shard_cache=FOLDER on a disk of this machine"
    return f"data.shard_cache={folder!r} cannot keep shards ({reason}); {remedy}"


def _local(path: Path, shard: Shard) -> IO[bytes]:
    file = path.open("rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    if size != shard.size_bytes:
        file.close()
        raise OSError(f"has {size} bytes, {shard.size_bytes} in the index; run the same `data prepare` again")
    return file


def _local_folder(url: str) -> Path | None:
    if "://" not in url:
        return Path(url).expanduser()
    parts = urlparse(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _cache_folder(given: str | Path | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectrostream" / "shards"
