"""From crops to tensors: reading, the memory of decoded tracks, silence and broken files."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.audio_files import AudioFileError
from datamodules.corpus import Corpus, Track
from datamodules.crops import Crop, CropKey, Draws
from datamodules.hanging_music import HangingMusic
from datamodules.loudness import loudness_of
from datamodules.patience import within
from datamodules.spans import Spans
from datamodules.track_audio import read_track

logger = logging.getLogger(__name__)

# What `loudness_of` says of silence, and of all that is not louder than its absolute gate.
_NOTHING_HEARD_LUFS = -70.0
# So many tracks in a row are no accident: a disk is gone, and the rest of a million need not be tried.
_MOST_FAILURES = 1000


@dataclass(frozen=True)
class Excerpt:
    """A fixed segment of held-out music.

    `track` is the track's name, `name` is unique and fit for a file name, `audio` is `[channels, samples]`.
    """

    track: str
    name: str
    start_seconds: float
    audio: Tensor


class Reader(Protocol):
    """Gives parts of tracks: out of files (`TrackReader`) or shards."""

    @property
    def tracks(self) -> Sequence[Track]:
        """What can be read."""

    @property
    def sample_rate(self) -> int:
        """Hz, of what is given."""

    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """A part of a track, float32 `[channels, samples]`; AudioFileError where it cannot be had."""

    def lost_with(self, track_index: int) -> frozenset[int]:
        """Tracks that need not be tried when this one could not be read."""


class TrackReader:
    """Reads parts of the tracks of a corpus as float32 `[channels, samples]` at one rate.

    With `cache_audio` each track is decoded and resampled once, as a whole, and kept: 23 MB a minute at 48 kHz stereo.
    Parts are the same either way. A worker process fills a memory of its own, so caching goes best with no workers.

    timeout_seconds: a read that takes longer is an `AudioFileError`, and its track, or the folder where several hang,
        is not asked for a while; None waits for ever.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        sample_rate: int,
        channels: int,
        cache_audio: bool,
        timeout_seconds: float | None = None,
    ) -> None:
        self.tracks = corpus.tracks
        self.sample_rate = sample_rate
        self.channels = channels
        self.cache_audio = cache_audio
        self.timeout_seconds = timeout_seconds
        self._hanging = HangingMusic(corpus.tracks)
        self._whole: dict[int, Tensor | None] = {}

    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """A part of a track; raises `AudioFileError` where the file cannot give it."""
        whole = self._whole_track(track_index) if self.cache_audio else None
        start = round(start_seconds * self.sample_rate)
        stop = start + round(duration_seconds * self.sample_rate)
        if whole is not None and 0 <= start < stop <= whole.shape[-1]:
            return whole[:, start:stop].clone()
        return self._read(track_index, start_seconds, duration_seconds)

    def lost_with(self, track_index: int) -> frozenset[int]:
        """The track itself, or all below a folder that does not answer."""
        return self._hanging.lost_with(track_index)

    def _whole_track(self, track_index: int) -> Tensor | None:
        """The decoded track, or None where only parts of the file are good: these are then read one by one."""
        if track_index not in self._whole:
            try:
                self._whole[track_index] = self._read(track_index, 0.0, None)
            except AudioFileError:
                self._whole[track_index] = None
        return self._whole[track_index]

    def _read(self, track_index: int, start_seconds: float, duration_seconds: float | None) -> Tensor:
        track = self.tracks[track_index]
        lost = self._hanging.lost_place(track_index)
        if lost is not None:
            where = "" if lost == track.path else f"lies below {str(lost)!r}, which "
            raise AudioFileError.of(track.path, f"{where}did not answer a while ago")

        def read() -> Tensor:
            return read_track(
                track,
                sample_rate=self.sample_rate,
                channels=self.channels,
                start_seconds=start_seconds,
                duration_seconds=duration_seconds,
            )

        try:
            audio = within(self.timeout_seconds, read)
        except TimeoutError as error:
            raise AudioFileError.of(track.path, self._hung(track_index)) from error
        except AudioFileError:
            self._hanging.note_answer(track_index)
            raise
        self._hanging.note_answer(track_index)
        return audio

    def _hung(self, track_index: int) -> str:
        """Why a track is lost whose read takes too long."""
        reason = f"takes longer to read than data.read_timeout_seconds={self.timeout_seconds:g}"
        lost = self._hanging.note_hang(track_index)
        if lost == self.tracks[track_index].path:
            return reason
        count = len(self._hanging.lost_with(track_index))
        return f"{reason}, as others below {str(lost)!r} do, so its {count} tracks are not asked for a while"

    def __getstate__(self) -> dict[str, Any]:
        # Decoded music is not sent to worker processes.
        return {**self.__dict__, "_whole": {}}


class NothingReadableError(AudioFileError):
    """None of the music can be read any more; the message names the last reason."""

    def __init__(self, message: str) -> None:
        # torch hands on what a worker process raised as the text of a traceback, at whose end the message stands.
        super().__init__(message.rpartition(f"{NothingReadableError.__name__}: ")[2].strip())


