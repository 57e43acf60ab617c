"""Reading and writing in pieces: the same samples as in one go, and whole files or none."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from music_files import noisy_tones, write_raw

from datamodules.audio.blocks import WRITABLE, AudioReader, AudioWriter
from datamodules.audio.files import AudioFileError, read_audio


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sounds")
    return {
        rate: write_raw(folder / f"{rate}.wav", noisy_tones(0.7, rate), rate) for rate in (11025, 44100, 48000, 96000)
    }


@pytest.mark.slow
@settings(max_examples=40)
@given(rate=st.sampled_from([11025, 44100, 48000, 96000]), samples=st.integers(1000, 40000))
def test_pieces_side_by_side_are_the_file(sounds: dict[int, Path], rate: int, samples: int) -> None:
    with AudioReader(sounds[rate]) as reader:
        pieces = list(reader.blocks(samples))
        assert reader.samples == sum(piece.shape[1] for piece in pieces)
    assert {piece.shape[1] for piece in pieces[:-1]} <= {samples}
    torch.testing.assert_close(torch.cat(pieces, dim=1), read_audio(sounds[rate]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("extension", ["mp3", "ogg", "opus", "flac"])
def test_mono_in_compressed_files_is_repeated(tmp_path: Path, extension: str) -> None:
    rate = 48000 if extension == "opus" else 44100
    options = {"format": "OGG", "subtype": "OPUS"} if extension == "opus" else {}
    path = write_raw(tmp_path / f"x.{extension}", noisy_tones(1.5, rate, channels=1), rate, **options)
    with AudioReader(path, channels=3) as reader:
        audio = torch.cat(list(reader.blocks(7000)), dim=1)
    assert audio.shape[0] == 3
    torch.testing.assert_close(audio, read_audio(path, channels=3), atol=1e-6, rtol=0)


def test_what_is_wrong_in_the_middle_is_an_error(tmp_path: Path) -> None:
    frames = noisy_tones(2.0, 48000)
    frames[60000] = np.nan
    path = write_raw(tmp_path / "nan.wav", frames, 48000, subtype="FLOAT")
    with AudioReader(path) as reader:
        pieces = reader.blocks(48000)
        next(pieces)
        with pytest.raises(AudioFileError, match="2 NaN or infinite samples among 96000"):
            next(pieces)
    path = write_raw(tmp_path / "cut.flac", noisy_tones(2.0, 48000), 48000)
    path.write_bytes(path.read_bytes()[:-50000])
    with AudioReader(path) as reader, pytest.raises(AudioFileError, match=r"cut short"):
        list(reader.blocks(48000))
    with pytest.raises(AudioFileError, match="has 6 channels"):
        AudioReader(write_raw(tmp_path / "six.wav", np.zeros((10, 6)), 48000))


@pytest.mark.parametrize("extension", sorted(WRITABLE))
def test_pieces_make_one_file(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"x{extension}"
    audio = torch.from_numpy(noisy_tones(0.5, 48000).T).float().clamp(-0.99, 0.99)
    with AudioWriter(path, sample_rate=48000, channels=2) as writer:
        for piece in (audio[:, :7], audio[:, 7:7], audio[:, 7:20000], audio[:, 20000:]):
            writer.write(piece)
            assert not path.exists()
        writer.close()
    assert soundfile.info(path).subtype == "PCM_24"
    torch.testing.assert_close(read_audio(path), audio, atol=2**-23, rtol=0)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("failure", ["exception", "forgotten", "nan"])
def test_an_unfinished_file_leaves_the_old_one(tmp_path: Path, failure: str) -> None:
    path = write_raw(tmp_path / "x.wav", noisy_tones(0.1, 48000), 48000)
    before = path.read_bytes()
    with (  # noqa: PT012
        pytest.raises((AudioFileError, KeyboardInterrupt)) as caught,
        AudioWriter(path, sample_rate=48000, channels=2) as writer,
    ):
        writer.write(torch.zeros(2, 100))
        if failure == "exception":
            raise KeyboardInterrupt
        if failure == "nan":
            writer.write(torch.full((2, 3), torch.nan))
    assert caught.type is (KeyboardInterrupt if failure == "exception" else AudioFileError)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["x.wav"]


_KILLED = """
import os, signal, sys, torch
from datamodules.audio.blocks import AudioWriter
writer = AudioWriter(sys.argv[1], sample_rate=48000, channels=2)
writer.write(torch.zeros(2, 48000))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with AudioWriter(path, sample_rate=48000, channels=2) as writer:
        assert not left.exists()
        writer.write(torch.zeros(2, 100))
        with AudioWriter(path, sample_rate=48000, channels=2) as other:  # the first one is still at work
            other.close()
        writer.close()
    assert [one.name for one in tmp_path.iterdir()] == ["x.wav"]
    assert soundfile.info(path).frames == 100


def test_a_file_in_no_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"missing/x\.wav.*cannot be written: No such file or directory"):
        AudioWriter(tmp_path / "missing" / "x.wav", sample_rate=48000, channels=2)


def test_a_wav_file_ends_before_its_header_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.audio.blocks._LARGEST_BYTES", 6000)
    for extension, samples in ((".wav", 1001), (".aiff", 1001), (".flac", 5000), (".w64", 5000)):
        path = tmp_path / f"x{extension}"
        with AudioWriter(path, sample_rate=48000, channels=2) as writer:
            writer.write(torch.zeros(2, samples - 1))
            if samples == 1001:
                with pytest.raises(AudioFileError, match=r"4 GB that (WAV|AIFF) allows; write \.flac, \.caf or \.w64"):
                    writer.write(torch.zeros(2, 1))
            writer.close()
        assert soundfile.info(path).frames == samples - 1
