"""Where shards lie: a folder that is read in place, or an address from which they are fetched once per machine."""

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

# A shard that could not be had is asked for again after this time.
RETRY_AFTER_SECONDS = 600.0


class ShardError(AudioFileError):
    """A shard that is missing, damaged or does not come; training goes on without it."""


class ShardStore:
    """The shards below one address.

    Args:
        url: a folder, file://, http(s)://, s3:// or what else fsspec knows.
        cache_folder: of the machine, for remote shards; None takes `~/.cache/spectrostream/shards`.
        cache_bytes: how much of them is kept.
        timeout_seconds: for connecting, and for each wait for more bytes.
        retries: how often to try again, each time after a longer pause.
        endpoint_url: of an S3-compatible server; None takes AWS_ENDPOINT_URL, or Amazon's.
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
        # When each shard failed, and with what.
        self._failed: dict[str, tuple[float, str]] = {}
        # When the server last gave the index: what failed before says nothing about now.
        self._index_time = 0.0

    @property
    def is_local(self) -> bool:
        """Whether shards are read where they lie."""
        return self._folder is not None

    def read_index(self) -> pandas.DataFrame:
        """The index, checked. Raises ShardIndexError: not there, damaged, or the server fails again and again."""
        try:
            content = self._index_content()
        except (OSError, RemoteError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            raise ShardIndexError(
                f"data.shards={self.url!r}: its {INDEX_NAME} cannot be read: {reason}; type data.shards=FOLDER with "
                "what `spectrostream data prepare --format shards` wrote, or with its address"
            ) from error
        except UserError as error:  # no engine for this kind of address
            raise ShardIndexError(f"data.shards={error}") from error
        table = read_index(content, f"data.shards={self.url!r}: its {INDEX_NAME}")
        self._index_time = time.time()
        return table

    def require_cache_for(self, shards: Sequence[Shard]) -> None:
        """Raises UserError where the cache of the machine cannot be written to, or is smaller than a shard."""
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
        """The shard, open for reading and safe from removal until it is closed.

        Raises ShardError: missing, of another size or hash than in the index, or not to be had in time. It is then not
        tried again for a while, by no process of the machine.
        """
        when, reason = self._failed.get(shard.name, (0.0, ""))
        if reason and time.monotonic() - when < RETRY_AFTER_SECONDS:
            raise self._error(shard, reason)
        try:
            file = self._held(shard)
        except (RemoteError, OSError) as error:
            reason = str((error.strerror or error) if isinstance(error, OSError) else error)
            if not reason.startswith(_TRIED_ELSEWHERE):
                logger.warning("The shard %s is left out for a while: %s", shard.name, reason)
            self._failed[shard.name] = (time.monotonic(), reason)
            raise self._error(shard, reason) from error
        self._failed.pop(shard.name, None)
        return file

    def given_up(self, shard: Shard, reason: str) -> ShardError:
        """The error of a shard that is held and cannot be read; it is not tried again for a while."""
        logger.warning("The shard %s is left out for a while: %s", shard.name, reason)
        self._failed[shard.name] = (time.monotonic(), reason)
        return self._error(shard, reason)

    def has_failed(self, shard: Shard) -> bool:
        """Whether it was lost the last time it was needed in this process."""
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
        # Asked only when it is not in the cache.
        if self._cache.has_failed(shard, max(self._index_time, time.time() - RETRY_AFTER_SECONDS)):
            raise RemoteError(f"{_TRIED_ELSEWHERE} and could not fetch it")
        try:
            self._remote.download(shard.name, file, shard.size_bytes, shard.sha256)
        except RemoteError:
            self._cache.note_failure(shard)
            raise

    def _index_content(self) -> bytes:
        if self._folder is None:
            return self._remote.content(INDEX_NAME, LARGEST_INDEX_BYTES)
        return (self._folder / INDEX_NAME).read_bytes()

    def _error(self, shard: Shard, reason: str) -> ShardError:
        message = f"the shard {shard.name!r} of {self.url!r} {reason}"
        return ShardError(message, reason)


_TRIED_ELSEWHERE = "another process has just tried"


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
