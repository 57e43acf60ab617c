import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_music import SAMPLE_RATE, music

from reports.metrics import spectral as metrics
from reports.metrics.score import Score


def stft_distance(reference: torch.Tensor, estimate: torch.Tensor) -> Score:
    return metrics.spectral_distances(reference, estimate).stft


ALL = [metrics.mel_distance, stft_distance, metrics.si_sdr, metrics.log_spectral_distance]


def slaney_filters(n_fft: int, bands: int) -> np.ndarray:
    """Slaney's triangles of equal area from their formula: linear to 1 kHz, then 27 steps per factor 6.4."""

    def to_mel(hz: float) -> float:
        return hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.maximum(mel - 15, 0) * math.log(6.4) / 27))

    corners = to_hz(np.linspace(0, to_mel(SAMPLE_RATE / 2), bands + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre))
    return np.maximum(triangles, 0) * 2 / (high - low)


def magnitudes(audio: np.ndarray, n_fft: int) -> np.ndarray:
    padded = np.pad(audio, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    starts = range(0, padded.shape[1] - n_fft + 1, n_fft // 4)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = np.stack([padded[:, start : start + n_fft] * window for start in starts], axis=-1)
    return np.abs(np.fft.rfft(frames, axis=1))


def distance(x: np.ndarray, y: np.ndarray) -> float:
    log_x, log_y = (np.log10(np.maximum(m, 1e-5) ** 2) for m in (x, y))
    return float(np.abs(log_x - log_y).mean() + np.abs(x - y).mean())


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    reference = music()
    return reference, 0.9 * reference + 0.003 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(5))


def test_mel_and_stft_distance_match_an_independent_version(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = (audio.double().numpy() for audio in pair)
    stft = sum(distance(magnitudes(x, n), magnitudes(y, n)) for n in (2048, 512))
    mel = sum(
        distance(slaney_filters(n, bands) @ magnitudes(x, n), slaney_filters(n, bands) @ magnitudes(y, n))
        for n, bands in ((2048, 150), (512, 80))
    )
    assert metrics.mel_distance(*pair).value == pytest.approx(mel, rel=1e-5)
    assert stft_distance(*pair).value == pytest.approx(stft, rel=1e-4)


@pytest.mark.parametrize("metric", [metrics.mel_distance, stft_distance, metrics.log_spectral_distance])
def test_a_copy_has_no_distance(metric) -> None:
    reference = music()
    assert metric(reference, reference.clone()) == (0.0, "")


def test_half_the_level_is_six_db_of_log_spectral_distance() -> None:
    noise = 0.1 * torch.randn(2, 48000)
    assert metrics.log_spectral_distance(noise, noise / 2).value == pytest.approx(20 * math.log10(2), abs=1e-3)


def test_log_spectral_distance_of_silence_is_bounded_by_its_floor() -> None:
    assert 0 < metrics.log_spectral_distance(music(), torch.zeros(2, 72000)).value <= 80


@given(gain=st.floats(0.01, 100), ratio_db=st.floats(-10, 60))
def test_si_sdr_ignores_gain_and_tells_the_ratio(gain: float, ratio_db: float) -> None:
    # Noise made orthogonal to the signal, and both without mean: the ratio is then exactly the one put in.
    signal, noise = (audio - audio.mean() for audio in torch.randn(2, 2, 4800, dtype=torch.float64).unbind())
    noise = noise - (noise.flatten() @ signal.flatten()) / signal.square().sum() * signal
    noise *= 10 ** (-ratio_db / 20) * signal.norm() / noise.norm()
    score = metrics.si_sdr(signal, gain * (signal + noise))
    assert score.value == pytest.approx(ratio_db, abs=1e-6)


def test_what_si_sdr_cannot_say_has_a_reason() -> None:
    reference = music()
    copy, nothing = metrics.si_sdr(reference, 0.5 * reference), metrics.si_sdr(reference, torch.zeros_like(reference))
    assert math.isnan(copy.value)
    assert "equals the reference" in copy.reason
    assert math.isnan(nothing.value)
    assert "nothing of the reference" in nothing.reason


@pytest.mark.parametrize("metric", ALL)
@pytest.mark.parametrize(
    ("reference", "estimate", "reason"),
    [
        (torch.zeros(2, 4800), torch.randn(2, 4800), "the reference is silent"),
        (1e-5 * torch.randn(2, 4800), torch.randn(2, 4800), "the reference is silent"),  # -100 dBFS
        (torch.randn(2, 4800), torch.full((2, 4800), torch.nan), "the output is not finite"),
        (torch.randn(2, 2047), torch.randn(2, 2047), "shorter than one analysis window (2048 samples)"),
    ],
)
def test_undefined_stays_missing_with_a_reason(metric, reference, estimate, reason) -> None:
    score = metric(reference, estimate)
    assert math.isnan(score.value)
    assert score.reason == reason


@pytest.mark.parametrize("metric", ALL)
def test_lengths_are_never_trimmed(metric) -> None:
    with pytest.raises(ValueError, match=r"\[2, 4800\] and \[2, 4799\].*align"):
        metric(torch.randn(2, 4800), torch.randn(2, 4799))


def test_level_of_a_full_scale_sine_is_minus_three() -> None:
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(48000, dtype=torch.float64) / SAMPLE_RATE)
    assert metrics.level_dbfs(sine) == pytest.approx(-10 * math.log10(2), abs=1e-6)
