from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from music_files import noisy_tones, write_raw

from datamodules.audio.files import AudioFileError, read_audio
from datamodules.corpora.corpus import Track
from datamodules.track_reader import read_track


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


def test_each_part_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track = stems(tmp_path)
    opened: list[str] = []
    original = soundfile.SoundFile.__init__

    def counted(self: soundfile.SoundFile, file: bytes, *args: Any, **options: Any) -> None:
        opened.append(os.fsdecode(file))
        original(self, file, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", counted)
    # Before, across and after the end of the shorter one.
    for start in (0.5, 1.5, 2.1):
        opened.clear()
        read_track(track, sample_rate=48000, channels=2, start_seconds=start, duration_seconds=0.8)
        assert opened == [str(path) for path in track.parts]


def test_only_where_it_is_wanted_silence_follows_the_end(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(1.0, 44100), 44100)
    part = read_audio(path, start_seconds=0.7, duration_seconds=0.8, silent_after_end=True)
    assert torch.equal(part[:, :14400], read_audio(path, start_seconds=0.7))
    assert part.shape == (2, 38400)
    assert not part[:, 14400:].any()
    assert not read_audio(path, start_seconds=1.5, duration_seconds=0.5, silent_after_end=True).any()
    for start in (0.7, 1.5):
        with pytest.raises(AudioFileError, match="do not lie within it"):
            read_audio(path, start_seconds=start, duration_seconds=0.8)
