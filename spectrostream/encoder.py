"""The encoder: a residual stack that sees each channel group alone, joins them at the fusion block, ends in tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import Convolution, Pair, average_pool, join_groups, resampling_kernel, separate_groups
from spectrostream.frontends import Layout
from spectrostream.streaming import Span, StreamState


class EncoderBlock(nn.Module):
    """ELU, convolution, ELU, strided convolution; shortcut: average pool, then 1x1 if the width changes."""

    def __init__(self, in_features: int, out_features: int, kernel: Pair, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = Convolution(in_features, in_features, kernel)
        self.resampling = Convolution(in_features, out_features, resampling_kernel(kernel, stride), stride)
        self.shortcut = Convolution(in_features, out_features, (1, 1)) if in_features != out_features else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, ceil(T/stride_t), F/stride_f]`."""
        y = self.resampling(F.elu(self.convolution(F.elu(x), state)), state)
        shortcut = average_pool(x, self.stride)
        return y + (shortcut if self.shortcut is None else self.shortcut(shortcut))

    def input_span(self, first: int, last: int) -> Span:
        """Input frames that output frames first..last depend on."""
        return self.convolution.input_span(*self.resampling.input_span(first, last))


class TokenProjection(nn.Module):
    """`skip(x) + second(ELU(first(x)))`, all 1x1: between a bottleneck column and an embedding, either way.

    The official encoder also applies ELU before `first`, its decoder does not: `activate_input`.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, activate_input: bool) -> None:
        super().__init__()
        self.activate_input = activate_input
        self.skip = Convolution(in_features, out_features, (1, 1))
        self.first = Convolution(in_features, hidden_features, (1, 1))
        self.second = Convolution(hidden_features, out_features, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, 1]` to `[batch, out, T, 1]`."""
        hidden = self.first(F.elu(x) if self.activate_input else x)
        return self.skip(x) + self.second(F.elu(hidden))


class Encoder(nn.Module):
    """Features `[batch, groups * features, T, F]` to embeddings `[batch, embedding_dim * (groups or 1), tokens]`.

    groups: channel groups that are seen apart, with shared weights, until they are joined; features: of one group.
    fusion: index r of the block that first sees all groups; the number of strided blocks means the bottleneck block,
    one more means never: each group has its own token, and the tokens stand side by side in the embedding. With one
    group there is nothing to join (the official "no split").
    """

    def __init__(
        self, layout: Layout, *, groups: int, features: int, width: int, embedding_dim: int, fusion: int
    ) -> None:
        super().__init__()
        self.groups = groups
        self.fusion = fusion
        widths = layout.widths(width)
        self.first = Convolution(features, width, layout.outer_kernel)
        # the strided blocks, then the bottleneck, which keeps width and resolution
        shapes = [*zip(widths[:-1], widths[1:], layout.strides, strict=True), (widths[-1], widths[-1], (1, 1))]
        self.blocks = nn.ModuleList(
            EncoderBlock(before * (groups if index == fusion else 1), after, layout.kernel, stride)
            for index, (before, after, stride) in enumerate(shapes)
        )
        column = layout.token_bins * widths[-1]
        self.projection = TokenProjection(column, column, embedding_dim, activate_input=True)

    def forward(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See the class."""
        x = self.first(separate_groups(features, self.groups), state)
        for index, block in enumerate(self.blocks):
            if index == self.fusion:
                x = join_groups(x, self.groups)
            x = block(x, state)
        # [batch, C, tokens, bins] -> [batch, bins * C, tokens, 1], index f * C + c
        column = x.permute(0, 3, 1, 2).flatten(1, 2).unsqueeze(-1)
        embeddings = self.projection(column).squeeze(-1)
        return join_groups(embeddings, self.groups) if self.fusion == len(self.blocks) else embeddings

    @property
    def stack(self) -> list[EncoderBlock]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, EncoderBlock)]

    def input_span(self, first: int, last: int) -> Span:
        """Front-end frames that tokens first..last depend on."""
        span = first, last
        for block in reversed(self.stack):
            span = block.input_span(*span)
        return self.first.input_span(*span)
