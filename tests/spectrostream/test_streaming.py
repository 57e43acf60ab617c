"""The streaming contract of every layer: pieces equal the whole, in outputs and in gradients; spans are as measured."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codec import reached
from torch import Tensor, nn

from spectrostream.convolution import Convolution, TransposedConvolution, resampling_kernel
from spectrostream.decoder import Decoder, DecoderBlock
from spectrostream.encoder import Encoder, EncoderBlock
from spectrostream.frontends import FRONT_ENDS, Layout
from spectrostream.streaming import StreamState

LAYOUTS = tuple(dict.fromkeys(frontend.layout for frontend in FRONT_ENDS.values()))
POSITIONS = range(len(LAYOUTS[0].strides) + 2)  # every block, and never


class Streamed(NamedTuple):
    """A layer and the input that suits it: pieces of multiples of `multiple` frames; 0 bins for embeddings."""

    layer: nn.Module
    multiple: int
    features: int
    bins: int
    dtype: torch.dtype = torch.float32

    def frames_out(self, frames: int) -> int:
        """Of so many input frames, a multiple of `multiple`."""
        return self.layer(self.input(self.multiple)).shape[2] * frames // self.multiple

    def input(self, frames: int) -> Tensor:
        shape = (2, self.features, frames, self.bins) if self.bins else (2, self.features, frames)
        return torch.randn(shape, dtype=self.dtype)


def with_random_biases(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.2)
    return layer


def convolution(kernel: tuple[int, int], stride: tuple[int, int]) -> Streamed:
    bins = 1 if kernel[1] == 1 else 2 * stride[1]
    return Streamed(Convolution(2, 3, kernel, stride), stride[0], 2, bins)


def transposed(kernel: tuple[int, int], stride: tuple[int, int]) -> Streamed:
    return Streamed(TransposedConvolution(2, 3, kernel, stride), 1, 2, 1 if kernel[1] == 1 else 3)


def encoder_block(layout: Layout, stride: tuple[int, int], width: int) -> Streamed:
    bins = 1 if layout.bins == 1 else 2 * stride[1]
    return Streamed(EncoderBlock(2, width, layout.kernel, stride), stride[0], 2, bins)


def decoder_block(layout: Layout, stride: tuple[int, int], width: int) -> Streamed:
    block = DecoderBlock(2, width, layout.kernel, stride, project_shortcut=width != 2)
    return Streamed(block, 1, 2, 1 if layout.bins == 1 else 3)


def narrow(layout: Layout) -> Layout:
    """The same strides and kernels over as few bins as they reduce to one."""
    return dataclasses.replace(layout, bins=math.prod(stride[1] for stride in layout.strides))


def encoder(layout: Layout, fusion: int) -> Streamed:
    stack = Encoder(layout, groups=2, features=2, width=2, embedding_dim=3, fusion=fusion)
    return Streamed(stack, layout.frames_per_token, 4, layout.bins)


def decoder(layout: Layout, split: int, token_groups: int) -> Streamed:
    sizes = {"groups": 2, "features": 2, "width": 2, "embedding_dim": 3}
    stack = Decoder(layout, **sizes, split=split, token_groups=token_groups)
    return Streamed(stack, 1, 3 * token_groups, 0)


def small_layers() -> dict[str, Callable[[], Streamed]]:
    """Every convolution and block of every layout, by name."""
    cases: dict[str, Callable[[], Streamed]] = {}
    for layout in LAYOUTS:
        for kernel in (layout.kernel, layout.outer_kernel, (1, 1)):
            cases[f"convolution {kernel}"] = lambda kernel=kernel: convolution(kernel, (1, 1))
        for stride in layout.strides:
            shape = resampling_kernel(layout.kernel, stride), stride
            cases[f"convolution {shape}"] = lambda shape=shape: convolution(*shape)
            cases[f"transposed {shape}"] = lambda shape=shape: transposed(*shape)
        for stride in (*layout.strides, (1, 1)):
            for width in (2, 3):
                name, block = f"{layout.kernel} {stride} to {width}", (layout, stride, width)
                cases[f"encoder block {name}"] = lambda block=block: encoder_block(*block)
                cases[f"decoder block {name}"] = lambda block=block: decoder_block(*block)
    return cases


def stacks() -> dict[str, Callable[[], Streamed]]:
    """Encoder and decoder of every layout with every fusion and split, joint tokens and tokens of each group."""
    cases: dict[str, Callable[[], Streamed]] = {}
    for layout in map(narrow, LAYOUTS):
        for position in POSITIONS:
            name = f"{layout.bins} bins, block {position}"
            cases[f"encoder {name}"] = lambda case=(layout, position): encoder(*case)
            for tokens in (1, 2):
                cases[f"decoder {name}, {tokens} tokens"] = lambda case=(layout, position, tokens): decoder(*case)
    return cases


SMALL, STACKS = small_layers(), stacks()


def build(cases: dict[str, Callable[[], Streamed]], name: str, dtype: torch.dtype = torch.float64) -> Streamed:
    torch.manual_seed(0)
    streamed = cases[name]()
    return streamed._replace(layer=with_random_biases(streamed.layer).to(dtype), dtype=dtype)


def in_pieces(layer: nn.Module, x: Tensor, sizes: Sequence[int]) -> Tensor:
    state = StreamState()
    return torch.cat([layer(piece, state) for piece in x.split(list(sizes), dim=2)], dim=2)


def output_and_gradients(run: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of a fixed random functional of it: of the input, of each parameter."""
    x = x.clone().requires_grad_()
    y = run(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], direction)]


