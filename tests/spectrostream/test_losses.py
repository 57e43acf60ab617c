import math

import pytest
import torch
from torch import Tensor

from spectrostream.adversarial.loss_catalog import LossWeights
from spectrostream.adversarial.losses import (
    MultiScaleMelLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)

WINDOWS = (64, 128, 256, 512, 1024, 2048)
# mean over scales of sqrt(w/2)
LOG_WEIGHT = sum(math.sqrt(window / 2) for window in WINDOWS) / len(WINDOWS)


@pytest.fixture(scope="module")
def mel_loss() -> MultiScaleMelLoss:
    return MultiScaleMelLoss(48000)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hinge_discriminator_known_answer() -> None:
    real = [torch.tensor([[2.0, 0.5]]), torch.tensor([[-1.0]])]
    fake = [torch.tensor([[-3.0, 0.0]]), torch.tensor([[1.0]])]
    # scale 1: (0 + 0.5)/2 + (0 + 1)/2 = 0.75; scale 2: 2 + 2 = 4
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((0.75 + 4) / 2)


def test_hinge_discriminator_rests_once_both_sides_are_beyond_the_margin() -> None:
    real = torch.full((2, 3), 1.5, requires_grad=True)
    loss = hinge_discriminator_loss([real], [torch.full((2, 5), -1.5)])
    loss.backward()
    assert loss.item() == 0
    assert real.grad is not None
    assert real.grad.abs().max() == 0


def test_hinge_generator_known_answer_weighs_scales_alike_whatever_their_length() -> None:
    # scale means 2 and -1 from 3 and 1 values
    assert hinge_generator_loss([torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[-1.0]])]).item() == pytest.approx(-0.5)


def test_feature_matching_known_answer() -> None:
    real = [[torch.zeros(1, 2), torch.zeros(1, 4)], [torch.ones(3)]]
    fake = [[torch.tensor([[1.0, -3.0]]), torch.ones(1, 4)], [torch.full((3,), 5.0)]]
    # scale 1: (2 + 1)/2; scale 2: 4
    assert feature_matching_loss(real, fake).item() == pytest.approx((1.5 + 4) / 2)


def test_feature_matching_moves_the_fake_side_alone() -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert torch.equal(fake.grad, torch.full((4,), 0.25))


def test_a_missing_scale_or_layer_is_an_error() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="zip"):
        hinge_discriminator_loss([one], [one, one])
    with pytest.raises(ValueError, match="zip"):
        feature_matching_loss([[one]], [[one, one]])


def test_losses_are_float32_for_half_precision_logits() -> None:
    half = [torch.tensor([[0.5]], dtype=torch.bfloat16)]
    for loss in (
        hinge_discriminator_loss(half, half),
        hinge_generator_loss(half),
        feature_matching_loss([half], [half]),
    ):
        assert loss.dtype == torch.float32


def test_mel_loss_of_the_original_is_zero(mel_loss: MultiScaleMelLoss) -> None:
    audio = noise(2, 2, 4800)
    assert mel_loss(audio, audio.clone()).item() == 0


def test_mel_loss_of_a_gain_is_known(mel_loss: MultiScaleMelLoss) -> None:
    original = 0.1 * noise(2, 2, 9600)
    loss = mel_loss.parts(0.5 * original, original)
    # |0.5 S - S| = 0.5 S, and log(0.5 S) - log S = log 0.5 wherever S is far above the floor
    mean = sum(mel_loss.mel_spectrogram(original, window).mean().item() for window in WINDOWS) / len(WINDOWS)
    assert loss.magnitude.item() == pytest.approx(0.5 * mean, rel=1e-4)
    assert loss.log_magnitude.item() == pytest.approx(LOG_WEIGHT * math.log(0.5) ** 2, rel=1e-3)
    total = mel_loss(0.5 * original, original)
    assert total.item() == pytest.approx(loss.magnitude.item() + loss.log_magnitude.item())


def test_silence_lies_at_the_log_floor(mel_loss: MultiScaleMelLoss) -> None:
    silence = torch.zeros(1, 1, 4096)
    tone = noise(1, 1, 4096)
    expected = 0.0
    for window in WINDOWS:
        log = (mel_loss.mel_spectrogram(tone, window) + 1e-5).log() - math.log(1e-5)
        expected += math.sqrt(window / 2) * log.square().mean().item() / len(WINDOWS)
    assert mel_loss.parts(silence, tone).log_magnitude.item() == pytest.approx(expected, rel=1e-5)


def test_channels_count_as_examples(mel_loss: MultiScaleMelLoss) -> None:
    decoded, original = noise(2, 2, 3000, seed=1), noise(2, 2, 3000, seed=2)
    folded = mel_loss(decoded.reshape(4, 1, -1), original.reshape(4, 1, -1))
    assert mel_loss(decoded, original).item() == pytest.approx(folded.item())


