"""Encoder and decoder for inference on a CPU, made from trained ones: the same function, rearranged for speed.

The full-rate part, where a token has four frames or more, computes a few tokens at a time through all its layers. So
frames stay in the cache from layer to layer. In the rest, weights are larger than frames, so it takes a whole chunk of
tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import Convolution, TransposedConvolution
from spectrostream.cpu_inference.int8_layers import Int8MatrixProduct, int8_kind
from spectrostream.cpu_inference.layers import ConvolutionKind, FastConvolution, MatrixProduct, float32_kind
from spectrostream.cpu_inference.winograd import TILE
from spectrostream.decoder import Decoder, DecoderBlock
from spectrostream.encoder import Encoder, EncoderBlock, TokenProjection
from spectrostream.streaming import Span, StreamState

CHUNK_TOKENS = 50  # tokens that the rest takes at a time; for more, the gathered windows would be large


@dataclass(frozen=True)
class Arithmetic:
    """How the layers inside a stack compute; the outermost convolutions are always float32.

    Attributes:
        kind: Chooses how convolutions are computed.
        product: Builds the layer of a 1x1 convolution, from weight `[K, N]` and bias `[N]`.
        step_tokens: Tokens that the full-rate part takes at a time; more need a larger cache, fewer need more calls.
    """

    kind: ConvolutionKind
    product: Callable[[Tensor, Tensor], MatrixProduct | Int8MatrixProduct]
    step_tokens: int

    def convolution(self, layer: Convolution | TransposedConvolution, *, full_rate: bool) -> FastConvolution:
        """Build the layer of a convolution; see `FastConvolution`."""
        return FastConvolution(layer, full_rate=full_rate, kind=self.kind)

    def pointwise(self, layer: Convolution, scale: float = 1.0) -> MatrixProduct | Int8MatrixProduct:
        """Build the layer of a 1x1 convolution on `[..., C]`; its input is multiplied by `scale`."""
        return self.product(layer.weight.detach().flatten(1).T * scale, layer.bias.detach().clone())


FLOAT32 = Arithmetic(float32_kind, MatrixProduct, step_tokens=4)
INT8 = Arithmetic(int8_kind, Int8MatrixProduct, step_tokens=4)


class FastEncoderBlock(nn.Module):
    """`EncoderBlock` on `[T, rows, F, C]`."""

    def __init__(self, block: EncoderBlock, arithmetic: Arithmetic, *, full_rate: bool) -> None:
        super().__init__()
        self.stride = block.stride
        self.scale = 1 / (block.stride[0] * block.stride[1])
        self.convolution = arithmetic.convolution(block.convolution, full_rate=full_rate)
        self.resampling = arithmetic.convolution(block.resampling, full_rate=full_rate)
        self.shortcut = None if block.shortcut is None else arithmetic.pointwise(block.shortcut, self.scale)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """See `EncoderBlock.forward`; `role` names the scratch memory of the result."""
        y = self.resampling(self.convolution(x, state, "first"), state, "second")
        pooled = self._pooled_sum(x, state)
        if self.shortcut is None:
            return torch.add(y, pooled, alpha=self.scale, out=state.scratch(role, tuple(y.shape), y))
        shortcut = self.shortcut(pooled, state, "shortcut")
        return torch.add(y, shortcut, out=state.scratch(role, tuple(y.shape), y))

    def _pooled_sum(self, x: Tensor, state: StreamState) -> Tensor:
        time, frequency = self.stride
        if len(x) % time:
            x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % time))
        x = x.unflatten(2, (-1, frequency)).unflatten(0, (-1, time))
        parts = [x[:, i, :, :, j] for i in range(time) for j in range(frequency)]
        if len(parts) == 1:
            return parts[0]
        total = torch.add(parts[0], parts[1], out=state.scratch("pooled", tuple(parts[0].shape), x))
        for part in parts[2:]:
            total += part
        return total


class FastDecoderBlock(nn.Module):
    """`DecoderBlock` on `[T, rows, F, C]`."""

    def __init__(self, block: DecoderBlock, arithmetic: Arithmetic, *, full_rate: bool) -> None:
        super().__init__()
        self.stride = block.stride
        is_full = full_rate and block.stride[0] == 1
        self.resampling = arithmetic.convolution(block.resampling, full_rate=is_full)
        self.convolution = arithmetic.convolution(block.convolution, full_rate=full_rate)
        self.shortcut = None if block.shortcut is None else arithmetic.pointwise(block.shortcut)

    def forward(self, x: Tensor, state: StreamState, role: str) -> Tensor:
        """See `DecoderBlock.forward`; `role` names the scratch memory of the result."""
        y = self.convolution(self.resampling(x, state, "first"), state, "second")
        shortcut = x if self.shortcut is None else self.shortcut(x, state, "shortcut")
        time, frequency = self.stride
        out = state.scratch(role, tuple(y.shape), y)
        y, total = (z.unflatten(2, (-1, frequency)).unflatten(0, (-1, time)) for z in (y, out))
        torch.add(y, shortcut[:, None, :, :, None], out=total)
        return out


class FastProjection(nn.Module):
    """`TokenProjection` on `[..., C]`."""

    def __init__(self, projection: TokenProjection, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.activate_input = projection.activate_input
        layers = projection.skip, projection.first, projection.second
        self.skip, self.first, self.second = map(arithmetic.pointwise, layers)

    def forward(self, x: Tensor, state: StreamState) -> Tensor:
        """See `TokenProjection.forward`."""
        hidden = self.first(F.elu(x) if self.activate_input else x, state, "first")
        return self.skip(x, state, "shortcut") + self.second(F.elu(hidden), state, "second")


# The scratch memories of the blocks' outputs. They alternate, because a block reads its input while it writes.
ROLES = ("even", "odd")


class FastEncoder(nn.Module):
    """`Encoder`, for inference.

    Args:
        encoder: The trained encoder.
        arithmetic: How the layers compute.
    """

    def __init__(self, encoder: Encoder, arithmetic: Arithmetic = FLOAT32) -> None:
        super().__init__()
        self.groups = encoder.groups
        self.step_frames = arithmetic.step_tokens * TILE
        self.fusion = encoder.fusion
        self.full_rate_blocks = _leading([block.stride[0] == 1 for block in encoder.stack])
        self.first = FastConvolution(encoder.first, full_rate=False, activate=False)
        self.blocks = nn.ModuleList(
            FastEncoderBlock(block, arithmetic, full_rate=index < self.full_rate_blocks)
            for index, block in enumerate(encoder.stack)
        )
        self.projection = FastProjection(encoder.projection, arithmetic)
        self._input_range = encoder.input_span(0, 0)
        self.token_frames = self._input_range[1] + 1

    def forward(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `Encoder.forward`."""
        state = StreamState() if state is None else state
        chunks = features.split(CHUNK_TOKENS * self.token_frames, dim=2)
        return torch.cat([self._encode_chunk(chunk, state) for chunk in chunks], dim=-1)

    def _encode_chunk(self, features: Tensor, state: StreamState) -> Tensor:
        # [batch, groups * C, T, F] -> [T, batch * groups, F, C]
        x = features.unflatten(1, (self.groups, -1)).flatten(0, 1).permute(2, 0, 3, 1)
        steps = x.split(self.step_frames)
        x = torch.cat([self._full_rate(step, state) for step in steps])
        x = self._through(x, self.full_rate_blocks, len(self.blocks), state)
        embeddings = self.projection(x.flatten(2), state)  # [tokens, rows, embedding_dim]
        batch = len(features)
        return embeddings.unflatten(1, (batch, -1)).permute(1, 2, 3, 0).flatten(1, 2)

    def input_span(self, first: int, last: int) -> Span:
        """See `Encoder.input_span`."""
        earliest, latest = self._input_range
        return earliest + first * self.token_frames, latest + last * self.token_frames

    def _full_rate(self, x: Tensor, state: StreamState) -> Tensor:
        x = self._through(self.first(x, state, ROLES[1]), 0, self.full_rate_blocks, state)
        return x.clone()  # the next step overwrites it

    def _through(self, x: Tensor, start: int, stop: int, state: StreamState) -> Tensor:
        for index in range(start, stop):
            if index == self.fusion:
                x = x.unflatten(1, (-1, self.groups)).transpose(2, 3).flatten(3)
            x = self.blocks[index](x, state, ROLES[index % 2])
        return x


