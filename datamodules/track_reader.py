"""Reads parts of tracks from their files: sums stems, keeps decoded tracks, gives up files that do not respond."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.audio.files import AudioFileError, read_audio
from datamodules.corpora.corpus import Corpus, Track
from datamodules.workers.crash_markers import reading
from datamodules.workers.timeouts import each_within
from datamodules.workers.unresponsive_paths import HangingMusic

# Index of a track, and where in it to start, in seconds.
Place = tuple[int, float]


def read_track(
    track: Track, *, sample_rate: int, channels: int, start_seconds: float = 0.0, duration_seconds: float | None = None
) -> Tensor:
    """Read a track, or a part of it, like `read_audio`: float32 `[channels, samples]`.

    Stems are summed; a stem that ends before the track is silent from there on.

    Raises:
        AudioFileError: See `read_audio`, for any of the files.
    """

    def read(path: Path, seconds: float | None) -> Tensor:
        with reading(path):
            return read_audio(
                path,
                sample_rate=sample_rate,
                channels=channels,
                start_seconds=start_seconds,
                duration_seconds=seconds,
                silent_after_end=bool(track.parts),
            )

    if not track.parts:
        return read(track.path, duration_seconds)
    length = track.duration_seconds - start_seconds if duration_seconds is None else duration_seconds
    mixture = torch.zeros(channels, round(length * sample_rate))
    for path in track.parts:
        mixture += read(path, length)
    return mixture


class Reader(ABC):
    """Reads parts of tracks, from files (`TrackReader`) or shards.

    Attributes:
        tracks: What can be read.
        sample_rate: Of the result, in Hz.
    """

    tracks: Sequence[Track]
    sample_rate: int

    @abstractmethod
    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """Read a part of a track, float32 `[channels, samples]`.

        Raises:
            AudioFileError: It cannot be read.
        """

    def read_each(self, places: Sequence[Place], duration_seconds: float) -> Iterator[Tensor | AudioFileError]:
        """Yield for each place, in order, what `read` returns or raises."""
        for track_index, start_seconds in places:
            try:
                yield self.read(track_index, start_seconds, duration_seconds)
            except AudioFileError as error:
                yield error

    @abstractmethod
    def lost_with(self, track_index: int) -> frozenset[int]:
        """Return the tracks that need not be tried when this one could not be read."""


class _NotAskedError(AudioFileError):
    """The file was not opened, because it hung before."""


class TrackReader(Reader):
    """Reads parts of the tracks of a corpus.

    Args:
        corpus: The tracks.
        sample_rate: Of the result, in Hz.
        channels: Of the result.
        cache_audio: Whether each track is decoded and resampled once, as a whole, and kept: 23 MB a minute at 48 kHz
            stereo. The parts are the same. Each worker process keeps its own copy, so this is best without workers.
        timeout_seconds: A read that takes longer is an `AudioFileError`. Its track, or the folder if several reads hang
            there, is not read for a while. None waits for ever.
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
        """Read a part of a track, see `Reader`."""
        whole = self._whole_track(track_index) if self.cache_audio else None
        start = round(start_seconds * self.sample_rate)
        stop = start + round(duration_seconds * self.sample_rate)
        if whole is not None and 0 <= start < stop <= whole.shape[-1]:
            return whole[:, start:stop].clone()
        part = next(self._read_each([(track_index, start_seconds)], duration_seconds))
        if isinstance(part, AudioFileError):
            raise part
        return part

    def read_each(self, places: Sequence[Place], duration_seconds: float) -> Iterator[Tensor | AudioFileError]:
        """Yield for each place, in order, what `read` returns or raises."""
        read_each = super().read_each if self.cache_audio else self._read_each
        return read_each(places, duration_seconds)

    def lost_with(self, track_index: int) -> frozenset[int]:
        """Return the track itself, or all in a folder that does not respond."""
        return self._hanging.lost_with(track_index)

    def _whole_track(self, track_index: int) -> Tensor | None:
        """Return the decoded track; None if it cannot be read as a whole, then its parts are read one by one."""
        if track_index not in self._whole:
            audio = next(self._read_each([(track_index, 0.0)], None))
            self._whole[track_index] = None if isinstance(audio, AudioFileError) else audio
        return self._whole[track_index]

    def _read_each(self, places: Sequence[Place], duration_seconds: float | None) -> Iterator[Tensor | AudioFileError]:
        jobs = [partial(self._read_now, *place, duration_seconds) for place in places]
        outcomes = each_within(self.timeout_seconds, jobs)
        for (track_index, _), outcome in zip(places, outcomes, strict=True):
            yield self._outcome(track_index, outcome)

    def _read_now(self, track_index: int, start_seconds: float, duration_seconds: float | None) -> Tensor:
        track = self.tracks[track_index]
        lost = self._hanging.lost_place(track_index)
        if lost is not None:
            where = "" if lost == track.path else f"lies below {str(lost)!r}, which "
            raise _NotAskedError.of(track.path, f"{where}did not answer a while ago")
        return read_track(
            track,
            sample_rate=self.sample_rate,
            channels=self.channels,
            start_seconds=start_seconds,
            duration_seconds=duration_seconds,
        )

    def _outcome(self, track_index: int, outcome: Future[Tensor]) -> Tensor | AudioFileError:
        error = outcome.exception()
        if isinstance(error, TimeoutError):
            return AudioFileError.of(self.tracks[track_index].path, self._hung(track_index))
        if not isinstance(error, _NotAskedError):
            self._hanging.note_answer(track_index)
        return error if isinstance(error, AudioFileError) else outcome.result()

    def _hung(self, track_index: int) -> str:
        """Note that a read takes too long; return the reason for the message."""
        reason = f"takes longer to read than data.read_timeout_seconds={self.timeout_seconds:g}"
        lost = self._hanging.note_hang(track_index)
        if lost == self.tracks[track_index].path:
            return reason
        count = len(self._hanging.lost_with(track_index))
        return f"{reason}, as others below {str(lost)!r} do, so its {count} tracks are not asked for a while"

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get no decoded music.
        return {**self.__dict__, "_whole": {}}
