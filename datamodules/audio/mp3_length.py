"""Reads MP3 files without a number of frames as if they had one.

Most encoders begin an MP3 file with a frame without music that holds, after "Xing" or "Info", the number of frames.
Without it libsndfile estimates the number: file size over the size of the first frame. With a variable bitrate the
error is minutes, pictures count as music, and even with a constant bitrate the error is some frames. libsndfile reads
nothing beyond its estimate. So the frames of such a file are counted, and libsndfile gets the missing frame before
them. It then leaves out the decoder's delay, the first 529 samples, as in all files with that frame.

Source: ISO/IEC 11172-3 and 13818-3 (the header of a frame, in 4 bytes); the Xing frame as mpg123 and LAME have it.
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from datamodules.audio.joined_file import JoinedFile

# Keys are the two bits of the version: 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5. Only layer III counts.
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBPS = {
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBPS[0] = _KBPS[2]
_HEADER_BYTES = 4
# The beginning of a header of layer III: 11 bits of synchronization, version, layer, and a bit for "no CRC".
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_NO_CRC = 0x01
_CRC_BYTES = 2
_ID3 = re.compile(rb"ID3[\x00-\xfe][\x00-\xfe].([\x00-\x7f]{4})", re.DOTALL)
_ID3_BYTES = 10
_SEARCHED_BYTES = 2**16
_HAS_FRAMES = 1
# Bitrate of the added frame; it is large enough for its content at every sample rate.
_TAG_KBPS = 64


class Header(NamedTuple):
    """The header of a frame; all frames of a stream have the same version and rate.

    Attributes:
        size: Of the frame in bytes, with the header.
        version: The two bits.
        sample_rate: In Hz.
        side_bytes: Size of the side information between header and music.
    """

    size: int
    version: int
    sample_rate: int
    side_bytes: int


def frame_samples(sample_rate: int) -> int:
    """Return the samples of a channel in a frame of layer III; rates from 32000 Hz are MPEG-1."""
    return 1152 if sample_rate >= 32000 else 576


def samples_to_decode_before(sample_rate: int, channels: int) -> int:
    """Return how many samples before a place a decoder must decode for the same output as from the start.

    The music of a frame may begin in earlier frames (the bit reservoir): up to 511 bytes earlier, 255 in MPEG-2. After
    a pause these are frames of the lowest bitrate. Two more frames let the overlapping windows and the filter bank
    settle.
    """
    version = 3 if sample_rate >= 32000 else 2
    reservoir_bytes = 511 if version == 3 else 255
    samples = frame_samples(sample_rate)
    smallest = samples // 8 * 1000 * _KBPS[version][0] // sample_rate
    music_bytes = smallest - _HEADER_BYTES - _CRC_BYTES - _side_bytes(version, channels)
    return (math.ceil(reservoir_bytes / music_bytes) + 2) * samples


def _side_bytes(version: int, channels: int) -> int:
    if version == 3:
        return 17 if channels == 1 else 32
    return 9 if channels == 1 else 17


@lru_cache(maxsize=4096)
def header_of(content: bytes) -> Header | None:
    """Parse 4 bytes; None if they are no header of layer III, or one without a bitrate ("free format")."""
    if len(content) < _HEADER_BYTES or not _SYNC.match(content):
        return None
    version, bitrate, rate = content[1] >> 3 & 3, content[2] >> 4, content[2] >> 2 & 3
    if bitrate in (0, 15) or rate == 3:
        return None
    sample_rate, kbps = _RATES[version][rate], _KBPS[version][bitrate - 1]
    # bytes = seconds * bits per second / 8, rounded down; some frames are padded by one.
    padding = content[2] >> 1 & 1
    size = frame_samples(sample_rate) // 8 * 1000 * kbps // sample_rate + padding
    channels = 1 if content[3] >> 6 == 3 else 2
    return Header(size, version, sample_rate, _side_bytes(version, channels))


@dataclass(frozen=True, slots=True)
class Uncounted:
    """An MP3 file without a number of frames: position of the first frame, its header, and the counted number."""

    first: int
    header: bytes
    frames: int


def uncounted(path: Path) -> Uncounted | None:
    """Count the frames of a file; None if it has their number, or if no frames are found.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = 0
        while size := _id3_bytes(file, start):
            start += size
        first = _next_frame(file, start)
        if first is None or _says_frames(file, first):
            return None
        return Uncounted(first, _read(file, first, _HEADER_BYTES), _count(file, first))


