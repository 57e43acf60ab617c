"""DAC's losses against sums by hand, and its mel loss against Slaney's formulas and torchaudio."""

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.adversarial.dac_losses import (
    LogMelLoss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    summed_feature_matching_loss,
)

RATE = 48000
SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))


@pytest.fixture(scope="module")
def mel_loss() -> LogMelLoss:
    return LogMelLoss(RATE)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sine(frequency: float, samples: int = 4800) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * frequency / RATE * torch.arange(samples)).expand(1, 1, -1)


def test_least_squares_discriminator_known_answer_is_a_sum_over_scales() -> None:
    real = [torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]])]
    fake = [torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0]])]
    # scale 1: (0 + 4)/2 + (0 + 1)/2 = 2.5; scale 2: 1 + 4 = 5
    assert least_squares_discriminator_loss(real, fake).item() == pytest.approx(7.5)


def test_least_squares_generator_known_answer_is_a_sum_over_scales() -> None:
    # (1 + 1 + 0)/3 from three values, 4 from one
    fake = [torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[-1.0]])]
    assert least_squares_generator_loss(fake).item() == pytest.approx(2 / 3 + 4)


def test_least_squares_rest_at_their_targets() -> None:
    real, fake = torch.ones(2, 3), torch.zeros(2, 5)
    assert least_squares_discriminator_loss([real], [fake]).item() == 0
    assert least_squares_generator_loss([real]).item() == 0


def test_feature_matching_known_answer_is_a_sum_over_layers_and_scales() -> None:
    real = [[torch.zeros(1, 2), torch.zeros(1, 4)], [torch.ones(3)]]
    fake = [[torch.tensor([[1.0, -3.0]]), torch.ones(1, 4)], [torch.full((3,), 5.0)]]
    assert summed_feature_matching_loss(real, fake).item() == pytest.approx(2 + 1 + 4)


def test_feature_matching_moves_the_fake_side_alone() -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    summed_feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert torch.equal(fake.grad, torch.full((4,), 0.25))


def test_a_missing_scale_or_layer_is_an_error() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="zip"):
        least_squares_discriminator_loss([one], [one, one])
    with pytest.raises(ValueError, match="zip"):
        summed_feature_matching_loss([[one]], [[one, one]])
    with pytest.raises(ValueError, match="zip"):
        summed_feature_matching_loss([[one]], [[one], [one]])


