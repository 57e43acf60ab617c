from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from damaged_audio import with_ogg_checksums
from music_files import noisy_tones, write_raw
from torch import Tensor

from datamodules.audio import resampling, seeking
from datamodules.audio.blocks import AudioReader, AudioWriter
from datamodules.audio.files import AudioFileError, probe, read_audio, verify_ends
from datamodules.audio.opening import ForwardFile, decode, open_audio
from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.scanning.measuring import measure


def write_as(path: Path, frames: np.ndarray, sample_rate: int) -> Path:
    extension = path.suffix[1:]
    options = {"opus": {"format": "OGG", "subtype": "OPUS"}, "wav": {"subtype": "PCM_24"}}.get(extension, {})
    return write_raw(path, frames, sample_rate, **options)


@pytest.mark.parametrize(
    ("extension", "sample_rate"),
    [
        ("wav", 48000),
        ("wav", 44100),
        ("flac", 44100),
        ("flac", 48000),
        ("ogg", 44100),
        ("ogg", 48000),
        ("opus", 48000),
        ("mp3", 44100),
        ("wav", 96000),
        ("wav", 22050),
        ("wav", 8000),
        ("wav", 11025),
    ],
)
def test_a_part_equals_the_same_part_of_the_whole(tmp_path: Path, extension: str, sample_rate: int) -> None:
    path = write_as(tmp_path / f"x.{extension}", noisy_tones(3.0, sample_rate), sample_rate)
    whole = read_audio(path)
    assert whole.shape == (2, -(-probe(path).frames * 48000 // sample_rate))
    for start, duration in ((0.0, 0.5), (1 / 48000, 0.1), (0.73211, 1.28), (2.2, 0.7999), (1.9999, None)):
        part = read_audio(path, start_seconds=start, duration_seconds=duration)
        first = round(start * 48000)
        expected = whole[:, first:] if duration is None else whole[:, first : first + round(duration * 48000)]
        assert part.shape == expected.shape
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)


def test_pieces_of_a_long_file_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path / "x.wav", noisy_tones(2.0, 44100), 44100, subtype="FLOAT")
    whole = read_audio(path)
    monkeypatch.setattr(resampling, "_BLOCK_SAMPLES", 7001)
    torch.testing.assert_close(read_audio(path), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frequency", [1000.0, 15000.0, 20500.0])
def test_a_tone_keeps_frequency_phase_and_amplitude(tmp_path: Path, frequency: float) -> None:
    tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(44100) / 44100)
    path = write_raw(tmp_path / "tone.wav", tone, 44100, subtype="FLOAT")
    resampled = read_audio(path, channels=1)[0, 4000:-4000].double()
    time = torch.arange(4000, 48000 - 4000, dtype=torch.float64) / 48000
    torch.testing.assert_close(resampled, 0.5 * torch.sin(2 * np.pi * frequency * time), atol=1e-4, rtol=0)


def test_a_tone_above_the_new_nyquist_frequency_vanishes(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 30000 * np.arange(96000) / 96000)
    path = write_raw(tmp_path / "tone.wav", tone, 96000, subtype="FLOAT")
    assert read_audio(path)[:, 4000:-4000].abs().max() < 1e-4


def test_mono_is_repeated_in_every_channel(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "mono.wav", noisy_tones(0.5, 48000, channels=1), 48000)
    audio = read_audio(path)
    assert audio.shape == (2, 24000)
    assert torch.equal(audio[0], audio[1])
    assert read_audio(path, channels=1).shape == (1, 24000)


@pytest.mark.parametrize(
    ("subtype", "step"),
    [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 2**-24), ("DOUBLE", 2**-24)],
)
def test_every_sample_format_becomes_float32(tmp_path: Path, subtype: str, step: float) -> None:
    frames = noisy_tones(0.1, 48000)
    audio = read_audio(write_raw(tmp_path / "x.wav", frames, 48000, subtype=subtype))
    assert audio.dtype == torch.float32
    torch.testing.assert_close(audio.double(), torch.from_numpy(frames.T.copy()), atol=step, rtol=0)


