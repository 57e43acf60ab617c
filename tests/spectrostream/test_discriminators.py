import math
import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spectrostream.adversarial.stft_discriminator import (
    MultiScaleSTFTConfig,
    MultiScaleSTFTDiscriminator,
    PaddedConv2d,
    PointwiseConv2d,
    ResidualBlock2d,
    STFTDiscriminator,
)

SMALL = MultiScaleSTFTConfig(windows=(64, 256), width=4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def discriminator() -> MultiScaleSTFTDiscriminator:
    torch.manual_seed(0)
    return MultiScaleSTFTDiscriminator(SMALL)


def expected_parameters(config: MultiScaleSTFTConfig, channels: int) -> int:
    """Counted by hand from the layout: weights and biases of each convolution, gain and bias of each norm."""
    widths = [config.width, *(config.width * multiplier for multiplier in config.multipliers)]
    total = 0
    for window in config.windows:
        total += 3 * channels * 49 * widths[0] + widths[0] + 2 * widths[0]
        bins = window // 2
        strides = zip(config.time_strides, config.frequency_strides, strict=True)
        for before, after, (time, frequency) in zip(widths[:-1], widths[1:], strides, strict=True):
            total += before * before * 9 + before + 2 * before
            total += before * after * (time + 2) * (frequency + 2) + after + 2 * after
            total += before * after + after
            bins = math.ceil(bins / frequency)
        total += widths[-1] * bins + 1
    return total


@pytest.mark.parametrize(("width", "parameters"), [(4, 536_214), (32, 33_357_702)])
def test_parameter_count_at_the_papers_layout(width: int, parameters: int) -> None:
    config = MultiScaleSTFTConfig(width=width)
    with torch.device("meta"):
        discriminator = MultiScaleSTFTDiscriminator(config)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters
    assert parameters == expected_parameters(config, channels=2)


def test_the_papers_discriminator_of_full_width_runs() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        output = MultiScaleSTFTDiscriminator(MultiScaleSTFTConfig())(noise(1, 2, 4096))
    # hop W/2 gives 8192/W - 1 frames; three blocks of stride 2 in time
    assert [logits.shape for logits in output.logits] == [(1, 8), (1, 4), (1, 2), (1, 1), (1, 1), (1, 1)]
    assert all(logits.isfinite().all() for logits in output.logits)


def test_shapes_follow_the_layout(discriminator: MultiScaleSTFTDiscriminator) -> None:
    output = discriminator(noise(3, 2, 1000))
    assert len(output.logits) == len(output.features) == 2
    # ceil((1000 - 64) / 32) + 1 = 31 frames of 32 bins, 4 x (1, 2, 4, 4, 8, 8, 16) features
    assert [tuple(layer.shape[1:]) for layer in output.features[0]] == [
        (4, 31, 32), (8, 31, 16), (16, 16, 8), (16, 16, 4), (32, 8, 2), (32, 8, 1), (64, 4, 1)
    ]  # fmt: skip
    assert output.logits[0].shape == (3, 4)
    assert output.logits[1].shape == (3, 1)


@pytest.mark.parametrize("samples", [256, 257, 383, 384, 1001])
def test_any_length_from_the_longest_window_on_counts_to_its_last_sample(
    discriminator: MultiScaleSTFTDiscriminator, samples: int
) -> None:
    audio = noise(1, 2, samples).requires_grad_()
    sum(logits.sum() for logits in discriminator(audio).logits).backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
    # sample 0 has window weight 0
    assert (audio.grad[..., 1:] != 0).all()


def test_too_short_audio_is_refused_by_name(discriminator: MultiScaleSTFTDiscriminator) -> None:
    with pytest.raises(ValueError, match=r"got 255 samples; discriminator.windows is \(64, 256\).* 256 or more"):
        discriminator(noise(1, 2, 255))


@pytest.mark.parametrize("shape", [(1, 1, 512), (2, 512)])
def test_audio_of_another_shape_is_refused(discriminator: MultiScaleSTFTDiscriminator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"shape {list(shape)}; it expects [batch, 2, samples]")):
        discriminator(noise(*shape))


def test_spectrogram_is_that_of_torch_stft() -> None:
    scale = STFTDiscriminator(SMALL, window=64, channels=2)
    audio = noise(1, 2, 320)
    hann = torch.hann_window(64, periodic=True)
    spectrum = torch.stft(audio[0], 64, 32, window=hann / hann.norm(), center=False, return_complex=True)
    spectrum = spectrum.transpose(1, 2)[..., :-1]
    expected = torch.cat((spectrum.real, spectrum.imag, spectrum.abs()))
    torch.testing.assert_close(scale.spectrogram(audio)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [128, 1024, 4096])
def test_white_noise_has_the_same_power_at_every_scale(window: int) -> None:
    scale = STFTDiscriminator(SMALL, window, channels=1)
    modulus = scale.spectrogram(0.1 * noise(4, 1, 65536))[:, 2]
    assert modulus.square().mean().item() == pytest.approx(0.01, rel=0.02)


