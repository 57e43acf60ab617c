"""Files whose measurements are known; what cannot be measured says why."""

from __future__ import annotations

import math
import tracemalloc
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from music_files import noisy_tones, write_raw
from scipy.signal import butter, firwin, lfilter, sosfilt

from datamodules.audio.opening import AudioFileError
from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.corpora.manifest import COLUMNS
from datamodules.scanning import measuring
from datamodules.scanning.measuring import Measurement, measure, measure_header

DEMO = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))


def _written(path: Path, frames: np.ndarray, rate: int = 48000, subtype: str = "FLOAT") -> Measurement:
    return measure([write_raw(path, frames, rate, subtype=subtype)])


def _sine(seconds: float = 2.0, frequency: float = 997.0, rate: int = 48000) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)[:, None]


def test_every_field_is_a_column() -> None:
    assert {field.name for field in fields(Measurement)} < set(COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.stem)
def test_real_music_has_the_loudness_and_the_header_that_others_read(path: Path) -> None:
    frames, rate = soundfile.read(path, always_2d=True)

    measured = measure([path])

    assert measured.loudness_lufs == pytest.approx(pyloudnorm.Meter(rate).integrated_loudness(frames), abs=0.01)
    assert measured.peak_dbfs == pytest.approx(20 * math.log10(np.abs(frames).max()), abs=1e-4)
    assert (measured.sample_rate, measured.channels, measured.frames) == (rate, frames.shape[1], len(frames))
    assert measured.duration_seconds == len(frames) / rate
    assert 1000 < measured.bandwidth_hz <= rate / 2
    left, right = frames.T[0], frames.T[-1]
    width = 10 * math.log10(np.square(left - right).sum() / np.square(left + right).sum())
    assert measured.side_to_mid_db == pytest.approx(width, abs=1e-3)


def test_a_sine_is_measured_as_what_it_is(tmp_path: Path) -> None:
    measured = _written(tmp_path / "sine.wav", 0.1 * np.repeat(_sine(), 2, axis=1))

    assert measured.loudness_lufs == pytest.approx(-20, abs=0.05)
    assert measured.peak_dbfs == pytest.approx(-20, abs=1e-3)
    assert measured.side_to_mid_db == -math.inf
    assert measured.bandwidth_hz == pytest.approx(997, abs=80)  # the window's skirt
    assert (measured.clipped_share, measured.silent_share) == (0, 0)
    assert (measured.container, measured.subtype) == ("WAV", "FLOAT")


def test_a_square_wave_at_full_scale_clips(tmp_path: Path) -> None:
    square = np.where(_sine() >= 0, 1.0, -1.0)

    for subtype in ("PCM_16", "FLOAT"):
        measured = _written(tmp_path / f"{subtype}.wav", square, subtype=subtype)

        assert measured.clipped_share == pytest.approx(1, abs=1e-3)
        assert measured.peak_dbfs == pytest.approx(0, abs=1e-3)
        assert measured.side_to_mid_db is None  # mono


@pytest.mark.parametrize("cutoff", [4000, 11000, 16000])
def test_low_passed_noise_has_its_bandwidth(tmp_path: Path, cutoff: int) -> None:
    noise = 0.3 * np.random.default_rng(0).standard_normal((96000, 2)).clip(-3, 3)
    soft = lfilter(firwin(1023, cutoff, fs=48000, window=("kaiser", 12)), 1, noise, axis=0)

    measured = _written(tmp_path / "low.wav", soft, subtype="PCM_16")

    assert measured.bandwidth_hz == pytest.approx(cutoff, abs=300)
    assert measured.side_to_mid_db == pytest.approx(0, abs=0.3)


def test_silence_is_measured_without_a_warning(tmp_path: Path) -> None:
    measured = _written(tmp_path / "silence.flac", np.zeros((48000, 2)), subtype="PCM_16")

    assert (measured.silent_share, measured.clipped_share) == (1, 0)
    assert measured.loudness_lufs is measured.peak_dbfs is measured.side_to_mid_db is measured.bandwidth_hz is None
    assert measured.content_hash


