"""One track to pieces: known answers, nothing clipped, nothing lost at the seams, the same bytes every time."""

from __future__ import annotations

import errno
import io
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from music_files import noisy_tones, write_raw
from typing_extensions import Buffer

from datamodules.audio.files import AudioFileError, read_audio
from datamodules.preparing.transcoding import ReadBackError, Source, Transcoded, even_lengths, transcode
from datamodules.shards.encodings import ENCODINGS, PieceWriter, samples_digest


def transcoded(
    source: Source | Path, encoding: str, *, rate: int = 48000, channels: int = 2, longest: float = 1e9
) -> tuple[Transcoded, list[np.ndarray], list[bytes]]:
    """The result, the pieces as read by libsndfile `[frames, channels]`, and their files' bytes."""
    source = source if isinstance(source, Source) else Source((source,))
    with ExitStack() as opened:
        result, files = transcode(
            source,
            ENCODINGS[encoding],
            lambda: opened.enter_context(tempfile.TemporaryFile()),
            sample_rate=rate,
            channels=channels,
            longest_seconds=longest,
        )
        contents = []
        for file in files:
            file.seek(0)
            contents.append(file.read())
    pieces = [soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True) for content in contents]
    assert {piece_rate for _, piece_rate in pieces} == {rate}
    return result, [audio for audio, _ in pieces], contents


@pytest.mark.parametrize(("encoding", "subtype"), [("pcm16", "PCM_16"), ("flac16", "PCM_16"), ("flac24", "PCM_24")])
def test_integers_come_out_unchanged(tmp_path: Path, encoding: str, subtype: str) -> None:
    bits = 16 if subtype == "PCM_16" else 24
    extremes = np.array([[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], [0, -1]], np.int64)
    random = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (20000, 2))
    frames = np.concatenate([extremes, random])
    path = write_raw(tmp_path / "a.wav", (frames << (32 - bits)).astype(np.int32), 48000, subtype=subtype)
    result, (audio,), _ = transcoded(path, encoding)
    assert np.array_equal(audio * 2.0 ** (bits - 1), frames)
    assert (result.gain_db, result.channels, result.lengths) == (0.0, 2, (20002,))


def test_floats_come_out_unchanged_beyond_full_scale(tmp_path: Path) -> None:
    frames = (3 * noisy_tones(1.0, 48000)).astype(np.float32)
    assert np.abs(frames).max() > 1.2
    path = write_raw(tmp_path / "a.wav", frames, 48000, subtype="FLOAT")
    result, (audio,), _ = transcoded(path, "float32")
    assert np.array_equal(audio, frames)
    assert result.peak == pytest.approx(np.abs(frames).max())


@pytest.mark.parametrize("encoding", ["pcm16", "flac16", "flac24"])
def test_what_would_clip_is_scaled_as_a_whole(tmp_path: Path, encoding: str) -> None:
    frames = 4 * noisy_tones(2.0, 48000)
    path = write_raw(tmp_path / "a.wav", frames, 48000, subtype="FLOAT")
    result, pieces, _ = transcoded(path, encoding, longest=0.7)
    assert len(pieces) == 3
    assert result.gain_db == pytest.approx(-20 * np.log10(np.abs(frames).max()), abs=1e-4)
    assert np.allclose(np.concatenate(pieces), frames * 10 ** (result.gain_db / 20), atol=2.0**-15)


def test_a_full_scale_square_wave_does_not_clip_when_it_is_resampled(tmp_path: Path) -> None:
    square = np.sign(np.sin(2 * np.pi * 997 * np.arange(44100) / 44100))[:, None].repeat(2, 1)
    path = write_raw(tmp_path / "a.wav", square, 44100, subtype="PCM_24")
    result, (audio,), _ = transcoded(path, "pcm16")
    expected = read_audio(path).T.numpy()
    assert np.abs(expected).max() > 1.1
    assert np.allclose(audio / 10 ** (result.gain_db / 20), expected, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 96000, 192000])
def test_pieces_side_by_side_are_the_resampled_file(tmp_path: Path, rate: int) -> None:
    path = write_raw(tmp_path / "a.flac", noisy_tones(2.3, rate) / 2, rate)
    _, pieces, _ = transcoded(path, "float32", longest=0.5)
    assert torch.allclose(torch.from_numpy(np.concatenate(pieces).T), read_audio(path), atol=1e-6)


