"""The coded file `.sps`: a header, then chunks of packed indices, each with a checksum. All numbers are little-endian.

    header   magic "SPS1", format version u16, header length u16 (all of it, its checksum included)
             configuration hash 8 bytes, sample rate u32, channels u16, samples u64,
             levels u16, bits per index u8, frames u64
             CRC-32 u32 of everything before it
    chunk    frames u16 (1..250), then ceil(frames * levels * bits / 8) bytes of indices, CRC-32 u32 of both

Indices are frame-major (all levels of frame 0, then of frame 1), least significant bit first; a chunk ends on a whole
byte. So a chunk needs no other one, and levels are dropped by repacking each frame's prefix. A later writer of the same
version may lengthen the header: a reader checks all of it and ignores what it does not know.

A reader trusts nothing: counts are checked against the limits below, and memory grows only with bytes really read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from spectrostream.errors import UserError

MAGIC = b"SPS1"
VERSION = 1
CHUNK_FRAMES = 250  # 10 s at 25 tokens/s

_OPENING = struct.Struct("<4sHH")  # magic, version, header length
_FIELDS = struct.Struct("<8sIHQHBQ")  # the fields of Header, in its order
_CHECKSUM = struct.Struct("<I")
_CHUNK_OPENING = struct.Struct("<H")
_HEADER_BYTES = _OPENING.size + _FIELDS.size + _CHECKSUM.size
_MAX_HEADER_BYTES = 4096

# name: (offset in the file, lowest, highest); the limits keep the largest chunk at 512 KB
_NUMBERS = {
    "sample_rate": (16, 1, 1_000_000),
    "channels": (20, 1, 1024),
    "samples": (22, 0, 2**63 - 1),
    "levels": (30, 1, 1024),
    "bits_per_index": (32, 1, 16),
    "frames": (33, 0, 2**63 - 1),
}


class BitstreamError(UserError, ValueError):
    """A coded file that cannot be read or written; the message names the byte and what was expected there."""


@dataclass(frozen=True)
class Header:
    """What a coded file says of itself.

    configuration_hash: 8 bytes that identify the codec's configuration; the reader must hold the same codec.
    sample_rate: Hz.
    channels: audio channels.
    samples: length of the audio, per channel. Whoever decodes must check it against `frames`: the file cannot know how
        many samples a frame holds.
    levels: quantizer levels kept.
    bits_per_index: 10 for codebooks of 1024 entries.
    frames: tokens per level.
    """

    configuration_hash: bytes
    sample_rate: int
    channels: int
    samples: int
    levels: int
    bits_per_index: int
    frames: int

    def __post_init__(self) -> None:
        if len(self.configuration_hash) != 8:
            raise BitstreamError(f"byte 8: configuration_hash has {len(self.configuration_hash)} bytes; expected 8")
        for name, (offset, lowest, highest) in _NUMBERS.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise BitstreamError(f"byte {offset}: {name} is {value}; expected {lowest}..{highest}")

    @property
    def file_bytes(self) -> int:
        """Size of the file that `write_bitstream` makes."""
        whole, rest = divmod(self.frames, CHUNK_FRAMES)
        framing = _CHUNK_OPENING.size + _CHECKSUM.size
        size = _HEADER_BYTES + whole * (framing + self.payload_bytes(CHUNK_FRAMES))
        return size + (framing + self.payload_bytes(rest) if rest else 0)

    def payload_bytes(self, frames: int) -> int:
        """Bytes that the packed indices of so many frames occupy."""
        return -(-frames * self.levels * self.bits_per_index // 8)


def write_bitstream(target: Path | str | BinaryIO, header: Header, codes: Tensor) -> None:
    """Write codes, int64 `[levels, frames]`, to a path or to a binary stream.

    A path gets the complete file or stays as it was. BitstreamError if the codes do not fit the header; nothing is then
    written.
    """
    _check_codes(header, codes)
    with _opened_for_writing(target) as stream:
        stream.write(_packed_header(header))
        # [frames, levels]
        for chunk in codes.detach().cpu().T.split(CHUNK_FRAMES):
            if len(chunk):
                content = _CHUNK_OPENING.pack(len(chunk)) + _pack(chunk.numpy(), header.bits_per_index)
                stream.write(content + _CHECKSUM.pack(zlib.crc32(content)))


def read_header(source: Path | str | BinaryIO) -> Header:
    """Read the header alone; BitstreamError if it is not one."""
    with _opened_for_reading(source) as stream:
        return _parse_header(_Reader(stream))


def read_bitstream(source: Path | str | BinaryIO) -> tuple[Header, Tensor]:
    """Read a header and its codes, int64 `[levels, frames]`; BitstreamError at the first byte that is wrong or missing.

    A file must end after the last chunk; a stream is left there.
    """
    with _opened_for_reading(source) as stream:
        reader = _Reader(stream)
        header = _parse_header(reader)
        chunks = []
        remaining = header.frames
        while remaining:
            chunk = _parse_chunk(reader, header, remaining)
            remaining -= len(chunk)
            chunks.append(chunk)
        if isinstance(source, (str, Path)) and stream.read(1):
            raise BitstreamError(f"byte {reader.offset}: expected the end of the file after {header.frames} frames")
    # [frames, levels]
    indices = np.concatenate(chunks) if chunks else np.zeros((0, header.levels), np.uint16)
    return header, torch.from_numpy(indices.astype(np.int64)).T.contiguous()


class _Reader:
    """Takes exact numbers of bytes from a stream and knows how far it came."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes, a number the caller has bounded."""
        content = b""
        # An unbuffered stream may hand over less than asked for before its end.
        while len(content) < size and (part := self.stream.read(size - len(content))):
            content += part
        if len(content) < size:
            raise BitstreamError(
                f"byte {self.offset + len(content)}: the data end here; expected {size} bytes of {what} from "
                f"byte {self.offset} on"
            )
        self.offset += size
        return content

    def take_checksum(self, content: bytes, what: str) -> None:
        """Compare the next four bytes with the checksum of `content`."""
        start = self.offset
        (stored,) = _CHECKSUM.unpack(self.take(_CHECKSUM.size, f"{what} checksum"))
        expected = zlib.crc32(content)
        if stored != expected:
            raise BitstreamError(
                f"byte {start}: {what} checksum is {stored:08x}; expected {expected:08x}: the {what} is corrupt"
            )