class CropDataset(Dataset[Tensor]):
    """Training crops by key `(batch_index, slot)`: float32 `[channels, samples]`.

    A crop whose RMS lies below the threshold is drawn again, at most `silence_redraws` times; then the last one is
    taken as it is. A file that cannot be read is logged once per process, counted in `failures`, and replaced by a draw
    from the other tracks; so are all tracks of a shard that cannot be had. Both depend on key, seed and files alone.

    Args:
        reader: of the corpus.
        crops: where crops may lie.
        crop_seconds: length of a crop.
        seed: of the run.
        silence_threshold_db: RMS over all channels, in dB re full scale 1.
        silence_redraws: 0 takes every first draw.
        failure_list: file to which each process adds a line for each file that it cannot read.
        normalize_lufs: loudness that each crop is brought to before its gain, but for silent ones; None leaves it.
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
        self._told: set[int] = set()

    def __getitem__(self, key: CropKey) -> Tensor:
        batch_index, slot = key
        broken: AbstractSet[int] = frozenset()
        redraws = failures = 0
        for attempt in itertools.count():
            crop = self._crops.crop_for(self._seed, batch_index, slot, attempt=attempt, without=broken)
            try:
                audio = self._reader.read(crop.track_index, crop.start_seconds, self._crop_seconds)
            except AudioFileError as error:
                lost = self._reader.lost_with(crop.track_index)
                self._note_failure(crop.track_index, error, lost)
                # A mount may hold a million tracks, which are not copied for each crop.
                broken = broken | lost if broken else lost
                failures += 1
                if broken >= self._crops.track_indices:
                    message = f"None of the {len(broken)} training tracks can be read; the last: {error}"
                    raise NothingReadableError(message + _remedy(error)) from error
                if failures == _MOST_FAILURES:
                    raise NothingReadableError(f"{failures} reads in a row failed; the last: {error}") from error
                continue
            if redraws == self._silence_redraws or not self._is_silent(audio):
                break
            redraws += 1
        # To make silence as loud as music would be to train on the noise in it.
        if self._normalize_lufs is not None and not self._is_silent(audio):
            audio = _at_loudness(audio, self._reader.sample_rate, self._normalize_lufs)
        return _varied(audio, crop)

    def _is_silent(self, audio: Tensor) -> bool:
        return float(torch.linalg.vector_norm(audio)) / math.sqrt(audio.numel()) < self._silence_threshold

    def _note_failure(self, track_index: int, error: AudioFileError, lost: frozenset[int]) -> None:
        if track_index not in self._told:
            logger.warning("A training file is replaced by others from now on: %s", error)
            list_failure(self._failure_list, error)
            # A shard or a mount may hold thousands of tracks, for which one line is enough.
            self._told |= lost
        self.failures[self._reader.tracks[track_index].name] += 1


class HeldOutDataset(Dataset[Tensor]):
    """Fixed held-out crops `[channels, samples]` in a fixed order.

    One that cannot be read is replaced by the next that can, which the log and the list say: a validation is for
    watching a training, which should go on. What is evaluated and reported is never replaced.
    """

    def __init__(self, reader: Reader, pieces: Spans, failure_list: Path | None = None) -> None:
        self._reader = reader
        self._pieces = pieces
        self._failure_list = failure_list
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Tensor:
        for ahead in range(len(self._pieces)):
            piece = self._pieces[(index + ahead) % len(self._pieces)]
            try:
                return self._reader.read(piece.track_index, piece.start_seconds, piece.duration_seconds)
            except AudioFileError as error:
                last = error
                if piece.track_index not in self._told:
                    logger.warning("A validation crop is replaced by another, so losses are of other music: %s", error)
                    list_failure(self._failure_list, error)
                    self._told |= self._reader.lost_with(piece.track_index)
        raise NothingReadableError(f"None of the {len(self._pieces)} validation crops can be read; the last: {last}")


def _remedy(error: AudioFileError) -> str:
    is_gone = os.strerror(errno.ENOENT) in error.reason
    return "; where the music has moved, type data.root=FOLDER or scan it there" if is_gone else ""


def list_failure(path: Path | None, error: AudioFileError) -> None:
    """Adds a line to the list, if there is one. The training can go on, so it does, even on a full disk."""
    if path is None:
        return
    line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} process {os.getpid()}: {error}".replace("\n", " ")
    # Short lines of several processes do not mix.
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")


def _at_loudness(audio: Tensor, sample_rate: int, target_lufs: float) -> Tensor:
    loudness = loudness_of(audio, sample_rate)
    # At its lowest value nothing was heard, as of rumble below all that is weighted.
    return audio if loudness <= _NOTHING_HEARD_LUFS else audio * 10 ** ((target_lufs - loudness) / 20)


def _varied(audio: Tensor, crop: Crop) -> Tensor:
    if crop.gain_db != 0:
        audio = audio * 10 ** (crop.gain_db / 20)
    return audio.flip(0) if crop.swap_channels else audio
