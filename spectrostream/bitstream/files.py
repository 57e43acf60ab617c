"""Read and write whole coded files `.sps` in one call.

The module `format` documents the bytes. `writer` and `reader` handle streams of unknown length; `entropy_coding` makes
them smaller.
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
    """Write a whole file.

    Args:
        target: A path, or a binary stream that is open for writing. If writing fails, a path keeps its old content.
        header: Describes the codes.
        codes: int64 `[levels, frames]`.
        chunk_frames: Frames of a chunk, 1..250.
        tables: Turns entropy coding on; `FrequencyTables.fit(codes, bits)` makes the best tables for these codes.

    Raises:
        BitstreamError: The codes do not fit the header (nothing is written), or the path cannot be written.
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
    """Read a whole file.

    Only the end record contains the number of samples, so it must be there; `BitstreamReader` reads a truncated stream.

    Args:
        source: A path, which must end after the end record, or a binary stream. A stream is read up to that record.
        conceal: Continue after damage; lost frames have the code -1 in every level (see `BitstreamReader`).

    Returns:
        The header, and codes int64 `[levels, frames]`.

    Raises:
        BitstreamError: A byte is wrong or missing; the message says which.
    """
    with BitstreamReader(source, conceal=conceal) as reader:
        chunks = list(reader.indices())
        header = reader.complete_header()
    # [frames, levels]
    indices = np.concatenate(chunks) if chunks else np.zeros((0, header.levels), np.int32)
    return header, torch.from_numpy(np.ascontiguousarray(indices.T, np.int64))


def read_header(source: Path | str | BinaryIO) -> Header:
    """Read the header of a complete file; only the first and last bytes are read.

    Args:
        source: A path, or a seekable binary stream that ends after the end record.

    Raises:
        BitstreamError: This is no complete coded file.
    """
    with BitstreamReader(source) as reader:
        end = reader.seek_end_record()
    return Header(**vars(reader.header), samples=end.samples, frames=end.position)


def repack(
    source: Path | str | BinaryIO, target: Path | str | BinaryIO, *, levels: int, conceal: bool = False
) -> Header:
    """Copy the first levels of a coded file, for instance from 16 to 8 or 4 kbps. No audio is decoded.

    The chunks keep their lengths, and the levels their frequency tables.

    Args:
        source: A path or a binary stream, which may be a pipe.
        target: The same; the source's own path is allowed.
        levels: How many levels are copied.
        conceal: Leave damaged chunks out; reading the target then needs `conceal=True` too.

    Returns:
        The header of the target.

    Raises:
        BitstreamError: The source has fewer levels, is truncated, or is wrong anywhere.
    """
    with BitstreamReader(source, conceal=conceal) as reader:
        present = reader.header.levels
        if not 1 <= levels <= present:
            raise BitstreamError(
                f"levels = {levels} cannot be kept; the source has {present}, so allowed: 1..{present}"
            )
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
    """The size of the same codes with and without entropy coding, in bits, without headers and checksums.

    Attributes:
        packed: Without entropy coding.
        coded: With entropy coding and the coder's states. A chunk that would become larger stays packed.
        tables: Of the frequency tables.
    """

    packed: int
    coded: int
    tables: int

    @property
    def saved(self) -> int:
        """Bits that entropy coding saves; negative if the tables cost more than they save."""
        return self.packed - self.coded - self.tables


def coded_size(
    codes: Tensor, bits_per_index: int, tables: FrequencyTables, *, chunk_frames: int = CHUNK_FRAMES
) -> CodedSize:
    """Code codes with and without entropy coding, and count the bits.

    Args:
        codes: int64 `[levels, frames]`; lost frames (-1) have no bits.
        bits_per_index: log2 of the codebook size.
        tables: The frequency tables.
        chunk_frames: Frames of a chunk.

    Raises:
        BitstreamError: Codes and tables do not fit each other.
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