@pytest.mark.parametrize("extension", ["wav", "flac", "aiff", "caf", "w64", "au"])
@pytest.mark.parametrize("channels", [1, 2])
def test_all_integers_of_16_bits_are_the_floats_that_libsndfile_makes(
    tmp_path: Path, extension: str, channels: int
) -> None:
    frames = np.arange(-(2**15), 2**15, dtype=np.int16).reshape(-1, channels)
    path = write_raw(tmp_path / f"x.{extension}", frames, 48000, subtype="PCM_16")
    expected = torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T)
    assert torch.equal(read_audio(path, channels=channels), expected)
    assert torch.equal(
        read_audio(path, channels=channels, start_seconds=0.25, duration_seconds=0.4), expected[:, 12000:31200]
    )


def test_reads_that_follow_each_other_join(tmp_path: Path) -> None:
    """Without the seeks that soundfile does after each read."""
    for extension in ("wav", "flac", "ogg", "mp3", "opus"):
        path = write_as(tmp_path / f"x.{extension}", noisy_tones(2.0, 48000), 48000)
        whole = soundfile.read(path, dtype="float32", always_2d=True)[0].T
        with open_audio(path) as file:
            parts = [decode(file, frames) for frames in (1, 1000, 40000, 7, 100_000)]
            assert file.tell() == file.frames
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_values_beyond_full_scale_are_kept(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "loud.wav", np.full((480, 2), 1.5), 48000, subtype="FLOAT")
    assert torch.equal(read_audio(path), torch.full((2, 480), 1.5))


def test_one_sample_is_a_file(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "one.wav", np.full((1, 2), 0.5), 48000)
    assert read_audio(path).shape == (2, 1)


@pytest.mark.parametrize("name", ["with space.wav", "🎵 ünïcode.flac", "new\nline.wav"])
def test_unusual_names(tmp_path: Path, name: str) -> None:
    assert read_audio(write_raw(tmp_path / name, noisy_tones(0.1, 48000), 48000)).shape == (2, 4800)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX file names may be any bytes")
def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    source = write_raw(tmp_path / "x.wav", noisy_tones(0.1, 48000), 48000)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    try:
        source.rename(odd)
    except OSError:
        pytest.skip("this filesystem allows Unicode names only")
    assert read_audio(odd).shape == (2, 4800)
    assert _write(odd, torch.zeros(2, 10)) == 0


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.wav").write_text("this is not audio\n" * 100)
    (tmp_path / "folder.wav").mkdir()
    write_raw(tmp_path / "no frames.wav", np.zeros((0, 2)), 48000)
    write_raw(tmp_path / "six.wav", np.zeros((100, 6)), 48000)
    for name, reason in (
        ("zero.wav", r"is empty \(0 bytes\)"),
        ("text.wav", "libsndfile says: Format not recognised"),
        ("folder.wav", r"is not a regular file"),
        ("no frames.wav", "0 frames"),
        ("six.wav", "has 6 channels, allowed are 1 or 2"),
        ("missing.wav", "No such file"),
    ):
        with pytest.raises(AudioFileError, match=reason) as caught:
            read_audio(tmp_path / name)
        assert name in str(caught.value)
        assert name not in caught.value.reason
    with pytest.raises(AudioFileError, match=r"2 channels, allowed are 1;"):
        read_audio(write_raw(tmp_path / "stereo.wav", np.zeros((100, 2)), 48000), channels=1)


def test_a_file_that_vanishes_while_it_is_opened_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path / "brief.wav", noisy_tones(0.1, 48000), 48000)

    class Late(ForwardFile):
        def __init__(self, name: bytes) -> None:
            path.unlink()
            super().__init__(name)

    monkeypatch.setattr("datamodules.audio.opening.ForwardFile", Late)
    with pytest.raises(AudioFileError, match=r"brief.wav': cannot be opened: No such file or directory"):
        open_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_counted(tmp_path: Path, value: float) -> None:
    frames = noisy_tones(0.5, 44100)
    frames[1000:1003, 1] = value
    path = write_raw(tmp_path / "bad.wav", frames, 44100, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="3 NaN or infinite samples among 44100"):
        read_audio(path)


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "aiff", "w64", "caf", "au"])
@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path, extension: str, kept: float) -> None:
    path = write_raw(tmp_path / f"x.{extension}", noisy_tones(3.0, 48000), 48000)
    assert verify_ends(path).frames == 144000
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(AudioFileError, match=r"cut short|malformed"):
        read_audio(path)
    with pytest.raises(AudioFileError, match=r"cut short|malformed"):
        verify_ends(path)


