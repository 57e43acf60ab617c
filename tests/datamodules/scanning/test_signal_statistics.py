"""Signals whose statistics are known, and any cutting into pieces."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from music_files import noisy_tones

from datamodules.scanning.signal_statistics import AverageSpectrum, ClippedRuns, StereoEnergies

BIN = 48000 / 4096


def _fed(statistic: object, audio: np.ndarray, cuts: list[int] | None = None) -> None:
    for piece in np.split(audio.astype(np.float32), cuts or [], axis=1):
        statistic.add(piece)  # type: ignore[attr-defined]


def _spectrum(audio: np.ndarray) -> AverageSpectrum:
    spectrum = AverageSpectrum(48000, len(audio))
    _fed(spectrum, audio)
    return spectrum


def _sine(bin_number: int, amplitude: float = 1.0, samples: int = 48000) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * bin_number * np.arange(samples) / 4096)[None]


def test_a_full_scale_sine_reads_0_db_in_its_bin() -> None:
    levels = _spectrum(_sine(100)).levels_db()

    assert int(np.argmax(levels)) == 100
    assert levels[100] == pytest.approx(0, abs=1e-3)
    assert _spectrum(_sine(100, 0.1)).levels_db()[100] == pytest.approx(-20, abs=1e-3)


def test_the_bandwidth_is_the_highest_bin_above_the_floor() -> None:
    audio = _sine(300, 0.5) + _sine(1500, 10 ** (-89 / 20)) + _sine(1800, 10 ** (-91 / 20))

    # The Hann window's neighbours lie 6 dB below.
    assert _spectrum(audio).bandwidth_hz(-90) == pytest.approx(1500 * BIN)


def test_rounding_to_16_bits_is_a_floor_of_minus_130_db() -> None:
    rounded = np.round(noisy_tones(3, 48000).T * 1e-3 * 2**15) / 2**15
    quantized = _sine(10, 0.5, 3 * 48000) + np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 48000) / 2**15

    assert np.median(_spectrum(quantized).levels_db()[100:]) == pytest.approx(-130, abs=1.5)
    assert _spectrum(rounded - rounded).bandwidth_hz(-90) is None


def test_less_than_a_window_is_a_spectrum_too() -> None:
    assert _spectrum(_sine(500, samples=1000)).bandwidth_hz(-40) == pytest.approx(500 * BIN, rel=0.2)


@given(lengths=st.lists(st.integers(0, 9000), min_size=1, max_size=5))
def test_the_spectrum_does_not_depend_on_the_pieces(lengths: list[int]) -> None:
    audio = np.random.default_rng(1).standard_normal((2, sum(lengths)))
    cut = AverageSpectrum(48000, 2)
    _fed(cut, audio, list(np.cumsum(lengths))[:-1])

    np.testing.assert_allclose(cut.levels_db(), _spectrum(audio).levels_db(), atol=1e-3)


def _clipped_by_definition(channel: list[float]) -> int:
    """Counted sample by sample."""
    clipped = 0
    for sign in (1, -1):
        extreme = max(sign * sample for sample in channel)
        run = 0
        for sample in [*channel, math.nan]:
            if sign * sample == extreme >= 10 ** (-3 / 20):
                run += 1
            else:
                clipped += run if run >= 3 else 0
                run = 0
    return clipped


@given(
    channel=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_runs_are_those_counted_sample_by_sample_however_cut(channel: list[float], cuts: list[int]) -> None:
    runs = ClippedRuns(1)
    _fed(runs, np.array([channel]), sorted(min(cut, len(channel)) for cut in cuts))

    assert runs.share() == pytest.approx(_clipped_by_definition(channel) / len(channel))
    assert runs.peak == max(map(abs, channel))


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        (lambda sine: np.sign(sine) + (sine == 0), 1.0),
        (lambda sine: 0.9 * np.clip(2 * sine, -1, 1), 2 / 3),  # clipped, then made softer: |sin| > 1/2
        (lambda sine: 0.5 * np.sign(sine), 0.0),  # a soft square wave is music
        (lambda sine: sine, 0.0),
        (lambda sine: 0 * sine, 0.0),
    ],
    ids=["square", "attenuated", "soft-square", "sine", "silence"],
)
def test_clipping_of_known_signals(signal: Callable[[np.ndarray], np.ndarray], expected: float) -> None:
    runs = ClippedRuns(1)
    _fed(runs, signal(_sine(37)), [1000, 1001, 30000])

    assert runs.share() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("right", "expected"),
    [(1.0, -math.inf), (-1.0, math.inf), (0.0, 0.0), (0.5, 20 * math.log10(0.5 / 1.5))],
)
def test_side_to_mid_of_known_pairs(right: float, expected: float) -> None:
    energies = StereoEnergies()
    left = noisy_tones(1, 8000, channels=1).T
    _fed(energies, np.concatenate([left, right * left]), [5, 6000])

    assert energies.side_to_mid_db() == pytest.approx(expected, abs=1e-5)


def test_silence_has_no_width() -> None:
    energies = StereoEnergies()
    _fed(energies, np.zeros((2, 100)))

    assert energies.side_to_mid_db() is None