@pytest.mark.parametrize("window", WINDOWS)
def test_mel_spectrogram_is_that_of_torch_stft(mel_loss: MultiScaleMelLoss, window: int) -> None:
    audio = noise(1, 2, 5001)
    hann = torch.hann_window(window, periodic=True)
    spectrum = torch.stft(audio[0], window, window // 4, window=hann, pad_mode="reflect", return_complex=True)
    expected = spectrum.abs().transpose(1, 2) @ mel_loss.get_buffer(f"filters_{window}")
    torch.testing.assert_close(mel_loss.mel_spectrogram(audio, window), expected, rtol=1e-4, atol=1e-4)


def test_a_tone_falls_into_the_filters_around_its_frequency(mel_loss: MultiScaleMelLoss) -> None:
    # 1 kHz is 1000 mel (HTK: 2595 log10(1 + f/700)); 64 filters lie evenly between 0 and mel(24 kHz)
    tone = torch.sin(2 * math.pi * 1000 / 48000 * torch.arange(9600)).expand(1, 1, -1)
    spacing = 2595 * math.log10(1 + 24000 / 700) / 65
    loudest = mel_loss.mel_spectrogram(tone, 2048).mean(dim=(0, 1)).argmax().item()
    assert abs((loudest + 1) * spacing - 1000) < spacing


@pytest.mark.parametrize(("window", "filled"), [(64, 38), (128, 49), (256, 58), (512, 63), (1024, 64), (2048, 64)])
def test_empty_filters_are_left_out(mel_loss: MultiScaleMelLoss, window: int, filled: int) -> None:
    filters = mel_loss.get_buffer(f"filters_{window}")
    assert filters.shape == (window // 2 + 1, filled)
    assert (filters.sum(dim=0) > 0).all()


def test_mel_gradient_is_right(mel_loss: MultiScaleMelLoss) -> None:
    # along one direction, by central differences; float32 allows a per cent
    decoded, original, direction = noise(1, 1, 2400, seed=1), noise(1, 1, 2400, seed=2), noise(1, 1, 2400, seed=3)
    variable = decoded.clone().requires_grad_()
    mel_loss(variable, original).backward()
    assert variable.grad is not None
    slope = (variable.grad * direction).sum().item()
    step = 1e-3
    higher = mel_loss(decoded + step * direction, original).item()
    lower = mel_loss(decoded - step * direction, original).item()
    assert slope == pytest.approx((higher - lower) / (2 * step), rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12])
def test_mel_gradient_is_finite_at_silence(mel_loss: MultiScaleMelLoss, scale: float) -> None:
    decoded = (scale * noise(1, 2, 2400)).requires_grad_()
    loss = mel_loss(decoded, noise(1, 2, 2400, seed=1))
    loss.backward()
    assert decoded.grad is not None
    assert loss.isfinite()
    assert decoded.grad.isfinite().all()


def test_mel_loss_is_float32_under_autocast_and_for_bfloat16(mel_loss: MultiScaleMelLoss) -> None:
    decoded, original = noise(1, 2, 2400, seed=1), noise(1, 2, 2400, seed=2)
    expected = mel_loss(decoded, original)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mel_loss(decoded, original), expected)
    assert mel_loss(decoded.bfloat16(), original.bfloat16()).dtype == torch.float32


def test_mel_loss_gives_no_gradient_to_the_original(mel_loss: MultiScaleMelLoss) -> None:
    decoded, original = noise(1, 1, 1100, seed=1).requires_grad_(), noise(1, 1, 1100, seed=2).requires_grad_()
    mel_loss(decoded, original).backward()
    assert decoded.grad is not None
    assert original.grad is None


def test_mel_loss_has_no_state_to_save(mel_loss: MultiScaleMelLoss) -> None:
    assert mel_loss.state_dict() == {}
    assert list(mel_loss.parameters()) == []


def test_mel_loss_refuses_what_it_cannot_compare(mel_loss: MultiScaleMelLoss) -> None:
    with pytest.raises(ValueError, match=r"shapes \[1, 2, 3000\] and \[1, 2, 2999\]"):
        mel_loss(noise(1, 2, 3000), noise(1, 2, 2999))
    with pytest.raises(ValueError, match="1024 samples; it needs 1025 or more"):
        mel_loss(noise(1, 2, 1024), noise(1, 2, 1024))
    assert mel_loss(noise(1, 2, 1025), noise(1, 2, 1025)) == 0


def test_loss_weights_are_the_papers() -> None:
    weights = LossWeights()
    assert (weights.adversarial, weights.feature_matching, weights.mel, weights.commitment) == (1, 100, 1, 1)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("key", ["adversarial", "feature_matching", "mel", "commitment"])
def test_a_wrong_loss_weight_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"loss\.{key} is {value}; allowed: a finite number"):
        LossWeights(**{key: value})