def test_a_polarity_flip_of_one_channel_is_seen(discriminator: MultiScaleSTFTDiscriminator) -> None:
    audio = noise(1, 2, 512)
    flipped = audio * torch.tensor([1.0, -1.0])[:, None]
    for one, other in zip(discriminator(audio).logits, discriminator(flipped).logits, strict=True):
        assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6])
def test_gradients_are_finite_at_and_near_silence(discriminator: MultiScaleSTFTDiscriminator, scale: float) -> None:
    audio = (scale * noise(2, 2, 512)).requires_grad_()
    output = discriminator(audio)
    sum(logits.sum() for logits in output.logits).backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in discriminator.parameters()
    )


def test_every_parameter_takes_part_in_the_logits(discriminator: MultiScaleSTFTDiscriminator) -> None:
    # so that distributed training never has to search for unused ones
    sum(logits.square().sum() for logits in discriminator(noise(2, 2, 2048)).logits).backward()
    unused = [
        name
        for name, parameter in discriminator.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []


def test_examples_are_independent(discriminator: MultiScaleSTFTDiscriminator) -> None:
    audio = noise(3, 2, 600)
    alone = discriminator(audio[1:2])
    together = discriminator(audio)
    for scale in range(2):
        torch.testing.assert_close(together.logits[scale][1:2], alone.logits[scale], rtol=1e-4, atol=1e-5)


def test_spectrogram_stays_float32_under_autocast(discriminator: MultiScaleSTFTDiscriminator) -> None:
    audio = noise(1, 2, 512)
    scale = discriminator.scales[0]
    assert isinstance(scale, STFTDiscriminator)
    expected = scale.spectrogram(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scale.spectrogram(audio), expected)
        output = discriminator(audio)
    assert output.features[0][1].dtype != torch.float64
    assert all(logits.isfinite().all() for logits in output.logits)


@pytest.mark.parametrize("stride", [(1, 2), (2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize(("frames", "bins"), [(1, 1), (5, 7), (6, 8)])
def test_residual_block_divides_by_its_stride_rounding_up(stride: tuple[int, int], frames: int, bins: int) -> None:
    block = ResidualBlock2d(2, 6, stride, negative_slope=0.2)
    expected = (1, 6, math.ceil(frames / stride[0]), math.ceil(bins / stride[1]))
    assert block(noise(1, 2, frames, bins)).shape == expected


@pytest.mark.parametrize("bins", range(1, 8))
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((4, 4), (2, 2), (1, 1)), ((3, 9), (1, 2), (1, 4))])
def test_a_padded_convolution_is_the_plain_one_at_every_width(
    bins: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    plain = nn.Conv2d(3, 5, kernel, stride, padding)
    padded = PaddedConv2d(3, 5, kernel, stride, padding)
    padded.load_state_dict(plain.state_dict())
    if bins + 2 * padding[1] < kernel[1]:
        for layer in (plain, padded):
            with pytest.raises(RuntimeError, match="Kernel size"):
                layer(noise(2, 3, 6, bins))
        return
    results = []
    for layer in (plain, padded):
        x = noise(2, 3, 6, bins).requires_grad_()
        y = layer(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 3), (2, 2), (5, 1), (4, 3)])
def test_a_pointwise_convolution_is_the_plain_one_at_every_size(shape: tuple[int, int]) -> None:
    layer = PointwiseConv2d(3, 5, 1)
    x = noise(2, 3, *shape)
    expected = torch.einsum("oi,bitf->botf", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_config_from_omegaconf_has_tuples_again() -> None:
    merged = OmegaConf.merge(MultiScaleSTFTConfig, OmegaConf.create("windows: [256, 64]\nwidth: 4"))
    config = OmegaConf.to_object(merged)
    assert config == MultiScaleSTFTConfig(windows=(256, 64), width=4)
    assert isinstance(config, MultiScaleSTFTConfig)
    assert isinstance(config.windows, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (64, 100, 33)}, "discriminator.windows is (64, 100, 33); allowed: one or more different even"),
        ({"windows": (64, 64)}, "discriminator.windows is (64, 64); allowed"),
        ({"windows": ()}, "discriminator.windows is (); allowed"),
        ({"width": 0}, "discriminator.width is 0; allowed: 1 or more"),
        ({"negative_slope": -0.1}, "discriminator.negative_slope is -0.1; allowed: 0 <= slope < 1"),
        ({"negative_slope": math.nan}, "discriminator.negative_slope is nan; allowed"),
        ({"time_strides": (1, 2)}, "discriminator.time_strides is (1, 2); allowed: 6 numbers >= 1"),
        ({"frequency_strides": (2,) * 5 + (0,)}, "discriminator.frequency_strides is (2, 2, 2, 2, 2, 0); allowed"),
        ({"multipliers": ()}, "discriminator.multipliers is (); allowed: one or more numbers >= 1"),
        ({"kind": "multi_period"}, "discriminator.kind is 'multi_period'; allowed: 'multi_scale_stft'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiScaleSTFTConfig(**change)  # type: ignore[arg-type]
