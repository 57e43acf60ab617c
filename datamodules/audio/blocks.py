"""Reads and writes audio files block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.audio.opening import (
    AudioFileError,
    audio_info,
    decode,
    file_name,
    libsndfile_reason,
    open_audio,
    require_finite,
    require_samples,
)
from datamodules.audio.seeking import read_frames
from spectrostream.atomic_files import discard, open_beside, take_name

_BYTES = {"PCM_16": 2, "PCM_24": 3}
WRITABLE = {".wav": "WAV", ".flac": "FLAC", ".aiff": "AIFF", ".caf": "CAF", ".w64": "W64"}
"""libsndfile's format for each file name extension."""
# Their headers count bytes in 32 bits; libsndfile would write a wrong number.
_LIMITED = ("WAV", "AIFF")
_LARGEST_BYTES = 2**32 - 2**16


class AudioReader:
    """Reads an audio file as float32 `[channels, samples]`, full scale 1, not clipped.

        with AudioReader(path) as reader:
            for audio in reader.blocks(480000):
                ...

    Args:
        path: Any format that libsndfile reads.
        sample_rate: Of the result, in Hz; None is the file's own.
        channels: Of the result; mono is repeated in each. None is the file's own number.

    Attributes:
        info: What the file's header says.
        samples: Length of the whole file at `sample_rate`.

    Raises:
        AudioFileError: See `read_audio`; damage in the middle of the file is an error when it is read.
    """

    def __init__(self, path: str | Path, *, sample_rate: int | None = 48000, channels: int | None = 2) -> None:
        self._file = open_audio(Path(path))
        try:
            self.info = audio_info(Path(path), self._file)
            self._channels = channels or self.info.channels
            self.info.require_channels(self._channels)
            self._resampler = self.info.resampler(sample_rate or self.info.sample_rate)
        except BaseException:
            self._file.close()
            raise
        self.samples = self._resampler.length(self.info.frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """Yield the whole file once, in blocks `[channels, samples]`, the last one shorter.

        The blocks together equal `read_audio` of the whole file: they are resampled without seams.
        """
        # Frames that the resampler needs again, `[channels of the file, frames]`, from frame `held_from` on.
        held, held_from = torch.zeros(self.info.channels, 0), 0
        for start in range(0, self.samples, samples):
            stop = min(start + samples, self.samples)
            first, last = self._resampler.source_range(start, stop, self.info.frames)
            read_so_far = held_from + held.shape[1]
            end = max(last, read_so_far)
            more = self._checked(partial(decode, self._file, end - read_so_far), read_so_far, end)
            held, held_from = torch.cat((held[:, first - held_from :], more), dim=1), first
            yield self._resampled(held[:, : last - first], start, stop)

    def part(self, start: int, stop: int) -> Tensor:
        """Read samples `start` to `stop`, `[channels, stop - start]`, before anything else was read."""
        first, last = self._resampler.source_range(start, stop, self.info.frames)
        decoded = partial(read_frames, self._file, self.info.path, first, last)
        return self._resampled(self._checked(decoded, first, last), start, stop)

    def _resampled(self, source: Tensor, start: int, stop: int) -> Tensor:
        return self._resampler.resample(source, start, stop, self.info.frames).expand(self._channels, -1)

    def _checked(self, read: Callable[[], np.ndarray], start: int, stop: int) -> Tensor:
        """Call `read` for frames `start` to `stop`; return them complete, `[channels of the file, stop - start]`."""
        path = self.info.path
        try:
            content = read()
        except soundfile.SoundFileError as error:
            raise self.info.broken(error) from error
        except OSError as error:
            raise AudioFileError.of(path, f"cannot be opened: {error.strerror}") from error
        audio = torch.from_numpy(np.ascontiguousarray(self.info.completed(content, start, stop)))
        require_samples(path, audio)
        return audio


def summed(readers: Sequence[AudioReader], samples: int) -> Iterator[Tensor]:
    """Yield the sum of files that begin together, in blocks `[channels, samples]`, the last one shorter.

    It is as long as the longest file; shorter ones end in silence. It is mono if all files are; else mono files are
    repeated in each channel.
    """
    channels, length = max(one.info.channels for one in readers), max(one.samples for one in readers)
    streams = [reader.blocks(samples) for reader in readers]
    for start in range(0, length, samples):
        total = torch.zeros(channels, min(samples, length - start))
        for stream in streams:
            block = next(stream, None)
            if block is not None:
                total[:, : block.shape[1]] += block[:channels]
        yield total


class AudioWriter:
    """Writes an audio file block by block; it appears whole when it is closed, or stays as it was.

        with AudioWriter(path, sample_rate=48000, channels=2) as writer:
            writer.write(audio)  # as often as there is audio
            writer.close()

    Args:
        path: Its extension chooses the format, see `WRITABLE`.
        sample_rate: In Hz.
        channels: Of the audio.
        subtype: PCM_16 or PCM_24.

    Attributes:
        clipped: Number of samples so far that were beyond full scale and were clipped.
        samples: Length so far.

    Raises:
        AudioFileError: The extension is not offered, a sample is NaN or infinite, or the disk is full.
    """

    def __init__(self, path: str | Path, *, sample_rate: int, channels: int, subtype: str = "PCM_24") -> None:
        self.path = Path(path)
        self.clipped = 0
        self.samples = 0
        self._frame_bytes = channels * _BYTES[subtype]
        self._container = _container(self.path)
        # Open beside the file's own writer, so that the next command knows that this is not the rest of a killed one.
        try:
            self._held = open_beside(self.path)
        except OSError as error:
            raise AudioFileError.of(self.path, f"cannot be written: {error.strerror}") from error
        self._is_closed = False
        try:
            self._file = soundfile.SoundFile(
                file_name(Path(self._held.name)), "w", sample_rate, channels, subtype, format=self._container
            )
        except soundfile.SoundFileError as error:
            discard(self._held)
            raise self._unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_closed:
            return
        self._discard()
        if kind is None:
            raise AudioFileError.of(self.path, "was not closed; call close() after the last block")

    def write(self, audio: Tensor) -> None:
        """Write the next block `[channels, samples]`, full scale 1."""
        samples = audio.detach().to("cpu", torch.float32)
        require_finite(self.path, samples)
        if self._container in _LIMITED and (self.samples + samples.shape[-1]) * self._frame_bytes > _LARGEST_BYTES:
            reason = f"grows beyond the 4 GB that {self._container} allows; write .flac, .caf or .w64 instead"
            raise AudioFileError.of(self.path, reason)
        self.clipped += int((samples.abs() > 1).sum())
        try:
            self._file.write(samples.clamp(-1, 1).T.numpy())
        except soundfile.SoundFileError as error:
            raise self._unwritable(error) from error
        self.samples += samples.shape[-1]

    def close(self) -> None:
        """Complete the file, which takes its name."""
        try:
            self._file.close()
            take_name(self._held, self.path)
        except soundfile.SoundFileError as error:
            raise self._unwritable(error) from error
        finally:
            self._discard()

    def _discard(self) -> None:
        self._is_closed = True
        self._file.close()
        discard(self._held)

    def _unwritable(self, error: soundfile.SoundFileError) -> AudioFileError:
        return AudioFileError.of(self.path, f"cannot be written: {libsndfile_reason(error)}")


def require_writable(path: Path) -> None:
    """Raise AudioFileError if the extension is not offered."""
    _container(path)


def _container(path: Path) -> str:
    container = WRITABLE.get(path.suffix.lower())
    if container is None:
        raise AudioFileError.of(path, f"cannot write the extension {path.suffix!r}, allowed are {', '.join(WRITABLE)}")
    return container
