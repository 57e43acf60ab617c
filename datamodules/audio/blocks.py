"""Long audio files in pieces, in bounded memory: read from the start, written to the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

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
from spectrostream.atomic_files import discard, open_beside, take_name

_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_WITH_FLOAT = ("PCM_16", "PCM_24", "FLOAT")
# extension: (libsndfile's format, subtypes)
WRITABLE = {
    ".wav": ("WAV", _WITH_FLOAT),
    ".flac": ("FLAC", ("PCM_16", "PCM_24")),
    ".aiff": ("AIFF", _WITH_FLOAT),
    ".caf": ("CAF", _WITH_FLOAT),
    ".w64": ("W64", _WITH_FLOAT),
}
# Their headers count bytes in 32 bits; libsndfile would write a wrong number.
_LIMITED = ("WAV", "AIFF")
_LARGEST_BYTES = 2**32 - 2**16


class AudioReader:
    """Reads an audio file from start to end as float32 `[channels, samples]`, full scale 1, not clipped.

        with AudioReader(path) as reader:
            for audio in reader.pieces(480000):
                ...

    The pieces side by side are what `read_audio` gives, resampled without a seam; mono is repeated in each channel.

    Args:
        path: any format that libsndfile reads.
        sample_rate: of the result, in Hz; None is the file's own.
        channels: of the result; None is the file's own number.

    Attributes:
        info: what the file's header says.
        samples: length of the whole at `sample_rate`.

    Raises:
        AudioFileError: as `read_audio`, for what lies in the middle of the file when it is reached.
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
        # Frames that the resampler may still look at, `[channels of the file, frames]`, and where they begin.
        self._held = torch.zeros(self.info.channels, 0)
        self._held_from = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pieces(self, samples: int) -> Iterator[Tensor]:
        """Pieces `[channels, samples]`, the last one shorter; once."""
        for start in range(0, self.samples, samples):
            stop = min(start + samples, self.samples)
            source = self._frames(*self._resampler.source_range(start, stop, self.info.frames))
            audio = self._resampler.resample(source, start, stop, self.info.frames)
            yield audio.expand(self._channels, -1)

    def _frames(self, start: int, stop: int) -> Tensor:
        """Frames `start` to `stop` of the file; neither may lie before the last call's."""
        read_so_far = self._held_from + self._held.shape[1]
        more = self._read(read_so_far, max(stop, read_so_far))
        self._held = torch.cat((self._held[:, start - self._held_from :], more), dim=1)
        self._held_from = start
        return self._held[:, : stop - start]

    def _read(self, start: int, stop: int) -> Tensor:
        try:
            content = self.info.completed(decode(self._file, stop - start), start, stop)
        except soundfile.SoundFileError as error:
            raise self.info.broken(error) from error
        audio = torch.from_numpy(content)
        require_samples(self.info.path, audio)
        return audio


def summed(readers: Sequence[AudioReader], samples: int) -> Iterator[Tensor]:
    """The sum of files that begin together, in blocks `[channels, samples]`, the last one shorter; once.

    It is as long as the longest file; shorter ones end in silence. It is mono where all files are, else a mono file is
    repeated in each channel.
    """
    channels, length = max(one.info.channels for one in readers), max(one.samples for one in readers)
    streams = [reader.pieces(samples) for reader in readers]
    for start in range(0, length, samples):
        total = torch.zeros(channels, min(samples, length - start))
        for stream in streams:
            part = next(stream, None)
            if part is not None:
                total[:, : part.shape[1]] += part[:channels]
        yield total


class AudioWriter:
    """Writes an audio file piece by piece; it takes its name when it is closed, or stays as it was.

        with AudioWriter(path, sample_rate=48000, channels=2) as writer:
            writer.write(audio)  # as often as there is audio
            writer.close()

    Args:
        path: its extension chooses the format: .wav, .flac, .aiff, .caf or .w64.
        sample_rate: in Hz.
        channels: of the audio.
        subtype: PCM_16, PCM_24 (default) or, but for .flac, FLOAT.

    Attributes:
        clipped: samples beyond full scale so far, which an integer subtype clips and FLOAT keeps.

    Raises:
        AudioFileError: The extension or subtype is not offered, a sample is not a number, or the disk is full.
    """

    def __init__(self, path: str | Path, *, sample_rate: int, channels: int, subtype: str | None = None) -> None:
        self.path = Path(path)
        self.clipped = 0
        self.samples = 0
        self._subtype = subtype or "PCM_24"
        self._channels = channels
        self._container = _container(self.path, self._subtype)
        # Held open beside the file's own writer, so that the next command tells it from what a killed one left.
        try:
            self._held = open_beside(self.path)
        except OSError as error:
            raise AudioFileError.of(self.path, f"cannot be written: {error.strerror}") from error
        self._is_closed = False
        try:
            self._file = soundfile.SoundFile(
                file_name(Path(self._held.name)), "w", sample_rate, channels, self._subtype, format=self._container
            )
        except soundfile.SoundFileError as error:
            discard(self._held)
            raise self._unwritable(error) from error

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._is_closed:
            return
        self._discard()
        if kind is None:
            raise AudioFileError.of(self.path, "was not closed; call close() after the last piece")

    def write(self, audio: Tensor) -> None:
        """The next piece `[channels, samples]`, full scale 1."""
        samples = audio.detach().to("cpu", torch.float32)
        require_finite(self.path, samples)
        self._require_room(samples.shape[-1])
        if self._subtype != "FLOAT":
            self.clipped += int((samples.abs() > 1).sum())
            samples = samples.clamp(-1, 1)
        try:
            self._file.write(samples.T.numpy())
        except soundfile.SoundFileError as error:
            raise self._unwritable(error) from error
        self.samples += samples.shape[-1]

    def close(self) -> None:
        """The file is complete and takes its name."""
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

    def _require_room(self, samples: int) -> None:
        size = (self.samples + samples) * self._channels * _BYTES[self._subtype]
        if self._container in _LIMITED and size > _LARGEST_BYTES:
            reason = f"grows beyond the 4 GB that {self._container} allows; write .flac, .caf or .w64 instead"
            raise AudioFileError.of(self.path, reason)

    def _unwritable(self, error: soundfile.SoundFileError) -> AudioFileError:
        return AudioFileError.of(self.path, f"cannot be written: {libsndfile_reason(error)}")


def require_writable(path: Path) -> None:
    """AudioFileError for an extension that is not offered."""
    _container(path, "PCM_24")


def _container(path: Path, subtype: str) -> str:
    container, subtypes = WRITABLE.get(path.suffix.lower(), (None, ()))
    if container is None:
        raise AudioFileError.of(path, f"cannot write the extension {path.suffix!r}, allowed are {', '.join(WRITABLE)}")
    if subtype not in subtypes:
        raise AudioFileError.of(
            path, f"cannot write the subtype {subtype!r} to {container}, allowed are {', '.join(subtypes)}"
        )
    return container
