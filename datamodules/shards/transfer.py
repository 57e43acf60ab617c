"""Fetches files from HTTP(S), S3 and everything else that fsspec knows, with limits on time, speed and size."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from spectrostream.errors import UserError

T = TypeVar("T")

_BLOCK_BYTES = 2**20
_S3_BLOCK_BYTES = 16 * 2**20
# After the time-out, a slower server counts as stalled.
_SLOWEST_BYTES_PER_SECOND = 64_000
_LONGEST_PAUSE_SECONDS = 30.0


class RemoteError(UserError):
    """A file cannot be fetched, after all retries."""


class Remote:
    """Files below an address.

    Args:
        url: Of the folder: http://, https://, s3://bucket/folder, or another address that fsspec knows.
        timeout_seconds: For connecting, and for each wait for more bytes.
        retries: How often to try again, each time after a longer pause.
        endpoint_url: Of an S3-compatible server; None is AWS_ENDPOINT_URL, or Amazon's.

    Raises:
        UserError: The package for this kind of address is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 30.0,
        retries: int = 3,
        endpoint_url: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout_seconds
        self._retries = retries
        self._endpoint_url = endpoint_url
        self._filesystem: Any = None
        # Whether the last try had no response in time.
        self._is_silent = False
        self._protocol = url.split("://")[0]

    def __getstate__(self) -> dict[str, Any]:
        # A connection belongs to its process.
        return {**self.__dict__, "_filesystem": None}

    def content(self, name: str, largest: int) -> bytes:
        """Fetch a small file.

        Raises:
            RemoteError: It is missing, too large, or all tries failed.
        """
        return self._with_retries(name, lambda: b"".join(self._blocks(name, largest)))

    def download(self, name: str, file: IO[bytes], size: int, sha256: str) -> None:
        """Fetch a file of known size and hash into an open one.

        Raises:
            RemoteError: All tries failed.
        """

        def attempt() -> None:
            file.seek(0)
            digest = hashlib.sha256()
            received = 0
            for block in self._blocks(name, size):
                digest.update(block)
                file.write(block)
                received += len(block)
            if received != size:
                raise OSError(f"ends after {received} of {size} bytes")
            if digest.hexdigest() != sha256:
                raise OSError("is damaged: its SHA-256 is not that of the index")

        self._with_retries(name, attempt)

    def _with_retries(self, name: str, attempt: Callable[[], T]) -> T:
        # If a server did not respond in any try, each further file is tried once until it responds. With hundreds of
        # files, every try would take the whole time-out.
        retries = 0 if self._is_silent else self._retries
        for tries in range(retries + 1):
            begin = time.monotonic()
            try:
                content = attempt()
            except UserError:
                raise
            except Exception as error:  # fsspec's libraries raise errors of many kinds
                last = error
                self._is_silent = time.monotonic() - begin >= self._timeout
                if isinstance(error, FileNotFoundError | PermissionError) or tries == retries:
                    break
                # A random pause, so that the processes of a cluster do not all try again at the same time.
                time.sleep(min(0.25 * 2**tries * (1 + random.random()), _LONGEST_PAUSE_SECONDS))
            else:
                self._is_silent = False
                return content
        raise RemoteError(f"{self.url}/{name} cannot be fetched: {_reason(last)}") from last

    def _blocks(self, name: str, largest: int) -> Iterator[bytes]:
        begin, received = time.monotonic(), 0
        with self._open(f"{self.url}/{name}") as source:
            while block := source.read(_BLOCK_BYTES):
                received += len(block)
                if received > largest:
                    raise OSError(f"has more than the {largest} bytes that are allowed")
                seconds = time.monotonic() - begin
                if seconds > self._timeout + received / _SLOWEST_BYTES_PER_SECOND:
                    raise TimeoutError(f"came at {received / seconds / 1000:.1f} kB/s")
                yield block

    def _open(self, url: str) -> Any:
        filesystem = self._connected()
        if self._protocol in ("http", "https"):
            # One request, no random access. The size is not used, but without it fsspec would ask for it first, and
            # would report any failure of that, such as a server that is down for a second, as a missing file.
            return filesystem.open(url, "rb", block_size=0, size=1)
        return filesystem.open(url, "rb", block_size=_S3_BLOCK_BYTES, cache_type="readahead")

    def _connected(self) -> Any:
        if self._filesystem is None:
            try:
                import fsspec

                self._filesystem = fsspec.filesystem(self._protocol, **self._options())
            except ImportError as error:
                raise UserError(
                    f"{self.url!r}: for {self._protocol}:// type pip install 'spectrostream[remote]' ({error})"
                ) from error
            except ValueError as error:
                raise UserError(
                    f"{self.url!r}: {self._protocol}:// is not known; allowed are a folder, http://, https://, s3:// "
                    "and what else fsspec knows after pip install 'spectrostream[remote]'"
                ) from error
        return self._filesystem

    def _options(self) -> dict[str, Any]:
        # A new instance, with its own time-outs and no memory of earlier listings.
        options: dict[str, Any] = {"skip_instance_cache": True}
        if self._protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout)
            options |= {"use_listings_cache": False, "client_kwargs": {"timeout": timeout}}
        elif self._protocol in ("s3", "s3a"):
            limits = {"connect_timeout": self._timeout, "read_timeout": self._timeout, "retries": {"max_attempts": 1}}
            options |= {"use_listings_cache": False, "endpoint_url": self._endpoint_url, "config_kwargs": limits}
        return options


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    if isinstance(error, TimeoutError):
        return f"it takes too long {error}".rstrip()
    return f"{error}" or type(error).__name__