def assert_pieces_equal_the_whole(layer: nn.Module, x: Tensor, sizes: Sequence[int]) -> None:
    pieces = output_and_gradients(lambda x: in_pieces(layer, x, sizes), layer, x)
    whole = output_and_gradients(layer, layer, x)
    assert whole[1].abs().max() > 0
    for ours, expected in zip(pieces, whole, strict=True):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=5)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), rest=st.integers(0, 4))
def test_pieces_of_a_layer_equal_the_whole_and_so_do_gradients(name, sizes, rest):
    streamed = build(SMALL, name)
    # The last piece need not fill its last stride.
    frames = [streamed.multiple * size for size in sizes]
    frames += [rest] if rest else []
    assert_pieces_equal_the_whole(streamed.layer, streamed.input(sum(frames)), frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_tokens_of_a_stack_piece_by_piece_equal_the_whole_and_so_do_gradients(name):
    streamed = build(STACKS, name)
    frames = [streamed.multiple * size for size in (1, 1, 3, 1)]
    assert_pieces_equal_the_whole(streamed.layer, streamed.input(sum(frames)), frames)


@pytest.mark.slow
@settings(max_examples=6)
@given(layout=st.sampled_from(LAYOUTS), samples=st.integers(1, 3), rest=st.floats(0.01, 0.99))
def test_the_encoders_last_piece_need_not_fill_a_token(layout, samples, rest):
    streamed = build({"encoder": lambda: encoder(narrow(layout), 3)}, "encoder")
    sizes = [streamed.multiple * samples, max(int(rest * streamed.multiple), 1)]
    x = streamed.input(sum(sizes))
    assert in_pieces(streamed.layer, x, sizes).shape[2] == samples + 1
    assert_pieces_equal_the_whole(streamed.layer, x, sizes)


@pytest.mark.parametrize("frontend", FRONT_ENDS)
@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_front_ends_synthesis_in_pieces_equals_the_whole_and_so_do_gradients(frontend, sizes):
    front = FRONT_ENDS[frontend]()
    x = torch.randn(2, 2 * front.features_per_channel, sum(sizes), front.layout.bins)
    state = StreamState()
    pieces = output_and_gradients(
        lambda x: torch.cat([front.synthesis(piece, state) for piece in x.split(sizes, dim=2)], dim=2), front, x
    )
    for ours, expected in zip(pieces, output_and_gradients(front.synthesis, front, x), strict=True):
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_a_front_ends_synthesis_depends_on_the_frames_that_it_says(frontend):
    front, hop = FRONT_ENDS[frontend](), FRONT_ENDS[frontend].hop_length
    x = torch.randn(1, front.features_per_channel, 9, front.layout.bins)
    for first, last in ((4 * hop, 5 * hop - 1), (4 * hop + hop // 2, 4 * hop + hop // 2), (3 * hop, 6 * hop - 1)):
        measured = reached(lambda x: front.synthesis(x)[..., first : last + 1], x, axis=2)  # noqa: B023 called at once
        assert measured == front.synthesis_span(first, last)


def assert_span_is_measured(streamed: Streamed, frames: int, first: int, last: int) -> None:
    """Compares `input_span` with the frames that have a gradient; before and after the signal there is nothing."""
    measured = reached(lambda x: streamed.layer(x)[:, :, first : last + 1], streamed.input(frames), axis=2)
    reported = streamed.layer.input_span(first, last)
    assert measured == (max(reported[0], 0), min(reported[1], frames - 1))


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=4)
@given(data=st.data())
def test_the_span_of_a_layer_is_what_its_gradient_reaches(name, data):
    streamed = build(SMALL, name, torch.float32)
    frames = 24 * streamed.multiple
    first = data.draw(st.integers(0, streamed.frames_out(frames) - 1), "first")
    last = data.draw(st.integers(first, streamed.frames_out(frames) - 1), "last")
    assert_span_is_measured(streamed, frames, first, last)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STACKS if "2 tokens" not in name])
