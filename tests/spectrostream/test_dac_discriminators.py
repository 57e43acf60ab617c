"""DAC's discriminator: its published layers, channel by channel, at any length, and whether it learns."""

import itertools
import math
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from ablations.compose import load_experiment
from spectrostream.adversarial.contract import Discriminator, DiscriminatorConfig, DiscriminatorOutput
from spectrostream.adversarial.dac_discriminator import (
    BandDiscriminator,
    DacDiscriminator,
    DacDiscriminatorConfig,
    PeriodDiscriminator,
    bins_of,
    level,
)
from spectrostream.adversarial.discriminators import (
    DISCRIMINATORS,
    DiscriminatorKind,
    build_discriminator,
)
from spectrostream.adversarial.objectives import build_objective
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig

SMALL = DacDiscriminatorConfig(periods=(2, 3), windows=(128, 64), width=2)
# Both kinds behind one interface; the multi-scale one is normalised, so its gradients need more width.
CONFIGS: tuple[DiscriminatorConfig, ...] = (SMALL, MultiScaleSTFTConfig(windows=(64, 128), width=2))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(config: DiscriminatorConfig, channels: int = 2) -> Discriminator:
    torch.manual_seed(0)
    return build_discriminator(config, channels)


@pytest.fixture
def discriminator() -> Discriminator:
    return build(SMALL)


@pytest.fixture(params=CONFIGS, ids=list(reversed(DISCRIMINATORS)))
def any_discriminator(request: pytest.FixtureRequest) -> Discriminator:
    return build(request.param)


# The published layers: inputs, outputs, kernel.
PERIOD_LAYERS = ((1, 32, 5), (32, 128, 5), (128, 512, 5), (512, 1024, 5), (1024, 1024, 5), (1024, 1, 3))
BAND_LAYERS = ((2, 32, 3 * 9), (32, 32, 3 * 9), (32, 32, 3 * 9), (32, 32, 3 * 9), (32, 32, 3 * 3))
JOINT_LAYERS = ((32, 1, 3 * 3),)


def numbers(layers: tuple[tuple[int, int, int], ...]) -> int:
    """With weight normalisation: directions, and for each output a gain and a bias."""
    return sum(inputs * outputs * kernel + 2 * outputs for inputs, outputs, kernel in layers)


def test_parameter_count_of_the_published_layers() -> None:
    with torch.device("meta"):
        discriminator = DacDiscriminator(DacDiscriminatorConfig())
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in discriminator.judges]
    assert counts == 5 * [numbers(PERIOD_LAYERS)] + 3 * [5 * numbers(BAND_LAYERS) + numbers(JOINT_LAYERS)]
    # 224 + 20736 + 328704 + 2623488 + 5244928 + 3074, and 5 * 94208 + 290
    assert counts == 5 * [8_221_154] + 3 * [471_330]
    assert sum(counts) == 42_519_760


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "parameters"), [({"width": 4}, 672_584), ({"per_channel": False}, 42_546_480)])
def test_parameter_count_of_other_layouts(changes: dict[str, int], parameters: int) -> None:
    # width 4, 16, 64, 128, 128: 28 + 352 + 5248 + 41216 + 82176 + 386 and 5 * (224 + 3 * 440 + 152) + 38
    assert 5 * 129_406 + 3 * 8_518 == 672_584
    # jointly, the first layers have twice the inputs
    assert 42_519_760 + 5 * 160 + 3 * 5 * 1728 == 42_546_480
    with torch.device("meta"):
        discriminator = DacDiscriminator(DacDiscriminatorConfig(**changes))
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters


