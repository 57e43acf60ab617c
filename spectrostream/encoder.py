"""The encoder: a residual stack that sees each channel group alone until the fusion block joins the groups."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import Convolution, Pair, average_pool, join_groups, resampling_kernel, separate_groups
from spectrostream.frontends import Layout
from spectrostream.streaming import Span, StreamState


class EncoderBlock(nn.Module):
    """A residual block: ELU, convolution, ELU, strided convolution.

    The shortcut averages over the stride, and has a 1x1 convolution if the width changes.
    """

    def __init__(self, in_features: int, out_features: int, kernel: Pair, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = Convolution(in_features, in_features, kernel)
        self.resampling = Convolution(in_features, out_features, resampling_kernel(kernel, stride), stride)
        self.shortcut = Convolution(in_features, out_features, (1, 1)) if in_features != out_features else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, in, T, F]` to `[batch, out, ceil(T/stride_t), F/stride_f]`."""
        y = self.resampling(F.elu(self.convolution(F.elu(x), state)), state)
        shortcut = average_pool(x, self.stride)
        return y + (shortcut if self.shortcut is None else self.shortcut(shortcut))

    def input_span(self, first: int, last: int) -> Span:
        """Return the input frames that output frames first..last depend on."""
        return self.convolution.input_span(*self.resampling.input_span(first, last))


class TokenProjection(nn.Module):
    """The layer between a frame of the bottleneck and an embedding: `skip(x) + second(ELU(first(x)))`, all 1x1.

    Args:
        in_features: Features of the input.
        hidden_features: Features between `first` and `second`.
        out_features: Features of the output.
        activate_input: Apply ELU before `first`. The official encoder does, the official decoder does not.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, activate_input: bool) -> None:
        super().__init__()
        self.activate_input = activate_input
        self.skip = Convolution(in_features, out_features, (1, 1))
        self.first = Convolution(in_features, hidden_features, (1, 1))
        self.second = Convolution(hidden_features, out_features, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, T, 1]` to `[batch, out, T, 1]`."""
        hidden = self.first(F.elu(x) if self.activate_input else x)
        return self.skip(x) + self.second(F.elu(hidden))


class Encoder(nn.Module):
    """The network from features to embeddings.

    Before fusion, the network runs on each channel group alone, with shared weights. With one group there is nothing to
    join (the official "no split").

    Args:
        layout: The front-end's strides, widths and kernels.
        groups: Number of channel groups.
        features: Features of one group.
        width: Features after the first convolution.
        embedding_dim: Features of a token.
        fusion: Index of the block that first sees all groups; the bottleneck block comes after the strided blocks. With
            one index more, the groups are never joined: each has its own token, and an embedding holds all of them.
    """

    def __init__(
        self, layout: Layout, *, groups: int, features: int, width: int, embedding_dim: int, fusion: int
    ) -> None:
        super().__init__()
        self.groups = groups
        self.fusion = fusion
        widths = layout.widths(width)
        self.first = Convolution(features, width, layout.outer_kernel)
        # The strided blocks, then the bottleneck block, which keeps width and resolution.
        shapes = [*zip(widths[:-1], widths[1:], layout.strides, strict=True), (widths[-1], widths[-1], (1, 1))]
        self.blocks = nn.ModuleList(
            EncoderBlock(before * (groups if index == fusion else 1), after, layout.kernel, stride)
            for index, (before, after, stride) in enumerate(shapes)
        )
        column = layout.token_bins * widths[-1]
        self.projection = TokenProjection(column, column, embedding_dim, activate_input=True)

    def forward(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, groups * features, frames, bins]` to `[batch, embedding_dim * token_groups, tokens]`.

        token_groups is `groups` if the groups are never joined, else 1.
        """
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
        """Return the front-end frames that tokens first..last depend on."""
        span = first, last
        for block in reversed(self.stack):
            span = block.input_span(*span)
        return self.first.input_span(*span)
