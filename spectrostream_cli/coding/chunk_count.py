"""Counts the chunks of a coded file without reading their payloads."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from spectrostream.bitstream.format import CHECKSUM, RECORD_BYTES, BitstreamError, End, parse_record
from spectrostream.bitstream.reader import BitstreamReader


class CountedChunks(NamedTuple):
    """What the records of a coded file say."""

    chunks: int
    coded: int
    """Chunks that are entropy-coded."""
    frames: int
    """Frames in all chunks."""
    has_tables: bool
    """True if the file has tables for entropy coding."""


def counted_chunks(path: Path) -> CountedChunks:
    """Count the chunks from their records; payloads and checksums are not read.

    Raises:
        BitstreamError: The file is not a coded file, or is truncated.
    """
    chunks = coded = frames = 0
    with path.open("rb") as file:
        reader = BitstreamReader(file)  # leaves the file after the frequency tables
        has_tables = reader.tables is not None
        while True:
            offset = file.tell()
            content = file.read(RECORD_BYTES)
            if len(content) < RECORD_BYTES:
                raise BitstreamError(f"byte {offset}: the data end here; expected a chunk or the end record")
            record = parse_record(content, offset, reader.header, has_tables=has_tables)
            if isinstance(record, End):
                return CountedChunks(chunks, coded, frames, has_tables)
            file.seek(record.payload_bytes + CHECKSUM.size, 1)
            chunks, coded, frames = chunks + 1, coded + record.is_coded, frames + record.frames
