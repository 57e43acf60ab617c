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
    """Where blocks come from."""

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """Blocks `[channels, samples]`, the last one shorter."""

    def require_whole(self) -> None:
        """After the last block: UserError if something was left over that is no block."""


class BlockSink(Protocol):
    """Where blocks go to."""

    def write(self, audio: Tensor) -> None:
        """The next block `[channels, samples]`."""

    def close(self) -> None:
        """All blocks were written."""


class PcmSource:
    """PCM from a binary stream. Raises UserError: no sample at all, samples that are NaN."""

    def __init__(self, stream: BinaryIO, format: str, channels: int) -> None:
        self._stream = stream
        self._dtype = _DTYPES[format]
        self._frame_bytes = channels * self._dtype.itemsize
        self._channels = channels
        self._received = 0

    def __enter__(self) -> PcmSource:
        return self

    def __exit__(self, *_: object) -> None:
        """The stream is somebody else's."""

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
        if content is None:  # it does not block, and to go on would mean to take silence for the end
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
    """PCM to a binary stream, each block at once. s16le clips beyond full scale, f32le keeps it."""

    def __init__(self, stream: BinaryIO, format: str) -> None:
        self._stream = stream
        self._dtype = _DTYPES[format]
        self.clipped = 0

    def __enter__(self) -> PcmSink:
        return self

    def __exit__(self, *_: object) -> None:
        """The stream is somebody else's."""

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
    """An audio file; mono is tiled, other sample rates are resampled."""

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """See `BlockSource`."""
        return self.pieces(samples)

    def require_whole(self) -> None:
        """See `BlockSource`; a cut file is an error before."""


def open_source(name: str, stream: BinaryIO, format: str, *, sample_rate: int, channels: int) -> PcmSource | FileSource:
    """`-` is the stream, all else a file's name."""
    if name == "-":
        return PcmSource(stream, format, channels)
    return FileSource(name, sample_rate=sample_rate, channels=channels)


def open_sink(name: str, stream: BinaryIO, format: str, *, sample_rate: int, channels: int) -> PcmSink | AudioWriter:
    """`-` is the stream, all else a file's name."""
    if name == "-":
        return PcmSink(stream, format)
    return AudioWriter(Path(name), sample_rate=sample_rate, channels=channels)
