"""Lengths, causality and known answers of the layers, for every kernel and stride that the two layouts use."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spectrostream.convolution import (
    Convolution,
    Pair,
    TransposedConvolution,
    average_pool,
    frequency_padding,
    join_groups,
    repeat_upsample,
    resampling_kernel,
    semicausal_padding,
    separate_groups,
)
from spectrostream.frontends import ComplexSTFT, Waveform

LAYOUTS = (ComplexSTFT.layout, Waveform.layout)
RESAMPLING = sorted({(resampling_kernel(layout.kernel, s), s) for layout in LAYOUTS for s in layout.strides})
PLAIN = sorted({(kernel, (1, 1)) for layout in LAYOUTS for kernel in (layout.kernel, layout.outer_kernel, (1, 1))})
LAYERS = RESAMPLING + PLAIN


def frames_seen(layer: torch.nn.Module, frames: int, bins: int, output_frame: int) -> tuple[int, int]:
    """First and last input frame that an output frame depends on, measured by its gradient."""
    x = torch.randn(1, 2, frames, bins, requires_grad=True)
    layer(x)[:, :, output_frame].sum().backward()
    seen = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    return int(seen.min()), int(seen.max())


def ones_layer(layer: Convolution | TransposedConvolution) -> Convolution | TransposedConvolution:
    """The same layer with every weight one and no bias: its output counts."""
    torch.nn.init.ones_(layer.weight)
    return layer.requires_grad_(False)


def impulse(frames: int, bins: int, frame: int, bin_: int) -> Tensor:
    x = torch.zeros(1, 1, frames, bins)
    x[..., frame, bin_] = 1
    return x


@pytest.mark.parametrize(
    ("kernel", "stride", "time", "frequency"),
    [(3, 1, (2, 0), (1, 1)), (4, 2, (2, 1), (1, 1)), (7, 1, (6, 0), (3, 3)), (6, 3, (3, 2), (1, 2))],
)
def test_padding_is_the_official_one(kernel, stride, time, frequency):
    assert semicausal_padding(kernel, stride) == time
    assert frequency_padding(kernel, stride) == frequency


def test_resampling_kernels_are_twice_the_stride_at_least_three_and_flat_where_there_is_one_bin():
    spectral = [resampling_kernel((3, 3), stride) for stride in ((1, 2), (1, 3), (2, 2), (2, 1), (1, 1))]
    assert spectral == [(3, 4), (3, 6), (4, 4), (4, 3), (3, 3)]
    waveform = [resampling_kernel((7, 1), stride) for stride in ((2, 1), (3, 1), (5, 1), (1, 1))]
    assert waveform == [(4, 1), (6, 1), (10, 1), (3, 1)]


@given(layer=st.sampled_from(LAYERS), frames=st.integers(1, 41), bins=st.integers(1, 4))
def test_output_lengths(layer, frames, bins):
    kernel, stride = layer
    y = Convolution(1, 2, kernel, stride)(torch.randn(1, 1, frames, bins * stride[1]))
    assert y.shape == (1, 2, -(-frames // stride[0]), bins)
    y = TransposedConvolution(1, 2, kernel, stride)(torch.randn(1, 1, frames, bins))
    assert y.shape == (1, 2, frames * stride[0], bins * stride[1])


@pytest.mark.parametrize(("kernel", "stride"), LAYERS)
def test_a_frame_sees_its_own_stride_block_and_nothing_later(kernel: Pair, stride: Pair):
    layer, frames = Convolution(2, 3, kernel, stride), 31
    for i in range(-(-frames // stride[0])):
        last = i * stride[0] + stride[0] - 1
        expected = (max(last - kernel[0] + 1, 0), min(last, frames - 1))
        assert frames_seen(layer, frames, 2 * stride[1], i) == expected


@pytest.mark.parametrize(("kernel", "stride"), RESAMPLING)
def test_a_transposed_frame_sees_nothing_later_than_the_frame_it_comes_from(kernel: Pair, stride: Pair):
    layer = TransposedConvolution(2, 3, kernel, stride)
    for j in range(7 * stride[0]):
        first = max(-((kernel[0] - 1 - j) // stride[0]), 0)  # ceil((j - k + 1) / s)
        assert frames_seen(layer, 7, 3, j) == (first, j // stride[0])


def test_a_convolution_of_ones_counts():
    layer = ones_layer(Convolution(1, 1, (4, 1), (2, 1)))
    x = torch.arange(1.0, 6)[None, None, :, None]
    # zeros (2, 1): [0 0 1 2] [1 2 3 4] [3 4 5 0]
    assert layer(x).flatten().tolist() == [3, 10, 12]


@pytest.mark.parametrize(("kernel", "stride"), [((3, 6), (1, 3)), ((3, 4), (1, 2)), ((3, 3), (1, 1)), ((7, 7), (1, 1))])
def test_frequency_is_padded_on_both_sides_the_odd_bin_above(kernel: Pair, stride: Pair):
    layer = ones_layer(Convolution(1, 1, kernel, stride))
    (k, s), below = (kernel[1], stride[1]), (kernel[1] - stride[1]) // 2
    response = layer(impulse(1, 8 * s, 0, 4 * s)).flatten()
    # output bin o covers input bins o*s - below .. o*s - below + k - 1
    assert response.nonzero().flatten().tolist() == [o for o in range(8) if 0 <= 4 * s - (o * s - below) < k]


@pytest.mark.parametrize(("kernel", "stride"), RESAMPLING)
def test_a_transposed_impulse_spreads_forward_in_time_and_both_ways_in_frequency(kernel: Pair, stride: Pair):
    layer = ones_layer(TransposedConvolution(1, 1, kernel, stride))
    bins = 1 if kernel[1] == 1 else 7
    response = layer(impulse(7, bins, 3, bins // 2))[0, 0]
    in_time, in_frequency = (response.sum(axis).nonzero().flatten().tolist() for axis in (1, 0))
    assert in_time == list(range(3 * stride[0], 3 * stride[0] + kernel[0]))
    lowest = bins // 2 * stride[1] - max(kernel[1] - stride[1], 0) // 2
    assert in_frequency == list(range(lowest, lowest + kernel[1]))


@pytest.mark.parametrize(("kernel", "stride"), [layer for layer in LAYERS if layer[0][1] == 1])
@pytest.mark.parametrize("frames", [1, 2, 23])
def test_one_bin_gives_the_sum_of_the_two_dimensional_form(kernel: Pair, stride: Pair, frames: int):
    x = torch.randn(2, 3, frames, 1)
    layer = Convolution(3, 4, kernel, stride)
    torch.nn.init.normal_(layer.bias)
    padded = F.pad(x, (0, 0, *semicausal_padding(kernel[0], stride[0])))
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight, layer.bias, stride))
    layer = TransposedConvolution(3, 4, kernel, stride)
    torch.nn.init.normal_(layer.bias)
    full = F.conv_transpose2d(x, layer.weight, layer.bias, stride)
    torch.testing.assert_close(layer(x), full[..., : frames * stride[0], :])


def test_average_pool_divides_the_completed_block_by_its_full_size():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0], [10.0, 20.0]])[None, None]
    assert average_pool(x, (2, 1))[0, 0].tolist() == [[3, 5], [5, 10]]
    assert average_pool(x, (2, 2))[0, 0].tolist() == [[4], [7.5]]
    assert average_pool(x, (1, 2))[0, 0].tolist() == [[2], [6], [15]]
    assert torch.equal(average_pool(x, (1, 1)), x)


def test_repeat_upsample_repeats_every_frame_and_bin():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert repeat_upsample(x, (2, 1))[0, 0].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert repeat_upsample(x, (1, 3))[0, 0].tolist() == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 4, 4, 4]]
    assert torch.equal(repeat_upsample(x, (1, 1)), x)


@given(
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3)), batch=st.integers(1, 2), features=st.integers(1, 3),
    frames=st.integers(1, 5), bins=st.integers(1, 4),
)  # fmt: skip
def test_pooling_undoes_repetition(stride, batch, features, frames, bins):
    x = torch.randn(batch, features, frames, bins)
    torch.testing.assert_close(average_pool(repeat_upsample(x, stride), stride), x)


@given(batch=st.integers(1, 3), channels=st.integers(1, 3), features=st.integers(1, 4))
def test_joining_and_separating_are_inverses(batch, channels, features):
    x = torch.randn(batch * channels, features, 2, 3)
    joined = join_groups(x, channels)
    assert joined.shape == (batch, channels * features, 2, 3)
    assert torch.equal(separate_groups(joined, channels), x)


def test_the_left_channels_features_come_first():
    # rows: example 0 left, right, example 1 left, right; two features each
    x = torch.tensor([[0, 1], [10, 11], [100, 101], [110, 111]])[..., None, None]
    assert join_groups(x, 2).flatten(1).tolist() == [[0, 1, 10, 11], [100, 101, 110, 111]]


@pytest.mark.parametrize(("kernel", "stride"), RESAMPLING)
def test_initial_weights_neither_blow_up_nor_die(kernel: Pair, stride: Pair):
    bins = 1 if kernel[1] == 1 else 24
    for layer in (Convolution(32, 32, kernel, stride), TransposedConvolution(32, 32, kernel, stride)):
        gain = layer(torch.randn(1, 32, 120, bins)).var().item()
        assert 0.5 < gain < 1.2
        assert layer.bias.abs().max() == 0
