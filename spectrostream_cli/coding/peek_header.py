"""Reads the header of a piped coded stream and keeps its bytes, because a pipe cannot be read twice."""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from spectrostream.bitstream.format import (
    HEADER_BYTES,
    MAGIC,
    OPENING,
    BitstreamError,
    StreamHeader,
    parse_header_fields,
)


def peeked_header(stream: BinaryIO) -> tuple[StreamHeader, BinaryIO]:
    """Read the header without checking its checksums.

    Returns:
        The header, and a stream that begins with the first byte again.

    Raises:
        BitstreamError: This is not a coded stream.
    """
    start = stream.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES or not start.startswith(MAGIC):
        raise BitstreamError(f"byte 0: the data begin with {start[:4]!r}; expected {MAGIC!r}: not a SpectroStream file")
    header, _ = parse_header_fields(start[OPENING.size :])
    return header, cast(BinaryIO, _Replayed(start, stream))


class _Replayed(io.RawIOBase):
    """The bytes that were already read, then the rest of the stream; never reads more than requested."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read the next bytes into `buffer`; return their number, 0 at the end."""
        content = self._start or self._stream.read(len(buffer))
        part = content[: len(buffer)]
        self._start = content[len(part) :]
        buffer[: len(part)] = part
        return len(part)
