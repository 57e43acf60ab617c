"""What the start of a piped coded stream says, without taking it away: a pipe cannot be read twice."""

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
    """The header, and the whole stream from its first byte on; checksums are left to who reads it.

    BitstreamError if this is no coded stream.
    """
    start = stream.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES or not start.startswith(MAGIC):
        raise BitstreamError(f"byte 0: the data begin with {start[:4]!r}; expected {MAGIC!r}: not a SpectroStream file")
    header, _ = parse_header_fields(start[OPENING.size :])
    return header, cast(BinaryIO, _Replayed(start, stream))


class _Replayed(io.RawIOBase):
    """Bytes that were read already, then the stream they were read from; never reads more than it is asked for."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """The next bytes: some, or none at the end."""
        content = self._start or self._stream.read(len(buffer))
        part = content[: len(buffer)]
        self._start = content[len(part) :]
        buffer[: len(part)] = part
        return len(part)
