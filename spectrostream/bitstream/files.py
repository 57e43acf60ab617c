"""The coded file `.sps`: whole files in one call. `bitstream_format` documents the bytes, `bitstream_writer` and
`bitstream_reader` handle streams of unknown length, `entropy_coding` makes them smaller.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spectrostream.bitstream.entropy_coding import FrequencyTables
from spectrostream.bitstream.format import (
    CHUNK_FRAMES,
    BitstreamError,
    Header,
    StreamHeader,
)
from spectrostream.bitstream.reader import BitstreamReader, Loss
from spectrostream.bitstream.writer import BitstreamWriter, check_codes, check_tables, chunk_payload

__all__ = [
    "CHUNK_FRAMES",
    "BitstreamError",
    "BitstreamReader",
    "BitstreamWriter",
    "CodedSize",
    "FrequencyTables",
    "Header",
    "Loss",
    "StreamHeader",
    "coded_size",
    "read_bitstream",
    "read_header",
    "repack",
    "write_bitstream",
]


def write_bitstream(
    target: Path | str | BinaryIO,
    header: Header,
    codes: Tensor,
    *,
    chunk_frames: int = CHUNK_FRAMES,
    tables: FrequencyTables | None = None,
) -> None:
    """Write codes, int64 `[levels, frames]`, to a path or to a binary stream.

    chunk_frames, tables: as in `BitstreamWriter`; `FrequencyTables.fit(codes, bits)` makes tables that fit best.
    A path gets the complete file or stays as it was. BitstreamError if the codes do not fit the header; nothing is then
    written.
    """
    check_codes(header, codes)
    if codes.shape[1] != header.frames:
        raise BitstreamError(
            f"codes are {codes.dtype} {list(codes.shape)}; the header expects torch.int64 "
            f"[{header.levels}, {header.frames}]"
        )
    with BitstreamWriter(target, header, chunk_frames=chunk_frames, tables=tables) as writer:
        writer.write(codes)
        writer.close(samples=header.samples)


def read_bitstream(source: Path | str | BinaryIO, *, conceal: bool = False) -> tuple[Header, Tensor]:
    """Read a header and its codes, int64 `[levels, frames]`; BitstreamError at the first byte that is wrong or missing.

    conceal: lost frames have the code -1 in every level (see `BitstreamReader`). The end record must be there, because
    it alone knows the number of samples; read a truncated stream with `BitstreamReader`.
    A file must end after the end record; a stream is left there.
    """
    with BitstreamReader(source, conceal=conceal) as reader:
        chunks = list(reader.indices())
        header = reader.complete_header()
    # [frames, levels]
    indices = np.concatenate(chunks) if chunks else np.zeros((0, header.levels), np.int32)
    return header, torch.from_numpy(np.ascontiguousarray(indices.T, np.int64))


def read_header(source: Path | str | BinaryIO) -> Header:
    """Header of one complete file, from its first and last bytes alone; BitstreamError if it is not one.

    A stream must be seekable, hold nothing after the end record, and is left there.
    """
    with BitstreamReader(source) as reader:
        end = reader.seek_end_record()
    return Header(**vars(reader.header), samples=end.samples, frames=end.position)


def repack(
    source: Path | str | BinaryIO, target: Path | str | BinaryIO, *, levels: int, conceal: bool = False
) -> Header:
    """Keep the first `levels` levels, chunk by chunk, without decoding audio: from 16 to 8 or 4 kbps.

    Chunks and frequency tables are kept. source and target may be pipes or the same path. conceal: chunks that are
    damaged in the source are missing in the target, which is then read with `conceal=True` too.
    BitstreamError if the source has fewer levels, is truncated, or is wrong anywhere.
    """
    with BitstreamReader(source, conceal=conceal) as reader:
        have = reader.header.levels
        if not 1 <= levels <= have:
            raise BitstreamError(f"levels = {levels} cannot be kept; the source has {have}, so allowed: 1..{have}")
        kept = StreamHeader(**{**vars(reader.header), "levels": levels})
        tables = reader.tables.first(levels) if reader.tables else None
        with BitstreamWriter(target, kept, tables=tables) as writer:
            for codes in reader:
                writer.write(codes[:levels])
                writer.flush()
            header = reader.complete_header()
            writer.close(samples=header.samples)
    return Header(**vars(kept), samples=header.samples, frames=header.frames)


class CodedSize(NamedTuple):
    """Bits of the same codes, without headers and checksums, which do not depend on the coding.

    packed: without entropy coding.
    coded: with it, the coder's states included; a chunk that would grow stays packed.
    tables: the frequency tables.
    """

    packed: int
    coded: int
    tables: int

    @property
    def saved(self) -> int:
        """Bits that the file becomes smaller by; negative if the tables cost more than they save."""
        return self.packed - self.coded - self.tables


def coded_size(
    codes: Tensor, bits_per_index: int, tables: FrequencyTables, *, chunk_frames: int = CHUNK_FRAMES
) -> CodedSize:
    """Bits with and without entropy coding of codes int64 `[levels, frames]`, counted by coding them.

    Lost frames (-1) take no bits. BitstreamError if codes and tables do not fit each other.
    """
    header = StreamHeader(bytes(8), 1, 1, len(codes), bits_per_index)
    is_lost = check_codes(header, codes)
    check_tables(header, tables)
    indices = codes.cpu().numpy().T[~is_lost].astype(np.int32)
    chunks = [indices[first : first + chunk_frames] for first in range(0, len(indices), chunk_frames)]
    return CodedSize(
        packed=8 * sum(header.payload_bytes(len(chunk)) for chunk in chunks),
        coded=8 * sum(len(chunk_payload(chunk, header, tables)[1]) for chunk in chunks),
        tables=8 * (len(tables.to_bytes()) + 4),
    )