def slaney_filters(window: int, mels: int) -> np.ndarray:
    """`[window/2 + 1, mels]` by Slaney's formulas: 3 per 200 Hz up to 1 kHz, then 27 per factor 6.4; unit area."""

    def to_hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    highest = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    corners = [to_hz(highest * number / (mels + 1)) for number in range(mels + 2)]
    bins = np.arange(window // 2 + 1) * RATE / window
    filters = []
    for low, centre, high in zip(corners, corners[1:], corners[2:], strict=False):
        triangle = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
        filters.append(2 / (high - low) * np.maximum(triangle, 0))
    return np.stack(filters, axis=1)


@pytest.mark.parametrize(("window", "mels"), SCALES)
def test_filters_are_slaney_s(mel_loss: LogMelLoss, window: int, mels: int) -> None:
    filters = mel_loss.get_buffer(f"filters_{window}").double().numpy()
    assert filters.shape == (window // 2 + 1, mels)
    expected = slaney_filters(window, mels)
    np.testing.assert_allclose(filters, expected, rtol=0, atol=1e-4 * expected.max())


def by_hand(decoded: Tensor, original: Tensor) -> float:
    """In float64, with torch.stft and the filters above."""
    total = 0.0
    for window, mels in SCALES:
        hann = torch.hann_window(window, periodic=True, dtype=torch.float64)
        logs = []
        for audio in (decoded, original):
            spectrum = torch.stft(
                audio.double().flatten(0, 1), window, window // 4, window=hann, pad_mode="reflect", return_complex=True
            )
            mel = torch.from_numpy(slaney_filters(window, mels)).T @ spectrum.abs()
            logs.append(mel.clamp(min=1e-5).log10())
        total += (logs[0] - logs[1]).abs().mean().item()
    return total


@pytest.mark.parametrize(
    ("decoded", "original"),
    [
        (sine(1000.0), sine(1500.0)),
        (sine(440.0), 0.1 * noise(1, 1, 4800)),
        (noise(2, 2, 3001), noise(2, 2, 3001, seed=1)),
    ],
    ids=["two sines", "a sine and noise", "stereo noise"],
)
def test_mel_loss_is_that_of_an_independent_computation(
    mel_loss: LogMelLoss, decoded: Tensor, original: Tensor
) -> None:
    # float32 leaves a sine's empty filters at its rounding noise, above the floor of the logarithm
    assert mel_loss(decoded, original).item() == pytest.approx(by_hand(decoded, original), rel=2e-2)


def test_mel_loss_of_noise_agrees_to_five_digits(mel_loss: LogMelLoss) -> None:
    decoded, original = noise(1, 2, 4800), noise(1, 2, 4800, seed=1)
    assert mel_loss(decoded, original).item() == pytest.approx(by_hand(decoded, original), rel=1e-5)


@pytest.mark.parametrize(("window", "mels"), SCALES[2:])
def test_log_mel_of_a_sine_is_torchaudio_s(mel_loss: LogMelLoss, window: int, mels: int) -> None:
    # shorter windows leave filters empty, of which torchaudio warns
    reference = torchaudio.transforms.MelSpectrogram(
        RATE, window, hop_length=window // 4, n_mels=mels, power=1.0, norm="slaney", mel_scale="slaney"
    )
    audio = sine(1000.0) + 0.01 * noise(1, 1, 4800)
    expected = reference(audio).clamp(min=1e-5).log10()[0].transpose(1, 2)
    torch.testing.assert_close(mel_loss.log_mel(audio, window), expected, rtol=1e-4, atol=1e-4)


def filled_filters(mel_loss: LogMelLoss) -> float:
    """Share of the filters that hold a bin, summed over scales."""
    return sum((mel_loss.get_buffer(f"filters_{w}").sum(dim=0) > 0).float().mean().item() for w, _ in SCALES)


def test_mel_loss_of_a_gain_is_known(mel_loss: LogMelLoss) -> None:
    # every filter that holds a bin differs by log10 2; the others count as equal
    original = noise(2, 2, 9600)
    expected = filled_filters(mel_loss) * math.log10(2)
    assert mel_loss(0.5 * original, original).item() == pytest.approx(expected, rel=1e-3)


def test_silence_lies_at_the_floor(mel_loss: LogMelLoss) -> None:
    silence = torch.zeros(1, 1, 2400)
    for window, _ in SCALES:
        assert (mel_loss.log_mel(silence, window) == -5).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12])
def test_mel_gradient_is_finite_at_silence(mel_loss: LogMelLoss, scale: float) -> None:
    decoded = (scale * noise(1, 2, 2400)).requires_grad_()
    loss = mel_loss(decoded, noise(1, 2, 2400, seed=1))
    loss.backward()
    assert loss.isfinite()
    assert decoded.grad is not None
    assert decoded.grad.isfinite().all()


def test_mel_gradient_is_known_and_leaves_the_original_alone(mel_loss: LogMelLoss) -> None:
    # louder in every filter by log10 of the gain g, whose slope at g is 1 / (g ln 10)
    original = noise(1, 2, 2400).requires_grad_()
    decoded = (2 * original.detach()).requires_grad_()
    mel_loss(decoded, original).backward()
    assert original.grad is None
    assert decoded.grad is not None
    slope = (decoded.grad * original.detach()).sum().item()
    assert slope == pytest.approx(filled_filters(mel_loss) / (2 * math.log(10)), rel=1e-3)


@settings(max_examples=15)
@given(batch=st.integers(1, 3), channels=st.integers(1, 2), samples=st.integers(1025, 2600))
def test_channels_and_examples_count_alike_at_any_length(
    mel_loss: LogMelLoss, batch: int, channels: int, samples: int
) -> None:
    decoded, original = noise(batch, channels, samples, seed=1), noise(batch, channels, samples, seed=2)
    parts = [
        mel_loss(one[None, None], other[None, None]).item()
        for one, other in zip(decoded.flatten(0, 1), original.flatten(0, 1), strict=True)
    ]
    assert mel_loss(decoded, original).item() == pytest.approx(sum(parts) / len(parts), rel=1e-4)
    assert mel_loss(original, original).item() == 0


def test_mel_loss_refuses_what_it_cannot_compare(mel_loss: LogMelLoss) -> None:
    with pytest.raises(ValueError, match=r"shapes \[1, 2, 3000\] and \[1, 2, 2999\]"):
        mel_loss(noise(1, 2, 3000), noise(1, 2, 2999))
    with pytest.raises(ValueError, match="1024 samples; it needs 1025 or more"):
        mel_loss(noise(1, 2, 1024), noise(1, 2, 1024))