class FastDecoder(nn.Module):
    """`Decoder`, for inference.

    Args:
        decoder: The trained decoder.
        arithmetic: How the layers compute.
    """

    def __init__(self, decoder: Decoder, arithmetic: Arithmetic = FLOAT32) -> None:
        super().__init__()
        self.groups = decoder.groups
        self.step_frames = arithmetic.step_tokens * TILE
        self.token_bins = decoder.token_bins
        self.split_index = decoder.split_index
        self.separates_tokens = decoder.separates_tokens
        strides = [block.stride[0] for block in decoder.stack]
        self.full_rate_start = len(strides) - _leading([stride == 1 for stride in reversed(strides)])
        self.projection = FastProjection(decoder.projection, arithmetic)
        self.blocks = nn.ModuleList(
            FastDecoderBlock(block, arithmetic, full_rate=index >= self.full_rate_start)
            for index, block in enumerate(decoder.stack)
        )
        self.last = FastConvolution(decoder.last, full_rate=False)
        # The ranges repeat with every token, so those of one token's frames are enough.
        self._input_ranges = [decoder.input_span(frame, frame) for frame in range(math.prod(strides))]

    def forward(self, embeddings: Tensor, state: StreamState | None = None) -> Tensor:
        """See `Decoder.forward`."""
        state = StreamState() if state is None else state
        chunks = embeddings.split(CHUNK_TOKENS, dim=2)
        return torch.cat([self._decode_chunk(chunk, state) for chunk in chunks], dim=2)

    def _decode_chunk(self, embeddings: Tensor, state: StreamState) -> Tensor:
        batch = len(embeddings)
        x = embeddings.permute(2, 0, 1)  # [tokens, batch, embedding_dim]
        if self.separates_tokens:
            x = x.unflatten(2, (self.groups, -1)).flatten(1, 2)
        x = self.projection(x, state)
        if self.split_index == -1 and not self.separates_tokens:
            x = x.unflatten(2, (self.groups, -1)).flatten(1, 2)
        x = self._through(x.unflatten(2, (self.token_bins, -1)), 0, self.full_rate_start, state)
        steps = x.clone().split(self.step_frames)  # the steps overwrite x
        x = torch.cat([self._full_rate(step, state) for step in steps])
        # [T, batch * groups, F, C] -> [batch, groups * C, T, F]
        return x.permute(1, 3, 0, 2).unflatten(0, (batch, -1)).flatten(1, 2)

    def input_span(self, first: int, last: int) -> Span:
        """See `Decoder.input_span`."""
        frames = len(self._input_ranges)
        earliest, latest = self._input_ranges[first % frames][0], self._input_ranges[last % frames][1]
        return first // frames + earliest, last // frames + latest

    def _full_rate(self, x: Tensor, state: StreamState) -> Tensor:
        x = self._through(x, self.full_rate_start, len(self.blocks), state)
        return self.last(x, state, "last").clone()

    def _through(self, x: Tensor, start: int, stop: int, state: StreamState) -> Tensor:
        for index in range(start, stop):
            x = self.blocks[index](x, state, ROLES[index % 2])
            if index == self.split_index:
                x = x.unflatten(3, (self.groups, -1)).permute(0, 1, 3, 2, 4).flatten(1, 2)
        return x


def _leading(flags: list[bool]) -> int:
    """Return the number of true values before the first false one."""
    return flags.index(False) if False in flags else len(flags)