def test_parts_are_summed_and_short_ones_end_in_silence(tmp_path: Path) -> None:
    stereo = write_raw(tmp_path / "drums.wav", noisy_tones(2.0, 48000, 1) / 3, 48000, subtype="FLOAT")
    mono = write_raw(tmp_path / "bass.wav", noisy_tones(1.2, 48000, 2, channels=1) / 3, 48000, subtype="FLOAT")
    other = write_raw(tmp_path / "other.wav", noisy_tones(1.5, 44100, 3) / 3, 44100, subtype="FLOAT")
    result, (audio,), _ = transcoded(Source((stereo, mono, other)), "float32")
    expected = read_audio(stereo)
    for part in (read_audio(mono), read_audio(other)):
        expected[:, : part.shape[1]] += part
    assert torch.allclose(torch.from_numpy(audio.T), expected, atol=1e-6)
    assert result.channels == 2


def test_mono_stays_mono(tmp_path: Path) -> None:
    frames = noisy_tones(1.0, 48000, channels=1)
    path = write_raw(tmp_path / "a.wav", frames, 48000, subtype="FLOAT")
    result, (audio,), _ = transcoded(path, "float32")
    assert result.channels == 1
    assert np.array_equal(audio, frames.astype(np.float32))


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_the_same_music_gives_the_same_bytes(tmp_path: Path, encoding: str) -> None:
    path = write_raw(tmp_path / "a.ogg", noisy_tones(1.5, 44100), 44100)
    first, second = (transcoded(path, encoding, longest=1.0)[2] for _ in range(2))
    assert first == second
    if ENCODINGS[encoding].is_plain:
        assert [len(content) for content in first] == [ENCODINGS[encoding].expected_bytes(36000, 2)] * 2


def test_what_is_read_back_is_compared(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(0.5, 48000), 48000)

    class FailingDisk(io.BytesIO):
        def flush(self) -> None:
            self.getbuffer()[5000] ^= 1

    with pytest.raises(ReadBackError, match="reads differently"):
        transcode(Source((path,)), ENCODINGS["pcm16"], FailingDisk, sample_rate=48000, channels=2)


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_every_changed_sample_changes_the_digest(encoding: str) -> None:
    kind = ENCODINGS[encoding]
    audio = torch.from_numpy(noisy_tones(0.1, 48000).T.astype(np.float32))
    digests = set()
    for change in (0.0, 2.0**-14):
        file = io.BytesIO()
        audio[1, 4321] += change
        writer = PieceWriter(file, kind, sample_rate=48000, channels=2, samples=4800)
        writer.write(audio)
        digest = writer.close()
        assert samples_digest(file, kind) == digest
        digests.add(digest)
    assert len(digests) == 2


def test_a_file_that_changed_since_its_scan_is_an_error(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(0.5, 48000), 48000)
    with pytest.raises(AudioFileError, match=r"has changed since it was scanned.*data scan"):
        transcoded(Source((path,), frames=23999, sample_rate=48000), "pcm16")
    transcoded(Source((path,), frames=24000, sample_rate=48000), "pcm16")


@pytest.mark.parametrize("bad", ["eight channels", "NaN", "truncated", "empty", "text"])
def test_bad_files_are_errors(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.wav"
    frames = noisy_tones(0.5, 48000, channels=8 if bad == "eight channels" else 2)
    if bad == "NaN":
        frames[777, 1] = np.nan
    write_raw(path, frames, 48000, subtype="FLOAT")
    if bad == "truncated":
        path.write_bytes(path.read_bytes()[:50000])
    if bad in ("empty", "text"):
        path.write_bytes(b"" if bad == "empty" else b"no audio")
    with pytest.raises(AudioFileError):
        transcoded(path, "pcm16")


@given(samples=st.integers(1, 10**9), longest=st.integers(1000, 10**9))
@settings(max_examples=50)
def test_even_lengths(samples: int, longest: int) -> None:
    if samples / longest > 10**4:
        return
    lengths = even_lengths(samples, longest)
    assert sum(lengths) == samples
    assert max(lengths) <= longest
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("encoding", ["pcm16", "flac24"])
def test_a_full_disk_is_what_it_is(tmp_path: Path, encoding: str) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(3.0, 48000), 48000)

    class FullDisk(io.BytesIO):
        def write(self, content: Buffer) -> int:
            if self.tell() + memoryview(content).nbytes > 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    with pytest.raises(OSError, match="No space left"):
        transcode(Source((path,)), ENCODINGS[encoding], FullDisk, sample_rate=48000, channels=2)