@pytest.mark.slow
def test_the_published_width_takes_a_crop() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        output = build_discriminator(DacDiscriminatorConfig(), channels=2)(0.1 * noise(1, 2, 4096))
    # strides 3^4 of ceil(4097 / period) rows; hop W/4 gives 16384/W frames, bands of W/2 + 1 bins halved three times
    rows = {period: -(-(4096 // period + 1) // 81) * period for period in (2, 3, 5, 7, 11)}
    frames = {window: 4 * 4096 // window * bins_after(window) for window in (2048, 1024, 512)}
    assert [logits.shape for logits in output.logits] == [(2, n) for n in (*rows.values(), *frames.values())]
    assert [len(layers) for layers in output.features] == 5 * [5] + 3 * [25]
    assert all(logits.isfinite().all() for logits in output.logits)


def bins_after(window: int) -> int:
    widths = [last - first for first, last in (bins_of(band, window) for band in DacDiscriminatorConfig().bands)]
    return sum(math.ceil(width / 8) for width in widths)


def test_shapes_follow_the_layout(discriminator: Discriminator) -> None:
    output = discriminator(noise(3, 2, 1000))
    # 1000 samples gain a whole period: 501 rows of 2, thirds of them, 2 * (1, 4, 16, 32, 32) features
    assert [tuple(layer.shape) for layer in output.features[0]] == [
        (6, 2, 167, 2), (6, 8, 56, 2), (6, 32, 19, 2), (6, 64, 7, 2), (6, 64, 7, 2)
    ]  # fmt: skip
    # ceil(1000 / 32) = 32 frames; the first of 65 bins' bands has 6 of them
    assert [tuple(layer.shape) for layer in output.features[2][:5]] == [
        (6, 2, 32, 6), (6, 2, 32, 3), (6, 2, 32, 2), (6, 2, 32, 1), (6, 2, 32, 1)
    ]  # fmt: skip
    # 6, 10, 16, 16, 17 bins, halved three times
    assert [tuple(logits.shape) for logits in output.logits[:3]] == [(6, 14), (6, 15), (6, 32 * (1 + 2 + 2 + 2 + 3))]


def test_bands_share_the_spectrum_without_gap_or_overlap() -> None:
    for window in (2048, 1024, 512):
        edges = [bins_of(band, window) for band in DacDiscriminatorConfig().bands]
        assert (edges[0][0], edges[-1][1]) == (0, window // 2 + 1)
        assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))
    assert bins_of((0.1, 0.25), 2048) == (102, 256)


@pytest.mark.parametrize("period", [2, 3, 5])
def test_a_period_discriminator_sees_every_period_th_sample(period: int) -> None:
    discriminator = PeriodDiscriminator(SMALL, period, channels=1)
    audio = noise(1, 1, 60 * period).requires_grad_()
    logits, features = discriminator(audio)
    # [example, feature, row, phase]: one phase of the first rows, whose reach ends before the reflected end
    features[0][0, :, :10, 1].sum().backward()
    assert audio.grad is not None
    reached = audio.grad[0, 0].nonzero()[:, 0]
    assert len(reached) > 10
    assert (reached % period == 1).all()
    assert logits.shape[1] % period == 0


@pytest.mark.parametrize(("samples", "rows"), [(161, 81), (162, 82), (163, 82)])
def test_whole_rows_gain_one_more(samples: int, rows: int) -> None:
    _, features = PeriodDiscriminator(SMALL, period=2, channels=1)(noise(1, 1, samples))
    heights = [layer.shape[2] for layer in features]
    # 81 rows are thirds to the last: 27, 9, 3, 1; one more row is one more everywhere
    assert heights == [27, 9, 3, 1, 1] if rows == 81 else heights == [28, 10, 4, 2, 2]


@pytest.mark.parametrize("samples", [512, 513, 700, 767])
def test_spectrogram_is_torch_s_without_the_padding_s_frames(samples: int) -> None:
    # DAC: 3/8 of a window reflected at each end, whole hops, torch's centred STFT without its outer two frames
    discriminator = BandDiscriminator(SMALL, window=128, channels=2)
    audio = noise(2, 2, samples)
    padded = torch.nn.functional.pad(audio, (48, 48 - samples % -32), mode="reflect").flatten(0, 1)
    hann = torch.hann_window(128, periodic=True)
    spectrum = torch.stft(padded, 128, 32, window=hann, center=True, return_complex=True)[..., 2:-2]
    parts = torch.view_as_real(spectrum.transpose(1, 2).unflatten(0, (2, 2)))
    # [example, channel, frame, bin, part] to [example, channel and part, frame, bin]
    expected = parts.movedim(-1, 2).flatten(1, 2)
    assert expected.shape[2] == math.ceil(samples / 32)
    torch.testing.assert_close(discriminator.spectrogram(audio), expected, rtol=1e-4, atol=1e-4)


def test_level_is_a_peak_of_point_eight_around_zero() -> None:
    audio = torch.tensor([[[1.0, 3.0, 2.0]], [[0.0, 0.0, 0.0]], [[5.0, 5.0, 5.0]]])
    expected = torch.tensor([[[-0.8, 0.8, 0.0]], [[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    torch.testing.assert_close(level(audio), expected)
    # joint channels keep their balance
    balanced = level(torch.tensor([[[1.0, -1.0], [0.25, -0.25]]]))
    torch.testing.assert_close(balanced, torch.tensor([[[0.8, -0.8], [0.2, -0.2]]]))


def test_loudness_and_offset_do_not_count(discriminator: Discriminator) -> None:
    audio = noise(1, 2, 400)
    for one, other in zip(discriminator(audio).logits, discriminator(0.01 * audio + 0.05).logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_swapping_channels_swaps_the_rows(discriminator: Discriminator) -> None:
    audio = noise(2, 2, 400)
    one, other = discriminator(audio), discriminator(audio.flip(1))
    for logits, swapped in zip(one.logits, other.logits, strict=True):
        assert (logits[0] - logits[1]).abs().max() > 1e-4
        torch.testing.assert_close(swapped, logits.unflatten(0, (2, 2)).flip(1).flatten(0, 1))
    mono = build(SMALL, channels=1)
    for logits, alone in zip(one.logits, mono(audio[1:, :1]).logits, strict=True):
        torch.testing.assert_close(alone[0], logits[2], rtol=1e-4, atol=1e-5)


def test_a_joint_discriminator_sees_a_polarity_flip_of_one_channel() -> None:
    discriminator = build(DacDiscriminatorConfig(periods=(2,), windows=(64,), width=4, per_channel=False))
    audio = noise(3, 2, 400)
    one, other = discriminator(audio), discriminator(audio * torch.tensor([1.0, -1.0])[:, None])
    for logits, flipped in zip(one.logits, other.logits, strict=True):
        assert len(logits) == 3
        assert (logits - flipped).abs().max() > 1e-4


@pytest.mark.slow
@settings(max_examples=15)
@given(
    config=st.sampled_from(CONFIGS),
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    samples=st.integers(128, 700),
    scale=st.sampled_from([1.0, 1e-4, 0.0]),
)
def test_the_interface_holds_at_any_length(
    config: DiscriminatorConfig, batch: int, channels: int, samples: int, scale: float
) -> None:
    discriminator = build(config, channels)
    audio = (scale * noise(batch, channels, samples)).requires_grad_()
    output = discriminator(audio)
    examples = batch * channels if isinstance(discriminator, DacDiscriminator) else batch
    assert len(output.logits) == len(output.features)
    for logits, layers in zip(output.logits, output.features, strict=True):
        assert (logits.ndim, len(logits)) == (2, examples)
        assert all(len(layer) == examples and layer.isfinite().all() for layer in layers)
    sum(logits.square().sum() for logits in output.logits).backward()
    assert audio.grad is not None
    assert audio.grad.isfinite().all()
    assert scale == 0 or (audio.grad != 0).float().mean() > 0.99
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in discriminator.parameters()
    )


def test_the_shortest_audio_is_the_shortest_that_is_taken() -> None:
    for config in (*CONFIGS, DacDiscriminatorConfig(periods=(40,), windows=(), width=1)):
        discriminator, shortest = build(config), config.shortest_audio
        assert all(logits.isfinite().all() for logits in discriminator(noise(1, 2, shortest)).logits)
        with pytest.raises(ValueError, match=f"got {shortest - 1} samples; .* {shortest} or more"):
            discriminator(noise(1, 2, shortest - 1))


@pytest.mark.parametrize("shape", [(1, 1, 512), (2, 512)])
def test_audio_of_another_shape_is_refused(any_discriminator: Discriminator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"shape {list(shape)}; it expects [batch, 2, samples]")):
        any_discriminator(noise(*shape))


def test_every_parameter_takes_part_in_the_logits(any_discriminator: Discriminator) -> None:
    sum(logits.square().sum() for logits in any_discriminator(noise(2, 2, 2048)).logits).backward()
    unused = [name for name, one in any_discriminator.named_parameters() if one.grad is None or not one.grad.any()]
    assert unused == []


def test_examples_are_independent(discriminator: Discriminator) -> None:
    audio = noise(3, 2, 400)
    for alone, together in zip(discriminator(audio[1:2]).logits, discriminator(audio).logits, strict=True):
        torch.testing.assert_close(together[2:4], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_is_close(any_discriminator: Discriminator) -> None:
    audio = noise(2, 2, 1000)
    exact = any_discriminator(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = any_discriminator(audio)
    for one, other in zip(exact.logits, rounded.logits, strict=True):
        assert other.dtype == torch.bfloat16
        assert (one - other).norm() < 0.05 * one.norm()


def test_channels_last_is_the_same_function(discriminator: Discriminator) -> None:
    audio = noise(2, 2, 1000).requires_grad_()
    expected = discriminator(audio)
    discriminator.to(memory_format=torch.channels_last)
    output = discriminator(audio)
    for one, other in zip(output.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    sum(logits.sum() for logits in output.logits).backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


ONE_OF_EACH = DacDiscriminatorConfig(periods=(2,), windows=(64,), bands=((0.0, 1.0),), width=1)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ONE_OF_EACH, CONFIGS[1]], ids=["dac", "multi_scale_stft"])
def test_the_discriminator_is_one_graph(config: DiscriminatorConfig) -> None:
    # a look at a tensor's values, or a shape that depends on them, would break it
    discriminator, audio = build(config), noise(1, 2, 200)
    traced = torch.compile(discriminator, backend="eager", fullgraph=True)
    assert all(map(torch.equal, traced(audio).logits, discriminator(audio).logits))


def sines(batch: int, seed: int) -> Tensor:
    """Stereo sines of random pitch and phase."""
    draws = torch.rand(2, batch, 2, 1, generator=torch.Generator().manual_seed(seed))
    return torch.sin((0.02 + 0.3 * draws[0]) * torch.arange(256) + 6.28 * draws[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "recipe"),
    [(DacDiscriminatorConfig(periods=(2,), windows=(64,), width=4), "dac"), (CONFIGS[1], "spectrostream")],
    ids=["dac", "spectrostream"],
)
def test_a_few_steps_separate_sines_from_noise(config: DiscriminatorConfig, recipe: str) -> None:
    discriminator, objective = build(config), build_objective(recipe, 48000)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3, betas=(0.8, 0.99))

    def logits_of(seed: int) -> tuple[list[Tensor], list[Tensor]]:
        return discriminator(sines(4, seed)).logits, discriminator(noise(4, 2, 256, seed=seed)).logits

    before = objective.discriminator_loss(*logits_of(100)).item()
    for seed in range(30):
        optimizer.zero_grad()
        objective.discriminator_loss(*logits_of(seed)).backward()
        optimizer.step()
    with torch.no_grad():
        unseen = logits_of(100)  # never part of the training
        assert objective.discriminator_loss(*unseen).item() < 0.3 * before
        assert min(share.item() for share in objective.accuracy(*unseen)) > 0.9


def test_every_kind_is_built_from_its_own_configuration() -> None:
    for kind, entry in DISCRIMINATORS.items():
        assert entry.config().kind == kind
    assert isinstance(build(SMALL), DacDiscriminator)
    assert not isinstance(build(CONFIGS[1]), DacDiscriminator)


@dataclass(frozen=True)
class EnergyConfig:
    kind: str = "energy"
    gain: float = 1.0
    shortest_audio: int = 1


class EnergyDiscriminator(Discriminator):
    def __init__(self, config: EnergyConfig, channels: int) -> None:
        super().__init__()
        self.channels, self.shortest_audio = channels, config.shortest_audio
        self.gain = nn.Parameter(torch.tensor(config.gain))

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        energy = self.gain * audio.square().mean(dim=(1, 2))[:, None]
        return DiscriminatorOutput([energy], [[energy]])


def test_a_new_kind_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISCRIMINATORS, "energy", DiscriminatorKind(EnergyConfig, EnergyDiscriminator))
    config = load_experiment("tiny", ["discriminator={kind: energy, gain: 2.0}"])
    discriminator = build_discriminator(config.discriminator, channels=2)
    assert isinstance(discriminator, EnergyDiscriminator)
    assert discriminator(torch.ones(3, 2, 4)).logits[0].tolist() == [[2.0]] * 3


def test_config_from_omegaconf_has_tuples_again() -> None:
    yaml = "periods: [3]\nwindows: [256, 64]\nbands: [[0, 0.5], [0.5, 1]]\nwidth: 4"
    config = OmegaConf.to_object(OmegaConf.merge(DacDiscriminatorConfig, OmegaConf.create(yaml)))
    expected = DacDiscriminatorConfig(periods=(3,), windows=(256, 64), bands=((0.0, 0.5), (0.5, 1.0)), width=4)
    assert config == expected
    assert hash(config) == hash(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"periods": (2, 0)}, "discriminator.periods is (2, 0); allowed: different numbers of samples, >= 1"),
        ({"periods": (2, 2)}, "discriminator.periods is (2, 2); allowed"),
        (
            {"periods": (), "windows": ()},
            "discriminator.periods is (); allowed: one or more where there are no windows",
        ),
        ({"windows": (100,)}, "discriminator.windows is (100,); allowed: different multiples of 8 samples"),
        ({"windows": (512, 512)}, "discriminator.windows is (512, 512); allowed"),
        ({"windows": (0,)}, "discriminator.windows is (0,); allowed"),
        ({"bands": ()}, "discriminator.bands is (); allowed: pairs (from, to) with 0 <= from < to <= 1"),
        ({"bands": ((0.5, 0.5),)}, "discriminator.bands is ((0.5, 0.5),); allowed"),
        ({"bands": ((0.0, 1.5),)}, "discriminator.bands is ((0.0, 1.5),); allowed"),
        ({"bands": ((0.0, math.nan),)}, "discriminator.bands is ((0.0, nan),); allowed"),
        ({"bands": ((0.0, math.inf),)}, "discriminator.bands is ((0.0, inf),); allowed"),
        ({"windows": (64, 16), "bands": ((0.0, 0.1),)}, "discriminator.bands is ((0.0, 0.1),); allowed: pairs"),
        ({"width": 0}, "discriminator.width is 0; allowed: 1 or more"),
        ({"negative_slope": 1.0}, "discriminator.negative_slope is 1.0; allowed: 0 <= slope < 1"),
        ({"kind": "multi_scale_stft"}, "discriminator.kind is 'multi_scale_stft'; allowed: 'dac'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DacDiscriminatorConfig(**change)  # type: ignore[arg-type]


def test_bands_may_leave_parts_out_and_periods_stand_alone() -> None:
    band = DacDiscriminatorConfig(windows=(64,), bands=((0.5, 0.75),), periods=(), width=1)
    assert [len(layers) for layers in build(band)(noise(1, 2, 100)).features] == [5]
    assert len(build(DacDiscriminatorConfig(windows=(), periods=(2, 5), width=1))(noise(1, 2, 100)).logits) == 2
