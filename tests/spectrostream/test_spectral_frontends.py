"""What the features of each spectral front-end are: known answers for tones, noise and moduli."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.frontends import MDCT, ComplexSTFT, PowerSTFT
from spectrostream.frontends.power_stft import power_law

HOP = 480
STFT, TRANSFORM, POWER = ComplexSTFT(), MDCT(), PowerSTFT()


def tone(bin_: int, samples: int, phase: float = 0.0) -> Tensor:
    """A cosine in the middle of an STFT bin."""
    return torch.cos(2 * math.pi * bin_ * torch.arange(samples, dtype=torch.float64) / (2 * HOP) + phase).float()


def white(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 2, samples, generator=torch.Generator().manual_seed(seed))


def pink(samples: int) -> Tensor:
    """Noise of unit variance, flat up to 100 Hz, then down by 3 dB per octave, as the spectrum of music roughly is."""
    spectrum = torch.fft.rfft(white(samples))
    falling = torch.fft.irfft(spectrum / torch.fft.rfftfreq(samples, 1 / 48000).clamp(min=100).sqrt())
    return falling / falling.std()


@pytest.mark.parametrize("bin_", [2, 37, 240, 477])
def test_a_tone_lands_in_its_bin_with_its_phase(bin_):
    # unscaled: half the window's sum, 240; frame m starts at phase pi * bin * m
    features = STFT.analysis(tone(bin_, 4800)[None, None])
    assert (features[0].square().sum(0)[:-1].argmax(-1) == bin_).all()
    sign = torch.tensor([(-1.0) ** (bin_ * frame) for frame in range(9)])
    torch.testing.assert_close(features[0, 0, :9, bin_], 240 * sign, rtol=0, atol=0.05)
    torch.testing.assert_close(features[0, 1, :9, bin_], torch.zeros(9), rtol=0, atol=0.05)
    # a cosine ahead by 90 degrees is +imaginary
    ahead = STFT.analysis(tone(bin_, 4800, math.pi / 2)[None, None])
    torch.testing.assert_close(ahead[0, 1, :9, bin_], 240 * sign, rtol=0, atol=0.05)


def test_features_are_left_real_left_imaginary_right_real_right_imaginary():
    left, right = tone(10, 960), tone(20, 960, math.pi / 2)
    for front_end, loud in ((STFT, 200), (POWER, 4.5)):
        features = front_end.analysis(torch.stack((left, right))[None])[0, :, 0]
        loudest = {(row, bin_) for row in range(4) for bin_ in range(480) if features[row, bin_].abs() > loud}
        assert loudest == {(0, 10), (3, 20)}


@pytest.mark.slow
@settings(max_examples=30)
@given(samples=st.integers(1, 2500), seed=st.integers(0, 2**31))
def test_the_mdct_is_the_sum_that_its_docstring_gives(samples, seed):
    audio = white(samples, seed)
    frames = -(-samples // HOP)
    n, m = torch.arange(2 * HOP, dtype=torch.float64)[:, None], torch.arange(HOP, dtype=torch.float64)
    basis = math.sqrt(3) / 2 * (math.pi / 960 * (n + 0.5)).sin() * (math.pi / 480 * (n + 0.5 + 240) * (m + 0.5)).cos()
    padded = torch.nn.functional.pad(audio.double(), (0, (frames + 1) * HOP - samples))
    expected = padded.unfold(-1, 2 * HOP, HOP) @ basis
    torch.testing.assert_close(TRANSFORM.analysis(audio).double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("bin_", [3, 100, 460])
def test_a_tone_between_two_mdct_coefficients_lands_in_both(bin_):
    features = TRANSFORM.analysis(tone(bin_, 4800)[None, None])[0, 0, :9]
    energy = features.square()
    # coefficient m stands for 50 (m + 1/2) Hz, so a tone of 50 * bin_ Hz lies between bin_ - 1 and bin_
    assert (energy[:, bin_ - 1 : bin_ + 1].sum(-1) / energy.sum(-1) > 0.9).all()


@pytest.mark.slow
@given(samples=st.integers(1, 2000), seed=st.integers(0, 2**31))
def test_the_mdct_keeps_energy_and_has_as_many_numbers_as_samples(samples, seed):
    # an orthogonal transform times sqrt(180), once every sample lies in two frames
    audio = torch.nn.functional.pad(white(samples, seed), (HOP, 0))
    features = TRANSFORM.analysis(audio)
    assert features.numel() == 2 * (-(-audio.shape[-1] // HOP)) * HOP
    torch.testing.assert_close(features.double().square().sum(), 180 * audio.double().square().sum(), rtol=1e-5, atol=0)


def test_the_start_of_an_mdct_signal_is_an_orthogonal_projection():
    audio = white(HOP)
    once = TRANSFORM.synthesis(TRANSFORM.analysis(audio))
    twice = TRANSFORM.synthesis(TRANSFORM.analysis(once))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)  # what came back comes back again
    torch.testing.assert_close((once * (audio - once)).sum(), torch.tensor(0.0), rtol=0, atol=1e-3)
    # 240 of the 480 numbers: half of the energy of white noise
    assert 0.4 < once.square().sum() / audio.square().sum() < 0.6


@pytest.mark.parametrize("signal", [white, pink])
def test_mdct_features_are_as_large_as_the_stfts(signal):
    audio = signal(96000)
    rms = [front_end.analysis(audio).square().mean().sqrt() for front_end in (TRANSFORM, STFT)]
    assert 0.95 < rms[0] / rms[1] < 1.05


def moduli_and_phases(features: Tensor) -> tuple[Tensor, Tensor]:
    values = torch.complex(features[:, 0::2], features[:, 1::2])
    return values.abs(), values.angle()


def test_moduli_are_compressed_and_phases_kept():
    audio = pink(4800)
    moduli, phases = moduli_and_phases(STFT.analysis(audio))
    compressed, same_phases = moduli_and_phases(POWER.analysis(audio))
    torch.testing.assert_close(compressed, moduli.clamp(min=1e-4) ** 0.3, rtol=1e-5, atol=0)
    assert ((same_phases - phases).cos() > 1 - 1e-6).all()


def test_sixty_decibels_become_eighteen():
    audio = pink(4800)
    loud = STFT.analysis(audio).abs() > 1  # a thousandth of it is far above the threshold
    assert loud.float().mean() > 0.5
    quiet, whole = POWER.analysis(audio / 1000), POWER.analysis(audio)
    torch.testing.assert_close(quiet[loud], 10**-0.9 * whole[loud], rtol=1e-4, atol=0)


@pytest.mark.parametrize("gain", [1.0, 1e-4, 1e-8])
def test_audio_comes_back_on_either_side_of_the_threshold(gain):
    audio = gain * pink(4800)
    peak = float(audio.abs().max())
    expected = STFT.synthesis(STFT.analysis(audio))
    torch.testing.assert_close(POWER.synthesis(POWER.analysis(audio)), expected, rtol=0, atol=1e-5 * peak)


@pytest.mark.slow
@given(
    exponent=st.floats(0.2, 1.0),
    threshold=st.floats(1e-5, 1.0),
    modulus=st.floats(1e-8, 1e3),
    phase=st.floats(-math.pi, math.pi),
)
def test_the_power_law_has_an_exact_inverse_of_its_own_kind(exponent, threshold, modulus, phase):
    value = torch.tensor([modulus * math.cos(phase), modulus * math.sin(phase)], dtype=torch.float64)[
        None, :, None, None
    ]
    there = power_law(value, exponent, threshold)
    back = power_law(there, 1 / exponent, threshold**exponent)
    torch.testing.assert_close(back, value, rtol=1e-9, atol=1e-15)
    slope = threshold ** (exponent - 1)
    expected = modulus**exponent if modulus > threshold else modulus * slope
    torch.testing.assert_close(there.norm(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("exponent", [0.3, 1 / 0.3])
def test_the_power_laws_gradients(exponent):
    # around the threshold, below it, and at zero, where the slope is the linear piece's
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 0.1):
        values = size * torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=generator)
        assert torch.autograd.gradcheck(lambda x: power_law(x, exponent, 0.5), values.requires_grad_())
    zero = torch.zeros(1, 2, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(power_law(zero, exponent, 1e-4).sum(), zero)
    torch.testing.assert_close(gradient, torch.full_like(zero, 1e-4 ** (exponent - 1)))