def test_a_wav_file_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.wav", noisy_tones(0.5, 48000), 48000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert read_audio(path).shape == (2, 24000)


def test_damage_inside_a_flac_file_is_an_error(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.flac", noisy_tones(3.0, 48000), 48000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(AudioFileError, match="libsndfile says: flac decoder lost sync"):
        read_audio(path)


def test_a_part_outside_the_file_is_an_error(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.wav", noisy_tones(1.0, 44100), 44100)
    for start, duration in ((0.5, 0.6), (-0.1, 0.5), (1.0, None), (0.5, 0.0)):
        with pytest.raises(AudioFileError, match="48000 samples long at 48000 Hz"):
            read_audio(path, start_seconds=start, duration_seconds=duration)


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "GSM610"), ("wav", "G721_32"), ("au", "G723_24")])
def test_an_encoding_without_seeks_says_what_to_convert_it_to(tmp_path: Path, extension: str, subtype: str) -> None:
    path = write_raw(tmp_path / f"phone.{extension}", noisy_tones(3.0, 8000, channels=1), 8000, subtype=subtype)
    for read in (probe, verify_ends, read_audio, AudioReader, lambda path: measure([path])):
        with pytest.raises(AudioFileError, match=rf"coded as {subtype}, of which no part .*`ffmpeg -i IN OUT.flac`"):
            read(path)


