from __future__ import annotations

from pathlib import Path

import pytest
import torch
from music_files import noisy_tones, write_raw

from datamodules.audio_files import AudioFileError, read_audio
from datamodules.corpus import Track
from datamodules.track_audio import read_track


def stems(folder: Path) -> Track:
    """Two stems at 44.1 kHz, 3 s and 2 s long, the second one mono."""
    long = write_raw(folder / "a.wav", noisy_tones(3.0, 44100, 1), 44100)
    short = write_raw(folder / "b.wav", noisy_tones(2.0, 44100, 2, channels=1), 44100)
    return Track(folder, "song", 3.0, 44100, 2, 0, parts=(long, short))


def test_a_track_of_parts_is_their_sum_and_silent_where_one_has_ended(tmp_path: Path) -> None:
    track = stems(tmp_path)
    whole = read_track(track, sample_rate=48000, channels=2)
    long, short = (read_audio(path) for path in track.parts)
    assert whole.shape == long.shape
    torch.testing.assert_close(whole[:, :96000], long[:, :96000] + short)
    torch.testing.assert_close(whole[:, 96000:], long[:, 96000:])


@pytest.mark.parametrize("start", [0.0, 1.5, 2.2])
def test_a_part_of_the_sum_equals_the_same_part_of_the_whole(tmp_path: Path, start: float) -> None:
    track = stems(tmp_path)
    whole = read_track(track, sample_rate=48000, channels=2)
    part = read_track(track, sample_rate=48000, channels=2, start_seconds=start, duration_seconds=0.8)
    first = round(start * 48000)
    torch.testing.assert_close(part, whole[:, first : first + part.shape[-1]], atol=1e-5, rtol=0)
    assert part.shape == (2, 38400)


def test_a_missing_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    track = stems(tmp_path)
    track.parts[1].unlink()
    with pytest.raises(AudioFileError, match=r"b\.wav"):
        read_track(track, sample_rate=48000, channels=2)