def test_the_span_of_a_stack_is_what_its_gradient_reaches(name):
    streamed = build(STACKS, name, torch.float32)
    frames, middle = 18 * streamed.multiple, streamed.frames_out(15 * streamed.multiple)
    assert_span_is_measured(streamed, frames, middle, middle)
    assert streamed.layer.input_span(middle, middle)[0] > 0  # all of it was inside
    assert_span_is_measured(streamed, frames, 0, middle // 3)


@pytest.mark.parametrize("name", [*SMALL, *STACKS])
def test_nan_in_the_future_does_not_leak_into_the_past(name):
    streamed = build(SMALL | STACKS, name, torch.float32)
    x, cut = streamed.input(5 * streamed.multiple), 3 * streamed.multiple
    poisoned = x.clone()
    poisoned[:, :, cut:] = torch.nan
    with torch.no_grad():
        clean, dirty = streamed.layer(x), streamed.layer(poisoned)
    known = streamed.frames_out(cut)
    assert torch.equal(dirty[:, :, :known], clean[:, :, :known])
    assert dirty[:, :, known].isnan().any()


@pytest.mark.parametrize("name", SMALL)
def test_nan_is_forgotten_after_the_receptive_field_in_a_stream_too(name):
    streamed = build(SMALL, name)
    x, end = streamed.input(12 * streamed.multiple), streamed.multiple
    poisoned = x.clone()
    poisoned[:, :, :end] = torch.nan
    sizes = [streamed.multiple] * 12
    with torch.no_grad():
        clean, dirty = in_pieces(streamed.layer, x, sizes), in_pieces(streamed.layer, poisoned, sizes)
    reaches = [streamed.layer.input_span(frame, frame)[0] < end for frame in range(clean.shape[2])]
    assert dirty.isnan().any(3).any(1).any(0).tolist() == reaches
    assert torch.equal(dirty[:, :, reaches.count(True) :], clean[:, :, reaches.count(True) :])


def test_a_state_keeps_layers_apart_and_states_keep_streams_apart():
    first, second = (with_random_biases(Convolution(1, 1, (3, 1))) for _ in range(2))
    x, other = torch.randn(2, 1, 1, 4, 1)
    shared, own = StreamState(), StreamState()
    for piece, other_piece in zip(x.split(2, 2), other.split(2, 2), strict=True):
        last = [first(piece, shared), second(other_piece, shared), first(other_piece, own)]
    expected = [first(x), second(other), first(other)]
    for ours, whole in zip(last, expected, strict=True):
        torch.testing.assert_close(ours, whole[:, :, 2:])


def test_a_state_starts_with_silence_and_returns_what_came_before():
    layer, state = nn.Identity(), StreamState()
    x = torch.arange(1.0, 6)[None, None, :, None]
    assert state.prepend(layer, x[:, :, :1], 2).flatten().tolist() == [0, 0, 1]
    assert state.prepend(layer, x[:, :, 1:4], 2).flatten().tolist() == [0, 1, 2, 3, 4]
    assert state.prepend(layer, x[:, :, 4:], 2).flatten().tolist() == [3, 4, 5]
    assert state.prepend(layer, x, 0) is x


def test_a_state_does_not_follow_what_the_caller_does_with_a_piece():
    layer, state = nn.Identity(), StreamState()
    piece = torch.ones(1, 1, 3, 1)
    state.prepend(layer, piece, 2)
    piece.zero_()
    assert state.prepend(layer, piece, 2).flatten().tolist() == [1, 1, 0, 0, 0]
