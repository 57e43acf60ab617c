"""Damaged files are audio of the promised shape or an `AudioFileError`: no other exception, no crash, no memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import damaged_audio
import numpy as np
import pytest
import soundfile
from damaged_audio import FORMATS, KINDS, NUMBERS, Edit, damaged, music, outcomes, with_ogg_checksums
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.audio import opening as audio_opening
from datamodules.audio.files import probe, read_audio, verify_ends
from datamodules.audio.opening import AudioFileError, decode
from datamodules.scanning.measuring import measure

pytestmark = pytest.mark.processes

EDITS = st.lists(
    st.builds(
        Edit,
        kind=st.sampled_from(KINDS),
        in_header=st.booleans(),
        place=st.floats(0, 1),
        size=st.integers(1, 2000),
        content=st.binary(min_size=1, max_size=40),
        number=st.one_of(st.sampled_from(NUMBERS), st.integers(0, 2**64 - 1)),
        width=st.sampled_from((1, 2, 4, 8)),
        order=st.sampled_from(("little", "big")),
        other=st.floats(0, 1),
    ),
    min_size=1,
    max_size=4,
)
SEEDS = 300


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "music.wav"


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_damaged_is_audio(file: Path, name: str) -> None:
    file.write_bytes(music(name))
    assert set(outcomes(file)) == {"audio"}


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=30)
@given(edits=EDITS)
def test_damage_is_audio_or_an_explained_error(file: Path, name: str, edits: list[Edit]) -> None:
    file.write_bytes(damaged(music(name), edits))
    outcomes(file)


@settings(max_examples=40)
@given(edits=EDITS)
def test_damage_behind_right_checksums_is_audio_or_an_explained_error(file: Path, edits: list[Edit]) -> None:
    file.write_bytes(with_ogg_checksums(damaged(music("ogg"), edits)))
    outcomes(file)


def test_checksums_are_those_of_ogg() -> None:
    assert with_ogg_checksums(music("ogg")) == music("ogg")


def test_no_damage_takes_much_memory_or_time_or_ends_the_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, damaged_audio.__file__, str(tmp_path), "0", str(SEEDS)], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-3000:])
    assert len(lines) == SEEDS


# ---- headers that promise too much


def _with_number(content: bytes, at: int, number: int, width: int, order: str) -> bytes:
    return content[:at] + number.to_bytes(width, order) + content[at + width :]  # type: ignore[arg-type]


def _endless_mp3() -> bytes:
    content = music("mp3")
    return _with_number(content, content.index(b"Xing") + 8, 2**31, 4, "big")  # of 1152 frames each


def _hours_of_flac() -> bytes:
    # STREAMINFO begins at byte 8, and its 36 bits of frames in the middle of its byte 13.
    return _with_number(music("flac"), 8 + 14, 2**27, 4, "big")


def _rate(hertz: int) -> Callable[[], bytes]:
    return lambda: _with_number(music("wav16"), 24, hertz, 4, "little")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_endless_mp3, r"promises 2473901\d+ frames, which \d+ bytes cannot hold"),
        (_rate(1), r"sample rate of 1 Hz; allowed are 4000 Hz and more"),
        (_rate(2**32 - 1), r"has a sample rate of|cannot be read as audio"),
    ],
)
@pytest.mark.parametrize("read", [probe, verify_ends, read_audio, lambda path: measure([path])])
def test_a_header_that_cannot_be_true_is_refused_when_it_is_opened(
    file: Path, content: Callable[[], bytes], reason: str, read: Callable[[Path], object]
) -> None:
    file.write_bytes(content())
    with pytest.raises(AudioFileError, match=reason):
        read(file)


def test_memory_grows_with_the_file_and_not_with_its_promise(file: Path) -> None:
    file.write_bytes(_hours_of_flac())
    assert probe(file).frames == 2**27  # 1 GB of float32
    tracemalloc.start()
    try:
        with pytest.raises(AudioFileError, match="cut short"):
            read_audio(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * audio_opening._BLOCK_FRAMES * 2 * 4


def test_the_shortest_and_the_emptiest_files_are_no_false_alarm(tmp_path: Path) -> None:
    silence = np.zeros((8 * 48000, 2))
    for name, (container, subtype) in {**FORMATS, "opus": ("OGG", "OPUS")}.items():
        for frames in (silence, silence[:1]):
            path = tmp_path / f"{name}.wav"
            with soundfile.SoundFile(path, "w", 48000, 2, subtype, format=container) as written:
                for start in range(0, len(frames), 48000):
                    written.write(frames[start : start + 48000])
            assert probe(path).frames == len(frames), name


@pytest.mark.parametrize("value", [1e10, -3e38])
def test_samples_that_no_recording_has_are_an_error(file: Path, value: float) -> None:
    frames = np.zeros((4800, 2), np.float32)
    frames[100, 1] = value
    soundfile.write(file, frames, 48000, subtype="FLOAT")
    for read in (read_audio, lambda path: measure([path])):
        with pytest.raises(AudioFileError, match=f"as large as {abs(value):.3g}, full scale is 1".replace("+", r"\+")):
            read(file)


def test_integers_that_were_written_as_floats_are_read(file: Path) -> None:
    soundfile.write(file, np.full((100, 2), -(2.0**31)), 48000, subtype="FLOAT")
    assert read_audio(file).min() == -(2**31)


def test_blocks_of_a_long_stretch_join(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(music("ogg"))
    whole, _ = soundfile.read(file, dtype="float32")
    monkeypatch.setattr(audio_opening, "_BLOCK_FRAMES", 1001)
    with soundfile.SoundFile(file) as opened:
        assert np.array_equal(decode(opened, 10**9), whole.T)
        assert decode(opened, 1).shape == (2, 0)


def test_a_position_beyond_the_end_is_the_end(file: Path) -> None:
    """In MP3 files whose channels change, libsndfile's position runs ahead of its length."""

    class Ahead:
        frames, channels = 100, 2

        def tell(self) -> int:
            return 300

    assert decode(Ahead(), 1).shape == (2, 0)
