"""Raw interleaved PCM on the standard streams, and audio files, as blocks `[channels, samples]`, full scale 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from datamodules.audio.blocks import AudioReader, AudioWriter
from spectrostream.errors import UserError

_DTYPES: dict[str, np.dtype[Any]] = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
_S16_SCALE = 32768


class BlockSource(Protocol):
    """Reads audio in blocks."""

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """Yield blocks `[channels, samples]`; the last one may be shorter."""

    def require_whole(self) -> None:
        """Check after the last block that no incomplete sample is left.

        Raises:
            UserError: Bytes are left over.
        """


class BlockSink(Protocol):
    """Writes audio in blocks."""

    def write(self, audio: Tensor) -> None:
        """Write the next block `[channels, samples]`."""

    def close(self) -> None:
        """Complete the output after the last block."""


class PcmSource:
    """Reads PCM from a binary stream. An empty stream and NaN samples are a UserError."""

    def __init__(self, stream: BinaryIO, format: str, channels: int) -> None:
        self._stream = stream
        self._dtype = _DTYPES[format]
        self._frame_bytes = channels * self._dtype.itemsize
        self._channels = channels
        self._received = 0

    def __enter__(self) -> PcmSource:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the stream open: the caller owns it."""

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """See `BlockSource`."""
        while content := self._next(samples * self._frame_bytes):
            self._received += len(content)
            if whole := len(content) // self._frame_bytes:
                yield self._audio(content[: whole * self._frame_bytes])
        if self._received < self._frame_bytes:
            raise UserError("the standard input ended before the first sample; send PCM, or type a file's name")

    def require_whole(self) -> None:
        """See `BlockSource`."""
        if left := self._received % self._frame_bytes:
            raise UserError(
                f"the standard input ended {left} bytes into a frame of {self._frame_bytes} ({self._channels} "
                f"channels, {self._dtype.itemsize} bytes each); the frames before it were coded; is --format right?"
            )

    def _next(self, size: int) -> bytes:
        content: bytes | None = self._stream.read(size)
        if content is None:  # a stream that does not block; its pause would look like the end
            raise UserError("the standard input does not block and is empty for the moment; give one that blocks")
        return content

    def _audio(self, content: bytes) -> Tensor:
        frames = np.frombuffer(content, self._dtype).reshape(-1, self._channels)
        audio = torch.from_numpy(frames.T.astype(np.float32))
        if self._dtype.kind == "i":
            return audio / _S16_SCALE
        if not torch.isfinite(audio).all():
            raise UserError("the standard input holds NaN or infinite samples; is --format right?")
        return audio


class PcmSink:
    """Writes PCM to a binary stream, each block at once. s16le clips samples beyond full scale, f32le keeps them."""

    def __init__(self, stream: BinaryIO, format: str) -> None:
        self._stream = stream
        self._dtype = _DTYPES[format]
        self.clipped = 0

    def __enter__(self) -> PcmSink:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the stream open: the caller owns it."""

    def write(self, audio: Tensor) -> None:
        """See `BlockSink`."""
        frames = audio.T.numpy()
        if self._dtype.kind == "i":
            self.clipped += int((np.abs(frames) > 1).sum())
            frames = np.clip(np.rint(frames * _S16_SCALE), -_S16_SCALE, _S16_SCALE - 1)
        self._stream.write(np.ascontiguousarray(frames, self._dtype).tobytes())
        self._stream.flush()

    def close(self) -> None:
        """See `BlockSink`."""


class FileSource(AudioReader):
    """Reads an audio file; mono is tiled, other sample rates are resampled."""

    def require_whole(self) -> None:
        """Do nothing: reading a truncated file is already an error."""


def open_source(name: str, stream: BinaryIO, format: str, *, sample_rate: int, channels: int) -> PcmSource | FileSource:
    """Open the stream if the name is `-`, otherwise an audio file."""
    if name == "-":
        return PcmSource(stream, format, channels)
    return FileSource(name, sample_rate=sample_rate, channels=channels)


def open_sink(name: str, stream: BinaryIO, format: str, *, sample_rate: int, channels: int) -> PcmSink | AudioWriter:
    """Open the stream if the name is `-`, otherwise an audio file."""
    if name == "-":
        return PcmSink(stream, format)
    return AudioWriter(Path(name), sample_rate=sample_rate, channels=channels)