def test_the_silent_share_counts_blocks_of_100_ms(tmp_path: Path) -> None:
    frames = 0.1 * _sine(4)
    frames[: 3 * 48000] *= 10 ** (-42 / 20)  # RMS of -65 dB

    assert _written(tmp_path / "rest.wav", frames).silent_share == pytest.approx(0.75)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 6, 8])
def test_other_rates_and_channels_are_measured(tmp_path: Path, rate: int, channels: int) -> None:
    frames = np.repeat(0.1 * _sine(1, rate=rate), channels, axis=1)

    measured = _written(tmp_path / "other.wav", frames, rate)

    assert (measured.sample_rate, measured.channels) == (rate, channels)
    # The mean of many channels counts as one; at 8 kHz the bilinear shelf is 0.2 dB low.
    assert measured.loudness_lufs == pytest.approx(-23, abs=0.25)
    assert measured.side_to_mid_db is None


@settings(max_examples=15)
@given(frames=st.integers(1, 30000), channels=st.integers(1, 3), block=st.integers(1, 70000))
def test_no_length_of_blocks_changes_a_measurement(
    tmp_path_factory: pytest.TempPathFactory, frames: int, channels: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.wav"
    write_raw(path, noisy_tones(1, 30000, channels=channels)[:frames], 8000, subtype="PCM_16")
    whole = asdict(measure([path]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_BLOCK_SAMPLES", max(block, frames * channels // 100))
        cut = asdict(measure([path]))

    for name, value in whole.items():
        assert cut[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), name


def test_one_frame_is_a_measurement(tmp_path: Path) -> None:
    measured = _written(tmp_path / "one.wav", np.array([[0.5, 0.25]]))

    assert measured.frames == 1
    assert measured.peak_dbfs == pytest.approx(-6.0206, abs=1e-3)


# ---- the hash


def test_the_same_music_hashes_alike_in_every_lossless_container(tmp_path: Path) -> None:
    frames = np.round(noisy_tones(1, 44100).clip(-0.9, 0.9) * 2**15) / 2**15
    formats = (("a.wav", "PCM_16"), ("a.flac", "PCM_16"), ("b.wav", "PCM_24"), ("b.flac", "PCM_24"), ("c.wav", "FLOAT"))

    hashes = {_written(tmp_path / name, frames, 44100, subtype).content_hash for name, subtype in formats}

    assert len(hashes) == 1


def test_other_music_another_rate_and_other_channels_hash_otherwise(tmp_path: Path) -> None:
    frames = np.round(noisy_tones(1, 44100) * 2**15) / 2**15
    louder = frames.copy()
    louder[17, 1] += 2**-15
    variants = [(frames, 44100), (frames, 48000), (louder, 44100), (frames[:-1], 44100), (frames.reshape(-1, 1), 44100)]

    hashes = [_written(tmp_path / f"{i}.wav", *variant).content_hash for i, variant in enumerate(variants)]

    assert len(set(hashes)) == len(variants)


def test_a_negative_zero_is_a_zero(tmp_path: Path) -> None:
    plus = _written(tmp_path / "plus.wav", np.array([[0.0], [0.5]]))
    minus = _written(tmp_path / "minus.wav", np.array([[-0.0], [0.5]]))

    assert plus.content_hash == minus.content_hash


# ---- several parts


def test_parts_are_measured_as_their_sum(tmp_path: Path) -> None:
    stems = [np.round(0.3 * noisy_tones(1.5, 44100, seed) * 2**15) / 2**15 for seed in range(4)]
    stems[2] = stems[2][:50000]  # stems of MoisesDB end with their last note
    paths = [write_raw(tmp_path / f"{i}.wav", stem, 44100, subtype="PCM_24") for i, stem in enumerate(stems)]
    stems[2] = np.pad(stems[2], ((0, len(stems[0]) - 50000), (0, 0)))

    parts, mixture = measure(paths), _written(tmp_path / "mix.wav", sum(stems), 44100)

    assert asdict(parts) | {"subtype": "FLOAT"} == asdict(mixture)


def test_a_mono_part_sounds_in_each_channel(tmp_path: Path) -> None:
    mono, stereo = 0.1 * noisy_tones(1, 44100, channels=1), 0.1 * noisy_tones(1, 44100)
    paths = [write_raw(tmp_path / "a.wav", mono, 44100), write_raw(tmp_path / "b.wav", stereo, 44100)]

    measured = measure(paths)

    assert measured.channels == 2
    assert measured.peak_dbfs == pytest.approx(20 * math.log10(np.abs(mono + stereo).max()), abs=0.01)


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (44100, 3)])
def test_a_part_that_does_not_fit_is_named(tmp_path: Path, rate: int, channels: int) -> None:
    paths = [
        write_raw(tmp_path / "a.wav", noisy_tones(0.5, 44100), 44100),
        write_raw(tmp_path / "odd.wav", noisy_tones(0.5, rate, channels=channels), rate),
    ]

    for measuring_of in (measure, measure_header):
        with pytest.raises(AudioFileError, match=r"parts must be alike, or mono"):
            measuring_of(paths)


# ---- files that cannot be measured


def test_headers_only_leaves_the_rest_empty(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.flac", noisy_tones(1, 44100).clip(-1, 1), 44100)

    header = measure_header([path])

    assert (header.frames, header.container, header.subtype) == (44100, "FLAC", "PCM_16")
    assert header.content_hash == ""
    assert header.loudness_lufs is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_is_no_number_is_an_error(tmp_path: Path, value: float) -> None:
    frames = noisy_tones(3, 48000)
    frames[-5, 1] = value
    with pytest.raises(AudioFileError, match="1 NaN or infinite samples"):
        _written(tmp_path / "nan.wav", frames)


def _broken(kind: str, folder: Path) -> Path:
    good = write_raw(folder / "good.flac", noisy_tones(3, 44100).clip(-1, 1), 44100)
    content = good.read_bytes()
    bad = folder / "bad.flac"
    if kind == "folder":
        bad.mkdir()
    elif kind != "missing":
        bad.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no music" * 100}[kind])
    return bad


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "folder", "missing"])
def test_a_bad_file_says_why(tmp_path: Path, kind: str) -> None:
    path = _broken(kind, tmp_path)
    for measuring_of in (measure, measure_header):
        with pytest.raises(AudioFileError, match=r"bad\.flac"):
            measuring_of([path])


