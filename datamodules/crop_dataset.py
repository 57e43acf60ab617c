"""Crops as tensors: silence is drawn again, unreadable music is replaced, loudness and gain are applied."""

from __future__ import annotations

import errno
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio.files import AudioFileError
from datamodules.audio.loudness import loudness_of
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crops import Crop, CropKey, Draws
from datamodules.track_reader import Reader
from datamodules.workers.unreadable_files import list_failure

logger = logging.getLogger(__name__)

# What `loudness_of` returns for silence, and for all that is not louder than its absolute gate.
_SILENT_LUFS = -70.0
# After this many failures in a row a disk is gone, and the rest of a million tracks need not be tried.
_MOST_FAILURES = 1000


@dataclass(frozen=True)
class HeldOutSegment:
    """A fixed segment of held-out music.

    Attributes:
        track: Name of the track that was scanned, even if it was divided since.
        name: Unique, and fit for a file name.
        start_seconds: Where it starts in that track.
        audio: float32 `[channels, samples]`.
    """

    track: str
    name: str
    start_seconds: float
    audio: Tensor


class NothingReadableError(AudioFileError):
    """None of the music can be read; the message names the last reason."""

    def __init__(self, message: str) -> None:
        # From a worker process, torch passes the text of a traceback, which ends with the message.
        super().__init__(message.rpartition(f"{NothingReadableError.__name__}: ")[2].strip())


@dataclass
class _Pending:
    """A crop that is being read: its last draw, how often it was drawn, and why it was drawn again."""

    key: CropKey
    crop: Crop = field(init=False)
    audio: Tensor | None = None
    attempt: int = 0
    redraws: int = 0
    failures: int = 0
    broken: AbstractSet[int] = frozenset()


class CropDataset(Dataset[Tensor]):
    """Training crops by key `(batch_index, slot)`: float32 `[channels, samples]`.

    A crop whose RMS is below the threshold is drawn again, at most `silence_redraws` times; then the last draw is used.
    A file that cannot be read is logged once per process and replaced by a draw from the other tracks. So are all
    tracks of a shard that cannot be read. The result depends on key, seed and files only.

    Args:
        reader: Of the corpus.
        crops: Draws the crops.
        crop_seconds: Length of a crop.
        seed: Of the run.
        silence_threshold_db: RMS over all channels, in dB re full scale 1.
        silence_redraws: 0 uses every first draw.
        normalize_lufs: Loudness of each crop before its gain, except silent ones; None leaves it.
        failure_list: File to which each process adds a line for each file that it cannot read.

    Attributes:
        failures: How often each track could not be read, by name.
    """

    def __init__(
        self,
        reader: Reader,
        crops: Draws,
        *,
        crop_seconds: float,
        seed: int = 0,
        silence_threshold_db: float = -60.0,
        silence_redraws: int = 8,
        normalize_lufs: float | None = None,
        failure_list: Path | None = None,
    ) -> None:
        self._failure_list = failure_list
        self._normalize_lufs = normalize_lufs
        self._reader = reader
        self._crops = crops
        self._crop_seconds = crop_seconds
        self._seed = seed
        self._silence_threshold = 10 ** (silence_threshold_db / 20)
        self._silence_redraws = silence_redraws
        self.failures: Counter[str] = Counter()
        self._listed: set[int] = set()

    def __getitem__(self, key: CropKey) -> Tensor:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[CropKey]) -> list[Tensor]:
        """Return the crops of a batch: the same crops as one by one, but read faster."""
        pending = [_Pending(key) for key in keys]
        while missing := [one for one in pending if one.audio is None]:
            self._try_once(missing)
        return [self._finished(one) for one in pending]

    def _try_once(self, missing: Sequence[_Pending]) -> None:
        """Read the next draw of each."""
        for one in missing:
            one.crop = self._crops.crop_for(self._seed, *one.key, attempt=one.attempt, without=one.broken)
            one.attempt += 1
        places = [(one.crop.track_index, one.crop.start_seconds) for one in missing]
        readings = self._reader.read_each(places, self._crop_seconds)
        for one, reading in zip(missing, readings, strict=True):
            if isinstance(reading, AudioFileError):
                self._note_failure(one, reading)
            elif one.redraws == self._silence_redraws or not self._is_silent(reading):
                one.audio = reading
            else:
                one.redraws += 1

    def _finished(self, one: _Pending) -> Tensor:
        audio = one.audio
        assert audio is not None
        # At the loudness of music, silence would be a training on noise.
        if self._normalize_lufs is not None and not self._is_silent(audio):
            audio = _at_loudness(audio, self._reader.sample_rate, self._normalize_lufs)
        return _varied(audio, one.crop)

    def _is_silent(self, audio: Tensor) -> bool:
        return float(torch.linalg.vector_norm(audio)) / math.sqrt(audio.numel()) < self._silence_threshold

    def _note_failure(self, one: _Pending, error: AudioFileError) -> None:
        """Draw this crop from other music next; NothingReadableError if there is none."""
        track_index = one.crop.track_index
        lost = self._reader.lost_with(track_index)
        if track_index not in self._listed:
            logger.warning("A training file is replaced by others from now on: %s", error)
            list_failure(self._failure_list, error)
            # One line is enough for a shard or a mount with thousands of tracks.
            self._listed |= lost
        self.failures[self._reader.tracks[track_index].name] += 1
        # A mount may hold a million tracks; they are not copied for each crop.
        one.broken = one.broken | lost if one.broken else lost
        one.failures += 1
        if one.broken >= self._crops.track_indices:
            message = f"None of the {len(one.broken)} training tracks can be read; the last: {error}"
            raise NothingReadableError(message + _remedy(error)) from error
        if one.failures == _MOST_FAILURES:
            raise NothingReadableError(f"{one.failures} reads in a row failed; the last: {error}") from error


class HeldOutDataset(Dataset[Tensor]):
    """Fixed held-out crops `[channels, samples]` in a fixed order.

    A crop that cannot be read is replaced by the next one, with a line in the log and in the list, so that the training
    can go on. Segments for the evaluation are never replaced.
    """

    def __init__(self, reader: Reader, crops: TimeRanges, failure_list: Path | None = None) -> None:
        self._reader = reader
        self._crops = crops
        self._failure_list = failure_list
        self._listed: set[int] = set()

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Tensor:
        for ahead in range(len(self._crops)):
            crop = self._crops[(index + ahead) % len(self._crops)]
            try:
                return self._reader.read(crop.track_index, crop.start_seconds, crop.duration_seconds)
            except AudioFileError as error:
                last = error
                if crop.track_index not in self._listed:
                    logger.warning("A validation crop is replaced by another, so losses are of other music: %s", error)
                    list_failure(self._failure_list, error)
                    self._listed |= self._reader.lost_with(crop.track_index)
        raise NothingReadableError(f"None of the {len(self._crops)} validation crops can be read; the last: {last}")


def _remedy(error: AudioFileError) -> str:
    is_gone = os.strerror(errno.ENOENT) in error.reason
    return "; where the music has moved, type data.root=FOLDER or scan it there" if is_gone else ""


def _at_loudness(audio: Tensor, sample_rate: int, target_lufs: float) -> Tensor:
    loudness = loudness_of(audio, sample_rate)
    # The lowest value also means sounds that the K-weighting removes, such as rumble.
    return audio if loudness <= _SILENT_LUFS else audio * 10 ** ((target_lufs - loudness) / 20)


def _varied(audio: Tensor, crop: Crop) -> Tensor:
    if crop.gain_db != 0:
        audio = audio * 10 ** (crop.gain_db / 20)
    return audio.flip(0) if crop.swap_channels else audio
