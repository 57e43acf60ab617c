"""MP3 files with quiet and loud music, with and without the frame that says how long they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from music_files import noisy_tones

from datamodules.audio.blocks import AudioReader
from datamodules.audio.files import AudioFileError, probe, read_audio, verify_ends
from datamodules.audio.mp3_length import frame_samples, header_of, samples_to_decode_before, uncounted
from datamodules.scanning.measuring import measure

ENCODER_DELAY = 576  # of LAME, in samples; the tag names it, and the decoder leaves it out
DECODER_DELAY = 529
ID3_NAME = b"TPE1" + (5).to_bytes(4, "big") + b"\0\0" + b"\0Mira"


def _pauses_and_music(seconds: float, sample_rate: int, channels: int = 2) -> np.ndarray:
    """Frames `[frames, channels]`: quarters of seconds that are silent, quiet or loud, in a random order."""
    frames = noisy_tones(seconds, sample_rate, channels=channels)
    quarter = sample_rate // 4
    gains = np.random.default_rng(0).choice([0.0, 0.0, 0.02, 1.0], len(frames) // quarter + 1)
    return frames * np.repeat(gains, quarter)[: len(frames), None]


def _written(
    path: Path, frames: np.ndarray, sample_rate: int, *, mode: str = "VARIABLE", compression: float = 0.5
) -> Path:
    with soundfile.SoundFile(
        path,
        "w",
        sample_rate,
        frames.shape[1],
        "MPEG_LAYER_III",
        format="MP3",
        bitrate_mode=mode,
        compression_level=compression,
    ) as file:
        for start in range(0, len(frames), 4096):
            file.write(frames[start : start + 4096])
    return path


def _without_tag(content: bytes) -> bytes:
    """The file without its first frame, which says how long it is."""
    first = header_of(content[:4])
    assert first is not None
    assert content[4 + first.side_bytes :][:4] in (b"Xing", b"Info")
    return content[first.size :]


def _id3(payload: bytes) -> bytes:
    size = len(payload)
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + payload


def _require_same_parts(path: Path, whole: torch.Tensor, sample_rate: int, length: int = 2000) -> None:
    starts = np.arange(int(10.1 * sample_rate), whole.shape[1] - length, sample_rate // 8).tolist()
    assert len(starts) > 100
    for start in starts:
        part = read_audio(
            path,
            sample_rate=sample_rate,
            channels=len(whole),
            start_seconds=start / sample_rate,
            duration_seconds=length / sample_rate,
        )
        torch.testing.assert_close(part, whole[:, start : start + length], atol=1e-5, rtol=0)


# ---- parts


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize(("sample_rate", "channels"), [(48000, 2), (44100, 1), (32000, 2), (24000, 2), (22050, 1)])
def test_parts_after_pauses_equal_the_whole(tmp_path: Path, sample_rate: int, channels: int, mode: str) -> None:
    """After a pause the bit reservoir reaches far back."""
    frames = _pauses_and_music(28.0, sample_rate, channels)
    # Where it is tried whether the file can be sought in, there must be music.
    frames[int(9.9 * sample_rate) : int(13.2 * sample_rate)] = noisy_tones(3.3, sample_rate, channels=channels)
    path = _written(tmp_path / "x.mp3", frames, sample_rate, mode=mode)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    _require_same_parts(path, torch.from_numpy(whole.T), sample_rate)


@pytest.mark.parametrize(
    ("sample_rate", "channels", "frames"),
    # (96 bytes - 4 of header - 2 of CRC - 32 of side information) go 9 times into 511, and so on.
    [
        (48000, 2, 9 + 2),
        (44100, 2, 8 + 2),
        (44100, 1, 7 + 2),
        (24000, 2, 255 + 2),
        (24000, 1, 29 + 2),
        (8000, 2, 6 + 2),
    ],
)
def test_how_far_back_the_bit_reservoir_reaches(sample_rate: int, channels: int, frames: int) -> None:
    assert samples_to_decode_before(sample_rate, channels) == frames * frame_samples(sample_rate)


# ---- length


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize("compression", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("sample_rate", "channels"), [(44100, 2), (48000, 1), (22050, 2)])
def test_a_file_that_does_not_say_its_length_is_read_whole(
    tmp_path: Path, sample_rate: int, channels: int, mode: str, compression: float
) -> None:
    frames = _pauses_and_music(6.0, sample_rate, channels)
    path = _written(tmp_path / "x.mp3", frames, sample_rate, mode=mode, compression=compression)
    expected = read_audio(path, sample_rate=sample_rate, channels=channels)
    assert expected.shape[1] == len(frames)
    path.write_bytes(_without_tag(path.read_bytes()))
    found = uncounted(path)
    assert found is not None
    length = verify_ends(path).frames
    assert length == found.frames * frame_samples(sample_rate) - DECODER_DELAY >= len(frames)
    audio = read_audio(path, sample_rate=sample_rate, channels=channels)
    assert audio.shape[1] == length == measure([path]).frames
    torch.testing.assert_close(audio[:, ENCODER_DELAY : ENCODER_DELAY + len(frames)], expected)
    with AudioReader(path, sample_rate=sample_rate, channels=channels) as reader:
        assert torch.equal(torch.cat(list(reader.blocks(10000)), dim=1), audio)


@pytest.mark.slow
def test_parts_of_a_file_that_does_not_say_its_length_equal_the_whole(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.mp3", _pauses_and_music(28.0, 44100), 44100)
    path.write_bytes(_without_tag(path.read_bytes()))
    _require_same_parts(path, read_audio(path, sample_rate=44100), 44100)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (_id3(ID3_NAME + bytes(200_000)), b""),  # with a picture
        (_id3(ID3_NAME) + _id3(bytes(70_000)), b"TAG" + bytes(125)),
        (np.random.default_rng(0).bytes(900), b""),
        (b"", b"APETAGEX" + np.random.default_rng(1).bytes(100_000)),
    ],
    ids=["picture", "two tags", "noise", "APE"],
)
def test_what_stands_around_the_music_is_not_music(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = _written(tmp_path / "x.mp3", noisy_tones(3.0, 44100), 44100, mode="CONSTANT")
    content = _without_tag(path.read_bytes())
    path.write_bytes(content)
    expected = read_audio(path)
    path.write_bytes(before + content + after)
    assert torch.equal(read_audio(path), expected)
    assert verify_ends(path).frames == probe(path).frames
    assert probe(path).artist == ("Mira" if ID3_NAME in before else "")


def test_a_file_that_was_cut_short_is_shorter_where_nothing_says_its_length(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.mp3", noisy_tones(3.0, 44100), 44100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioFileError, match="cut short"):
        verify_ends(path)
    without = _without_tag(content)
    path.write_bytes(without[: len(without) // 2])
    assert 1.3 < verify_ends(path).duration_seconds < 1.7
    assert read_audio(path, sample_rate=44100).shape[1] == probe(path).frames


def test_a_hole_in_the_music_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.mp3", noisy_tones(3.0, 44100), 44100)
    content = _without_tag(path.read_bytes())
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(50_000) + content[half:])
    with pytest.raises(AudioFileError, match="broken or cut short"):
        read_audio(path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists open files")
def test_files_that_do_not_say_their_length_are_closed(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.mp3", noisy_tones(1.0, 44100), 44100)
    path.write_bytes(_without_tag(path.read_bytes()))
    read_audio(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        verify_ends(path)
        read_audio(path, start_seconds=0.5, duration_seconds=0.1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- frames


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("fffb9044", 417),  # 128 kbps at 44.1 kHz
        ("fffb9244", 418),  # padded
        ("fffbe444", 960),  # 320 kbps at 48 kHz
        ("fff3e4c4", 480),  # 160 kbps at 24 kHz, mono
        ("ffe31844", 72),  # 8 kbps at 8 kHz
        ("fffa9044", 417),  # with a CRC
        ("fffd9044", None),  # layer II
        ("fffb0044", None),  # free format
        ("fffbf044", None),
        ("fffb9c44", None),
        ("ffeb9044", None),  # no such version
        ("fffb90", None),
    ],
)
def test_the_size_of_a_frame(header: str, size: int | None) -> None:
    found = header_of(bytes.fromhex(header))
    assert (found.size if found else None) == size


@given(
    version=st.sampled_from((0xE2, 0xF2, 0xFA)),
    rate=st.integers(0, 2),
    frames=st.lists(st.tuples(st.integers(1, 14), st.booleans(), st.booleans()), min_size=2, max_size=50),
    cut=st.integers(0, 20),
    before=st.binary(max_size=50),
)
def test_frames_of_any_bitrates_are_counted(
    tmp_path_factory: pytest.TempPathFactory,
    version: int,
    rate: int,
    frames: list[tuple[int, bool, bool]],
    cut: int,
    before: bytes,
) -> None:
    content = b""
    for bitrate, is_padded, has_no_crc in frames:
        header = bytes((0xFF, version | has_no_crc, bitrate << 4 | rate << 2 | is_padded << 1, 0x44))
        found = header_of(header)
        assert found is not None
        content += header + bytes(found.size - 4)
    path = tmp_path_factory.mktemp("frames") / "x.mp3"
    before = before.replace(b"\xff", b"").replace(b"ID3", b"")
    path.write_bytes(before + content[: len(content) - cut])
    counted = uncounted(path)
    assert counted is not None
    assert counted.first == len(before)
    assert counted.frames == len(frames) - (cut > 0)


@given(content=st.binary(max_size=300))
def test_no_bytes_are_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mp3"
    for start in (b"", b"ID3\x03\0\0\0\0\0\x05", b"\xff\xfb\x90\x44" + bytes(413) + b"\xff\xfb\x90\x44"):
        path.write_bytes(start + content)
        found = uncounted(path)
        assert found is None or found.frames <= len(start + content) // 24 + 1
