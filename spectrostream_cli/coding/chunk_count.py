"""The chunks of a coded file, counted from their openings alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from spectrostream.bitstream.format import CHECKSUM, RECORD_BYTES, BitstreamError, End, parse_record
from spectrostream.bitstream.reader import BitstreamReader


class CountedChunks(NamedTuple):
    """chunks: all. coded: those that are entropy-coded. frames: in all of them. has_tables: may be entropy-coded."""

    chunks: int
    coded: int
    frames: int
    has_tables: bool


def counted_chunks(path: Path) -> CountedChunks:
    """Goes from opening to opening without looking at what lies between. Raises BitstreamError."""
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
