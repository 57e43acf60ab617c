"""The audio of a track: of its one file, or the sum of its parts (stems)."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.audio.files import read_audio
from datamodules.corpora.corpus import Track
from datamodules.workers.crash_markers import reading


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