def test_a_rate_without_common_divisor_names_the_remedy(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.wav", noisy_tones(0.1, 44101), 44101)
    with pytest.raises(AudioFileError, match=r"44101 Hz and 48000 Hz.*ffmpeg .* -ar 48000"):
        read_audio(path)


def _write(path: Path, audio: Tensor, subtype: str = "PCM_24") -> int:
    """The number of clipped samples."""
    with AudioWriter(path, sample_rate=48000, channels=len(audio), subtype=subtype) as writer:
        writer.write(audio)
        writer.close()
    return writer.clipped


@pytest.mark.parametrize(("name", "subtype"), [("x.wav", "PCM_24"), ("x.flac", "PCM_24"), ("x.WAV", "PCM_16")])
def test_what_is_written_is_read_back(tmp_path: Path, name: str, subtype: str) -> None:
    audio = torch.from_numpy(noisy_tones(0.2, 48000).T).float().clamp(-0.99, 0.99)
    assert _write(tmp_path / name, audio, subtype) == 0
    step = 2**-15 if subtype == "PCM_16" else 2**-23
    torch.testing.assert_close(read_audio(tmp_path / name), audio, atol=step, rtol=0)
    assert soundfile.info(tmp_path / name).subtype == subtype
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_clipping_is_counted(tmp_path: Path) -> None:
    audio = torch.tensor([[0.0, 1.5, -2.0, 1.0], [0.0, 0.0, 0.0, 1.1]])
    assert _write(tmp_path / "x.wav", audio) == 3
    torch.testing.assert_close(read_audio(tmp_path / "x.wav"), audio.clamp(-1, 1), atol=1e-6, rtol=0)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    _write(path, torch.zeros(2, 100))
    # Every format has a largest number of channels.
    for audio, reason in ((torch.full((2, 10), float("nan")), "NaN"), (torch.zeros(2000, 10), "libsndfile says")):
        with pytest.raises(AudioFileError, match=reason):
            _write(path, audio)
    with pytest.raises(AudioFileError, match=r"\.wav, \.flac"):
        _write(tmp_path / "x.mp3", torch.zeros(2, 10))
    assert read_audio(path).shape == (2, 100)
    assert [file.name for file in tmp_path.iterdir()] == ["x.wav"]


# The three 25 s excerpts were cut out of longer Vorbis streams, after which libsndfile seeks to wrong places.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["zalek2_whallon.ogg", "ambiphonic_zeropage.ogg", "ubports_duarte.ogg"])
def test_parts_of_the_demo_corpus_equal_the_whole(name: str) -> None:
    path = demo_corpus_root() / name
    info = probe(path)
    assert (info.sample_rate, info.channels) == (44100, 2)
    whole = read_audio(path)
    assert whole.shape == (2, -(-info.frames * 48000 // 44100))
    assert whole.isfinite().all()
    for start in (0.0, 0.15, 1.23456, 12.3456, 23.7):
        part = read_audio(path, start_seconds=start, duration_seconds=1.28)
        first = round(start * 48000)
        torch.testing.assert_close(part, whole[:, first : first + 61440], atol=1e-5, rtol=0)


def _lead_in_of(path: Path) -> int | None:
    """What was found out about seeking in a file."""
    known, status = seeking._lead_in_needed.cache_info().misses, path.stat()
    lead_ins = seeking._OGG_LEAD_INS if path.suffix != ".mp3" else (seeking.samples_to_decode_before(48000, 2),)
    lead_in = seeking._lead_in_needed(path, status.st_size, status.st_mtime_ns, lead_ins)
    assert seeking._lead_in_needed.cache_info().misses == known, "nothing was found out"
    return lead_in


@pytest.mark.slow
@pytest.mark.parametrize(("extension", "lead_in"), [("ogg", 0), ("opus", 0), ("mp3", 11 * 1152)])
def test_a_long_compressed_file_is_read_after_seeks(tmp_path: Path, extension: str, lead_in: int) -> None:
    path = write_as(tmp_path / f"x.{extension}", noisy_tones(20.0, 48000), 48000)
    whole = read_audio(path)
    for start in (0.01, 5.0, 9.9, 15.4321, 19.3):
        part = read_audio(path, start_seconds=start, duration_seconds=0.5)
        first = round(start * 48000)
        torch.testing.assert_close(part, whole[:, first : first + 24000], atol=1e-5, rtol=0)
    assert _lead_in_of(path) == lead_in


def test_silence_cannot_vouch_for_seeking(tmp_path: Path) -> None:
    frames = noisy_tones(16.0, 48000)
    frames[9 * 48000 : 14 * 48000] = 0
    path = write_as(tmp_path / "x.ogg", frames, 48000)
    part = read_audio(path, start_seconds=15.0, duration_seconds=0.5)
    torch.testing.assert_close(part, read_audio(path)[:, 720000:744000], atol=1e-5, rtol=0)
    assert _lead_in_of(path) is None


def _with_last_granule(content: bytes, more: int) -> bytes:
    """A Vorbis file whose last page promises so many frames more, as real files do."""
    place = content.rindex(b"OggS") + 6
    granule = int.from_bytes(content[place : place + 8], "little") + more
    return with_ogg_checksums(content[:place] + granule.to_bytes(8, "little") + content[place + 8 :])


@pytest.mark.parametrize("more", [1, 209, 8000])
def test_a_vorbis_file_may_end_a_block_before_what_it_says(tmp_path: Path, more: int) -> None:
    path = write_raw(tmp_path / "x.ogg", noisy_tones(1.0, 48000), 48000)
    before = read_audio(path)
    path.write_bytes(_with_last_granule(path.read_bytes(), more))
    promised = probe(path).frames
    assert promised > before.shape[1]
    audio = read_audio(path)
    assert audio.shape == (2, promised)
    assert torch.equal(audio[:, :48000], before)
    assert not audio[:, -1].any()
    with AudioReader(path) as reader:
        assert torch.equal(torch.cat(list(reader.blocks(1000)), dim=1), audio)


def test_more_than_a_block_is_cut_short(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.ogg", noisy_tones(1.0, 48000), 48000)
    path.write_bytes(_with_last_granule(path.read_bytes(), 100000))
    with pytest.raises(AudioFileError, match="cut short: its header promises"):
        read_audio(path)
