"""The encodings of prepared audio: 16 bit or float32 WAV, 16 or 24 bit FLAC; how they are written and read back.

WAV headers are written here, because libsndfile puts the time into those of float files, and the same music must give
the same bytes. Integers are rounded without dither to steps of 2^-15 or 2^-23, so that integer music does not change.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile
from torch import Tensor

_BLOCK_FRAMES = 2**18
_LARGEST_WAV_BYTES = 2**32 - 2**16


@dataclass(frozen=True)
class Encoding:
    """One way to store samples.

    Attributes:
        name: Its key in `ENCODINGS`.
        container: libsndfile's name. The same for `subtype`.
        bits: Of an integer sample; 0 is float32.
        size_ratio: Expected size of the file over that of the samples (music in FLAC: about 0.6).
    """

    name: str
    container: str
    subtype: str
    bits: int
    size_ratio: float = 1.0

    @property
    def extension(self) -> str:
        """The file name extension, with the dot."""
        return f".{self.container.lower()}"

    @property
    def is_plain(self) -> bool:
        """Whether the file holds the samples unchanged, so that each can be read at its place."""
        return self.container == "WAV"

    @property
    def header_bytes(self) -> int:
        """Bytes before the first sample of a plain file."""
        return 44 if self.bits else 56

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of one channel in a plain file."""
        return (self.bits or 32) // 8

    @property
    def dtype(self) -> np.dtype:
        """Type of `quantized` samples, and of those in a plain file."""
        return np.dtype({16: "<i2", 24: "<i4", 0: "<f4"}[self.bits])

    def expected_bytes(self, samples: int, channels: int) -> int:
        """Return the size of a file; exact for plain ones."""
        if self.is_plain:
            return self.header_bytes + samples * channels * self.sample_bytes
        return round(samples * channels * self.sample_bytes * self.size_ratio)

    def quantized(self, audio: Tensor) -> np.ndarray:
        """Convert samples `[channels, samples]` in [-1, 1] to those that are stored, `[samples, channels]`.

        24 bits are in the upper bytes of 32, as in libsndfile.
        """
        frames = np.ascontiguousarray(audio.T.numpy())
        if not self.bits:
            return frames.astype(self.dtype, copy=False)
        steps = 2 ** (self.bits - 1)
        whole = np.clip(np.rint(frames * np.float32(steps)), -steps, steps - 1).astype(self.dtype)
        return whole << 8 if self.bits == 24 else whole


ENCODINGS: Mapping[str, Encoding] = {
    encoding.name: encoding
    for encoding in (
        Encoding("pcm16", "WAV", "PCM_16", 16),
        Encoding("float32", "WAV", "FLOAT", 0),
        Encoding("flac16", "FLAC", "PCM_16", 16, size_ratio=0.6),
        Encoding("flac24", "FLAC", "PCM_24", 24, size_ratio=0.7),
    )
}


class PieceWriter:
    """Writes one piece of audio into an open, seekable, empty file; `close` it before the file is used.

    Args:
        file: Where the piece is written; it stays open.
        encoding: Of the samples.
        sample_rate: In Hz.
        channels: Of the audio.
        samples: Length of the piece.
    """

    def __init__(self, file: BinaryIO, encoding: Encoding, *, sample_rate: int, channels: int, samples: int) -> None:
        self._file = file
        self._encoding = encoding
        self._digest = hashlib.sha256()
        self._coder: soundfile.SoundFile | None = None
        self._target = _Target(file)
        if encoding.is_plain:
            file.write(_wav_header(encoding, sample_rate, channels, samples))
        else:
            self._coder = soundfile.SoundFile(
                self._target, "w", sample_rate, channels, encoding.subtype, format=encoding.container
            )

    def write(self, audio: Tensor) -> None:
        """Write the next samples `[channels, samples]`, full scale 1; integers clip beyond it.

        Raises:
            OSError: The disk is full.
        """
        frames = self._encoding.quantized(audio)
        self._digest.update(frames.data)
        if self._coder is None:
            self._file.write(frames.data)
            return
        try:
            self._coder.write(frames)
        except (AssertionError, soundfile.SoundFileError):  # soundfile asserts that all was written
            self._target.require_written()
            raise

    def close(self) -> str:
        """Complete the file, which stays open; return the SHA-256 of the samples."""
        if self._coder is not None:
            self._coder.close()
            self._target.require_written()
        self._file.flush()
        return self._digest.hexdigest()


class _Target:
    """A file for libsndfile, which does not report errors of writing; they are kept here."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._write = file.write
        self._error: OSError | None = None

    def write(self, content: bytes) -> int:
        if self._error is None:
            try:
                return self._write(content)
            except OSError as error:
                self._error = error
        return 0

    def require_written(self) -> None:
        if self._error is not None:
            raise self._error


def samples_digest(file: BinaryIO, encoding: Encoding) -> str:
    """Return the SHA-256 of the samples in a file of `PieceWriter`; "" if they cannot be read."""
    file.seek(0)
    digest = hashlib.sha256()
    try:
        for frames in _frames(file, encoding):
            digest.update(frames)
    except soundfile.SoundFileError:
        return ""
    return digest.hexdigest()


def _frames(file: BinaryIO, encoding: Encoding) -> Iterator[memoryview | bytes]:
    if encoding.is_plain:
        file.seek(encoding.header_bytes)
        while block := file.read(_BLOCK_FRAMES * 4):
            yield block
        return
    with soundfile.SoundFile(file) as coded:
        while len(frames := coded.read(_BLOCK_FRAMES, dtype=encoding.dtype.name, always_2d=True)):
            yield np.ascontiguousarray(frames).data


def _wav_header(encoding: Encoding, sample_rate: int, channels: int, samples: int) -> bytes:
    frame_bytes = channels * encoding.sample_bytes
    data_bytes = samples * frame_bytes
    if data_bytes > _LARGEST_WAV_BYTES:
        raise ValueError(f"{data_bytes} bytes of samples do not fit into a WAV file; make the pieces shorter")
    kind = 1 if encoding.bits else 3
    chunks = b"fmt " + struct.pack(
        "<IHHIIHH", 16, kind, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, encoding.sample_bytes * 8
    )
    if not encoding.bits:  # required if it is not PCM
        chunks += b"fact" + struct.pack("<II", 4, samples)
    chunks += b"data" + struct.pack("<I", data_bytes)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + data_bytes) + b"WAVE" + chunks