def open_counted(path: Path, found: Uncounted) -> io.RawIOBase:
    """Open the file for reading, with the missing frame.

    Raises:
        OSError: The file cannot be opened.
    """
    return _Counted(path.open("rb"), found)


class _Counted(JoinedFile):
    """ID3, then the added frame, then the music; it closes its file."""

    def __init__(self, file: BinaryIO, found: Uncounted) -> None:
        # ID3 stays in place, because it holds the names. Everything else before the first frame is left out, because
        # libsndfile would not recognize the file as MP3.
        id3, end = _id3_bytes(file, 0), file.seek(0, os.SEEK_END)
        super().__init__(file, [range(id3), _tag_frame(found), range(found.first, end)])

    def close(self) -> None:
        self._file.close()
        super().close()


def _tag_frame(found: Uncounted) -> bytes:
    """Return the frame with the number of frames; it belongs to the same stream."""
    header = bytearray(found.header)
    version = header[1] >> 3 & 3
    header[1] |= _NO_CRC
    # mpg123 knows the frames of a stream by the bits of the sample rate and the private bit, so these stay.
    header[2] = (_KBPS[version].index(_TAG_KBPS) + 1) << 4 | header[2] & 0x0D
    parsed = header_of(bytes(header))
    assert parsed is not None
    begin = bytes(header) + bytes(parsed.side_bytes)
    number = found.frames.to_bytes(4, "big")
    return (begin + b"Xing" + _HAS_FRAMES.to_bytes(4, "big") + number).ljust(parsed.size, b"\0")


def _id3_bytes(file: BinaryIO, at: int) -> int:
    """Return the size of the ID3 tag that begins at a position; 0 if none does."""
    content = _read(file, at, _ID3_BYTES)
    found = _ID3.match(content)
    if found is None:
        return 0
    size = 0
    for byte in found[1]:
        size = size << 7 | byte
    has_footer = bool(content[5] & 0x10)
    return _ID3_BYTES * (2 if has_footer else 1) + size


def _says_frames(file: BinaryIO, first: int) -> bool:
    """Whether the first frame holds the number of frames in the place where mpg123 looks for it."""
    header = header_of(_read(file, first, _HEADER_BYTES))
    assert header is not None
    tag = _read(file, first + _HEADER_BYTES + header.side_bytes, 12)
    flags, frames = int.from_bytes(tag[4:8], "big"), int.from_bytes(tag[8:12], "big")
    return tag[:4] in (b"Xing", b"Info") and bool(flags & _HAS_FRAMES) and frames > 0


def _count(file: BinaryIO, first: int) -> int:
    """Count the whole frames of the stream that begins at `first`; other bytes between them are skipped."""
    stream = header_of(_read(file, first, _HEADER_BYTES))
    end = file.seek(0, os.SEEK_END)
    at: int | None = first
    count = 0
    while at is not None:
        header = header_of(_read(file, at, _HEADER_BYTES))
        if header is None or not _are_one_stream(header, stream):
            at = _next_frame(file, at + 1, stream)
            continue
        at += header.size
        if at > end:
            break
        count += 1
    return count


def _next_frame(file: BinaryIO, start: int, stream: Header | None = None) -> int | None:
    """Find the next frame from `start` on that is followed by another one."""
    while len(content := _read(file, start, _SEARCHED_BYTES)) > 1:
        for found in _SYNC.finditer(content):
            at = start + found.start()
            header = header_of(_read(file, at, _HEADER_BYTES))
            if header and _are_one_stream(header, stream or header):
                follower = header_of(_read(file, at + header.size, _HEADER_BYTES))
                if _are_one_stream(follower, header):
                    return at
        start += len(content) - 1
    return None


def _are_one_stream(one: Header | None, other: Header | None) -> bool:
    return (
        one is not None and other is not None and (one.version, one.sample_rate) == (other.version, other.sample_rate)
    )


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