def _packed_header(header: Header) -> bytes:
    content = _OPENING.pack(MAGIC, VERSION, _HEADER_BYTES) + _FIELDS.pack(*astuple(header))
    return content + _CHECKSUM.pack(zlib.crc32(content))


def _parse_header(reader: _Reader) -> Header:
    opening = reader.take(_OPENING.size, "header")
    magic, version, length = _OPENING.unpack(opening)
    if magic != MAGIC:
        raise BitstreamError(f"byte 0: magic is {magic!r}; expected {MAGIC!r}: not a SpectroStream file")
    if version != VERSION:
        raise BitstreamError(f"byte 4: format version is {version}; expected {VERSION}")
    if not _HEADER_BYTES <= length <= _MAX_HEADER_BYTES:
        raise BitstreamError(f"byte 6: header length is {length}; expected {_HEADER_BYTES}..{_MAX_HEADER_BYTES}")
    rest = reader.take(length - _OPENING.size - _CHECKSUM.size, "header")
    reader.take_checksum(opening + rest, "header")
    return Header(*_FIELDS.unpack_from(rest))


def _parse_chunk(reader: _Reader, header: Header, remaining: int) -> np.ndarray:
    """The next chunk's indices, uint16 `[frames, levels]`."""
    start = reader.offset
    opening = reader.take(_CHUNK_OPENING.size, "chunk")
    (frames,) = _CHUNK_OPENING.unpack(opening)
    most = min(CHUNK_FRAMES, remaining)
    if not 1 <= frames <= most:
        raise BitstreamError(f"byte {start}: the chunk claims {frames} frames; expected 1..{most}")
    payload = reader.take(header.payload_bytes(frames), "indices")
    reader.take_checksum(opening + payload, "chunk")
    return _unpack(payload, frames, header.levels, header.bits_per_index)


def _pack(indices: np.ndarray, bits: int) -> bytes:
    """Indices of any shape to bytes: bit b of index n is bit (n * bits + b) of the payload."""
    planes = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8), bitorder="little").tobytes()


def _unpack(payload: bytes, frames: int, levels: int, bits: int) -> np.ndarray:
    count = frames * levels
    planes = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits, bitorder="little")
    weights = np.left_shift(1, np.arange(bits)).astype(np.uint16)
    return (planes.reshape(count, bits) @ weights).reshape(frames, levels)


def _check_codes(header: Header, codes: Tensor) -> None:
    expected = [header.levels, header.frames]
    if codes.dtype != torch.int64 or list(codes.shape) != expected:
        raise BitstreamError(f"codes are {codes.dtype} {list(codes.shape)}; the header expects torch.int64 {expected}")
    highest = 2**header.bits_per_index - 1
    wrong = ((codes < 0) | (codes > highest)).nonzero()
    if len(wrong):
        level, frame = wrong[0].tolist()
        raise BitstreamError(
            f"codes[{level}, {frame}] is {codes[level, frame].item()}; expected 0..{highest} "
            f"({header.bits_per_index} bits per index)"
        )


@contextmanager
def _opened_for_reading(source: Path | str | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as stream:
            yield stream
    else:
        yield source


@contextmanager
def _opened_for_writing(target: Path | str | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(target, (str, Path)):
        yield target
        return
    target = Path(target)
    # Beside the target, because a rename is atomic only within one filesystem.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
