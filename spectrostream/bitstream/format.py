"""The bytes of a coded file `.sps`: a header, chunks, an end record. All numbers are little-endian.

    header   magic "SPS1", format version u16, header length u16 (of the whole header with its checksum)
             configuration hash 8 bytes, sample rate u32, channels u16, levels u16, bits per index u8,
             flags u8 (1: frequency tables follow), CRC-32 u32 of everything before it
    tables   only with the flag: `entropy_coding.FrequencyTables.to_bytes`, then its CRC-32 u32
    chunk    marker A5 "P" (packed) or A5 "R" (entropy-coded: `entropy_coding`), first frame u32, frames u32 (1..250),
             payload bytes u32, CRC-32 u32 of these; payload; CRC-32 u32 of the whole chunk before it
    end      marker A5 "E", frames u32, samples u64, CRC-32 u32 of these

A writer needs to know nothing in advance, so it can write to a pipe. A stream without an end record is truncated.

Packed indices are frame-major (all levels of frame 0, then of frame 1), least significant bit first, and end on a whole
byte. So each chunk can be decoded alone, and `repack` drops levels by keeping the first part of each frame. A chunk
contains its position, and its first 18 bytes have a checksum of their own. So a reader finds the next chunk after
damage.

A later writer of the same version may lengthen the header: a reader checks all of it and ignores unknown fields.
A reader trusts no number in a file. It checks counts against the limits below, and its memory grows only with the bytes
read. No chunk holds more than `MAX_EXPANSION` times its bytes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectrostream.errors import UserError

MAGIC = b"SPS1"
VERSION = 1
CHUNK_FRAMES = 250  # 10 s at 25 tokens/s; also the maximum of a chunk
MAX_FRAMES = 2**32 - 1
MAX_SAMPLES = 2**63 - 1
MAX_EXPANSION = 16
MAX_TABLE_ENTRIES = 2**18  # levels * codebook size of an entropy-coded file; keeps the reader's tables at 8 MB

OPENING = struct.Struct("<4sHH")  # magic, version, header length
_FIELDS = struct.Struct("<8sIHHBB")
_CHUNK = struct.Struct("<2sIII")
_END = struct.Struct("<2sIQ")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = OPENING.size + _FIELDS.size + CHECKSUM.size
MAX_HEADER_BYTES = 4096
RECORD_BYTES = _CHUNK.size + CHECKSUM.size  # of a chunk's opening, and of the end record
CHUNK_OVERHEAD = RECORD_BYTES + CHECKSUM.size

MARKER = b"\xa5"
_PACKED, _CODED, _ENDED = MARKER + b"P", MARKER + b"R", MARKER + b"E"
_HAS_TABLES = 1

# name: (start of the message, lowest, highest); the limits keep the largest payload at 512 KB
_NUMBERS = {
    "sample_rate": ("byte 16", 1, 1_000_000),
    "channels": ("byte 20", 1, 1024),
    "levels": ("byte 22", 1, 1024),
    "bits_per_index": ("byte 24", 1, 16),
}
_COUNTS = {"samples": ("end record", 0, MAX_SAMPLES), "frames": ("end record", 0, MAX_FRAMES)}


class BitstreamError(UserError, ValueError):
    """A coded file that cannot be read or written; the message names the byte and what was expected there."""


@dataclass(frozen=True)
class StreamHeader:
    """The header of a coded stream, which is also known while the stream is still being written.

    Attributes:
        configuration_hash: 8 bytes that identify the codec's configuration; the decoder must be the same codec.
        sample_rate: In Hz.
        channels: Audio channels.
        levels: Quantizer levels in the stream.
        bits_per_index: 10 for codebooks of 1024 entries.

    Raises:
        BitstreamError: A value is out of range.
    """

    configuration_hash: bytes
    sample_rate: int
    channels: int
    levels: int
    bits_per_index: int

    def __post_init__(self) -> None:
        if len(self.configuration_hash) != 8:
            raise BitstreamError(f"byte 8: configuration_hash has {len(self.configuration_hash)} bytes; expected 8")
        self._check(_NUMBERS)

    def _check(self, limits: dict[str, tuple[str, int, int]]) -> None:
        for name, (place, lowest, highest) in limits.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise BitstreamError(f"{place}: {name} is {value}; expected {lowest}..{highest}")

    @property
    def bits_per_frame(self) -> int:
        """Bits of one packed frame."""
        return self.levels * self.bits_per_index

    def payload_bytes(self, frames: int) -> int:
        """Return the number of bytes of a chunk's packed indices."""
        return -(-frames * self.bits_per_frame // 8)

    def opening_bytes(self, *, has_tables: bool) -> bytes:
        """Return the header as it is written."""
        fields = _FIELDS.pack(
            self.configuration_hash,
            self.sample_rate,
            self.channels,
            self.levels,
            self.bits_per_index,
            _HAS_TABLES if has_tables else 0,
        )
        return with_checksum(OPENING.pack(MAGIC, VERSION, HEADER_BYTES) + fields)


@dataclass(frozen=True)
class Header(StreamHeader):
    """The header of a complete coded file, with its length.

    Attributes:
        samples: Length of the audio, per channel. The format does not know how many samples a frame has, so the decoder
            must check `samples` against `frames`.
        frames: Tokens per level.
    """

    samples: int
    frames: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(_COUNTS)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that `write_bitstream` makes without entropy coding, with chunks of `CHUNK_FRAMES`."""
        whole, rest = divmod(self.frames, CHUNK_FRAMES)
        size = HEADER_BYTES + whole * (CHUNK_OVERHEAD + self.payload_bytes(CHUNK_FRAMES)) + RECORD_BYTES
        return size + (CHUNK_OVERHEAD + self.payload_bytes(rest) if rest else 0)


class ChunkOpening(NamedTuple):
    """The record before a payload.

    Attributes:
        is_coded: True for an entropy-coded payload, False for a packed one.
        position: The chunk's first frame.
        frames: Frames in the chunk.
        payload_bytes: Bytes of the payload.
    """

    is_coded: bool
    position: int
    frames: int
    payload_bytes: int

    def to_bytes(self) -> bytes:
        """Return the record as it is written."""
        marker = _CODED if self.is_coded else _PACKED
        return with_checksum(_CHUNK.pack(marker, self.position, self.frames, self.payload_bytes))


class End(NamedTuple):
    """The end record.

    Attributes:
        position: Frames before it.
        samples: Length of the audio, per channel.
    """

    position: int
    samples: int

    def to_bytes(self) -> bytes:
        """Return the record as it is written."""
        return with_checksum(_END.pack(_ENDED, self.position, self.samples))


def with_checksum(content: bytes) -> bytes:
    """Return `content` with its CRC-32 appended."""
    return content + CHECKSUM.pack(zlib.crc32(content))


def parse_header_opening(opening: bytes) -> int:
    """Return the header's length, from its first 8 bytes.

    Raises:
        BitstreamError: This is no header of this format version.
    """
    magic, version, length = OPENING.unpack(opening)
    if magic != MAGIC:
        raise BitstreamError(f"byte 0: magic is {magic!r}; expected {MAGIC!r}: not a SpectroStream file")
    if version != VERSION:
        raise BitstreamError(f"byte 4: format version is {version}; expected {VERSION}")
    if not HEADER_BYTES <= length <= MAX_HEADER_BYTES:
        raise BitstreamError(f"byte 6: header length is {length}; expected {HEADER_BYTES}..{MAX_HEADER_BYTES}")
    return int(length)


def parse_header_fields(fields: bytes) -> tuple[StreamHeader, bool]:
    """Parse the header from byte 8 on.

    Returns:
        The header, and whether frequency tables follow.

    Raises:
        BitstreamError: A value is out of range.
    """
    *numbers, flags = _FIELDS.unpack_from(fields)
    header = StreamHeader(*numbers)
    if flags > _HAS_TABLES:
        raise BitstreamError(f"byte 25: flags are {flags}; expected 0 or 1")
    if flags:
        check_table_size(header)
    return header, bool(flags)


def check_table_size(header: StreamHeader) -> None:
    """Check that the tables stay small in a reader's memory.

    Raises:
        BitstreamError: There are more than `MAX_TABLE_ENTRIES`.
    """
    entries = header.levels << header.bits_per_index
    if entries > MAX_TABLE_ENTRIES:
        raise BitstreamError(
            f"byte 25: {header.levels} levels of {header.bits_per_index} bits have {entries} table entries; entropy "
            f"coding allows {MAX_TABLE_ENTRIES}: write them packed"
        )


def parse_record(content: bytes, offset: int, header: StreamHeader, *, has_tables: bool) -> ChunkOpening | End:
    """Parse a chunk's opening or the end record.

    Args:
        content: `RECORD_BYTES` bytes.
        offset: Their position in the stream, for messages.
        header: The stream's header.
        has_tables: Whether the stream has frequency tables.

    Raises:
        BitstreamError: The content is neither of the two, is damaged, or is out of range.
    """
    marker = content[:2]
    if marker not in (_PACKED, _CODED, _ENDED):
        raise BitstreamError(
            f"byte {offset}: {marker!r} opens neither a chunk nor the end record; expected {_PACKED!r}, {_CODED!r} or "
            f"{_ENDED!r}"
        )
    check_checksum(content[:-4], content[-4:], offset + len(content) - 4, "end record" if marker == _ENDED else "chunk")
    if marker == _ENDED:
        _, frames, samples = _END.unpack_from(content)
        if samples > MAX_SAMPLES:
            raise BitstreamError(f"byte {offset + 6}: samples is {samples}; expected 0..{MAX_SAMPLES}")
        return End(frames, samples)
    opening = ChunkOpening(marker == _CODED, *_CHUNK.unpack_from(content)[1:])
    _check_opening(opening, offset, header, has_tables)
    return opening


def check_checksum(content: bytes, stored: bytes, offset: int, what: str) -> None:
    """Compare the CRC-32 of `content` with `stored`.

    Args:
        content: The bytes that the checksum protects.
        stored: The 4 bytes of the stored checksum.
        offset: Where `stored` is in the stream, for messages.
        what: What the checksum protects, for messages.

    Raises:
        BitstreamError: The checksums differ.
    """
    (found,) = CHECKSUM.unpack(stored)
    expected = zlib.crc32(content)
    if found != expected:
        raise BitstreamError(
            f"byte {offset}: {what} checksum is {found:08x}; expected {expected:08x}: the {what} is corrupt"
        )


def smallest_coded_payload(packed_bytes: int) -> int:
    """Return the minimum size of an entropy-coded payload that has `packed_bytes` bytes when packed."""
    return -(-packed_bytes // MAX_EXPANSION)


def _check_opening(opening: ChunkOpening, offset: int, header: StreamHeader, has_tables: bool) -> None:
    if not 1 <= opening.frames <= CHUNK_FRAMES:
        raise BitstreamError(f"byte {offset + 6}: the chunk claims {opening.frames} frames; expected 1..{CHUNK_FRAMES}")
    if opening.position + opening.frames > MAX_FRAMES:
        raise BitstreamError(
            f"byte {offset + 2}: the chunk begins at frame {opening.position}; allowed: "
            f"{MAX_FRAMES - opening.frames} with {opening.frames} frames"
        )
    if opening.is_coded and not has_tables:
        raise BitstreamError(f"byte {offset}: the chunk is entropy-coded, but the file has no frequency tables")
    packed = header.payload_bytes(opening.frames)
    least, most = (smallest_coded_payload(packed), packed - 1) if opening.is_coded else (packed, packed)
    if not least <= opening.payload_bytes <= most:
        raise BitstreamError(
            f"byte {offset + 10}: the chunk claims {opening.payload_bytes} bytes of indices; expected {least}..{most}"
        )


def pack_indices(indices: NDArray[np.int32], bits: int) -> bytes:
    """Pack indices of any shape: bit b of index n is bit (n * bits + b) of the payload."""
    planes = indices.reshape(-1, 1).astype("<u2").view(np.uint8)  # low byte, high byte
    return np.packbits(
        np.unpackbits(planes, axis=1, count=bits, bitorder="little"), axis=None, bitorder="little"
    ).tobytes()


def unpack_indices(payload: bytes, frames: int, levels: int, bits: int) -> NDArray[np.int32]:
    """Return the indices `[frames, levels]` of a packed payload."""
    count = frames * levels
    planes = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits, bitorder="little")
    padded = np.packbits(planes.reshape(count, bits), axis=1, bitorder="little")  # one or two bytes per index
    halves = padded.astype(np.int32)
    indices = halves[:, 0] if bits <= 8 else halves[:, 0] | halves[:, 1] << 8
    return indices.reshape(frames, levels)