def test_a_sample_rate_that_no_music_has_is_an_error(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "slow.wav", noisy_tones(1, 100), 100)

    for measuring_of in (measure, measure_header):
        with pytest.raises(AudioFileError, match="100 Hz; allowed are 4000 Hz and more"):
            measuring_of([path])


@settings(max_examples=25)
@given(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=40))
@pytest.mark.parametrize("suffix", [".flac", ".wav", ".ogg"])
def test_damage_is_measured_or_an_explained_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = write_raw(folder / f"a{suffix}", noisy_tones(0.3, 44100).clip(-1, 1), 44100)
    damaged = bytearray(path.read_bytes())
    at = int(place * (len(damaged) - 1))
    damaged[at : at + len(content)] = content
    path.write_bytes(damaged)
    with suppress(AudioFileError):  # nothing else may escape
        measured = measure([path])
        assert measured.frames > 0
        assert len(measured.content_hash) == 32


@pytest.mark.slow
def test_a_long_file_is_measured_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    piece = sosfilt(butter(2, 0.5, output="sos"), noisy_tones(10, 48000).clip(-1, 1), axis=0)
    with soundfile.SoundFile(path, "w", 48000, 2, "PCM_16") as file:
        for _ in range(12):
            file.write(piece)
    measure([path])  # what stays for ever, such as the filters
    tracemalloc.start()
    measure([path])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 25e6  # two minutes of it are 46 MB
