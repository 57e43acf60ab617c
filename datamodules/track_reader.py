"""Reads parts of tracks from their files: sums stems, keeps decoded tracks, gives up files that do not answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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
    """A track, or a part of it, as `read_audio` gives it: float32 `[channels, samples]`.

    Parts that end before the track does are silent from there on.

    Raises:
        AudioFileError: as `read_audio`, for any of the files.
    """
    if not track.parts:
        with reading(track.path):
            return read_audio(
                track.path,
                sample_rate=sample_rate,
                channels=channels,
                start_seconds=start_seconds,
                duration_seconds=duration_seconds,
            )
    length = track.duration_seconds - start_seconds if duration_seconds is None else duration_seconds
    mixture = torch.zeros(channels, round(length * sample_rate))
    for path in track.parts:
        with reading(path):
            mixture += read_audio(
                path,
                sample_rate=sample_rate,
                channels=channels,
                start_seconds=start_seconds,
                duration_seconds=length,
                silent_after_end=True,
            )
    return mixture


class Reader(ABC):
    """Gives parts of tracks: out of files (`TrackReader`) or shards.

    tracks: what can be read.
    sample_rate: Hz, of what is given.
    """

    tracks: Sequence[Track]
    sample_rate: int

    @abstractmethod
    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """A part of a track, float32 `[channels, samples]`; AudioFileError where it cannot be had."""

    def read_each(self, places: Sequence[Place], duration_seconds: float) -> Iterator[Tensor | AudioFileError]:
        """What `read` gives or raises for each place, in order."""
        for track_index, start_seconds in places:
            try:
                yield self.read(track_index, start_seconds, duration_seconds)
            except AudioFileError as error:
                yield error

    @abstractmethod
    def lost_with(self, track_index: int) -> frozenset[int]:
        """Tracks that need not be tried when this one could not be read."""


class _NotAskedError(AudioFileError):
    """The file was not even opened."""


class TrackReader(Reader):
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
        return _given(next(self._read_each([(track_index, start_seconds)], duration_seconds)))

    def read_each(self, places: Sequence[Place], duration_seconds: float) -> Iterator[Tensor | AudioFileError]:
        """What `read` gives or raises for each place, in order."""
        read_each = super().read_each if self.cache_audio else self._read_each
        return read_each(places, duration_seconds)

    def lost_with(self, track_index: int) -> frozenset[int]:
        """The track itself, or all below a folder that does not answer."""
        return self._hanging.lost_with(track_index)

    def _whole_track(self, track_index: int) -> Tensor | None:
        """The decoded track, or None where only parts of the file are good: these are then read one by one."""
        if track_index not in self._whole:
            audio = next(self._read_each([(track_index, 0.0)], None))
            self._whole[track_index] = None if isinstance(audio, AudioFileError) else audio
        return self._whole[track_index]

    def _read_each(self, places: Sequence[Place], duration_seconds: float | None) -> Iterator[Tensor | AudioFileError]:
        jobs = [self._job(place, duration_seconds) for place in places]
        outcomes = each_within(self.timeout_seconds, jobs)
        for (track_index, _), outcome in zip(places, outcomes, strict=True):
            yield self._judged(track_index, outcome)

    def _job(self, place: Place, duration_seconds: float | None) -> Callable[[], Tensor]:
        track_index, start_seconds = place

        def read() -> Tensor:
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

        return read

    def _judged(self, track_index: int, outcome: Future[Tensor]) -> Tensor | AudioFileError:
        error = outcome.exception()
        if isinstance(error, TimeoutError):
            return AudioFileError.of(self.tracks[track_index].path, self._hung(track_index))
        if not isinstance(error, _NotAskedError):
            self._hanging.note_answer(track_index)
        return error if isinstance(error, AudioFileError) else outcome.result()

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


def _given(reading: Tensor | AudioFileError) -> Tensor:
    if isinstance(reading, AudioFileError):
        raise reading
    return reading
