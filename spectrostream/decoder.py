"""The decoder: a residual stack that separates the channel groups at the split block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import (
    Convolution,
    Pair,
    TransposedConvolution,
    repeat_upsample,
    resampling_kernel,
    separate_groups,
)
from spectrostream.encoder import TokenProjection
from spectrostream.frontends import Layout
from spectrostream.streaming import Span, StreamState


class DecoderBlock(nn.Module):
    """A residual block: ELU, transposed convolution, ELU, convolution.

    The shortcut has a 1x1 convolution if `project_shortcut`, and repeats frames and bins.
    """

    def __init__(
        self, in_features: int, out_features: int, kernel: Pair, stride: Pair, *, project_shortcut: bool
    ) -> None:
        super().__init__()
        self.stride = stride
        self.resampling: Convolution | TransposedConvolution
        if stride == (1, 1):
            self.resampling = Convolution(in_features, out_features, (min(kernel[0], 3), min(kernel[1], 3)))
        else:
            self.resampling = TransposedConvolution(
                in_features, out_features, resampling_kernel(kernel, stride), stride
            )
        self.convolution = Convolution(out_features, out_features, kernel)
        self.shortcut = Convolution(in_features, out_features, (1, 1)) if project_shortcut else None

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, in, T, F]` to `[batch, out, T*stride_t, F*stride_f]`."""
        y = self.convolution(F.elu(self.resampling(F.elu(x), state)), state)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return y + repeat_upsample(shortcut, self.stride)

    def input_span(self, first: int, last: int) -> Span:
        """Return the input frames that output frames first..last depend on."""
        return self.resampling.input_span(*self.convolution.input_span(first, last))


class Decoder(nn.Module):
    """The network from embeddings to features.

    The split mirrors the encoder's fusion. The split block is the last one that sees all groups. Its output has one
    width per group, first (left) group first. Later blocks run on each group alone, with shared weights. With one
    group, only the last convolution separates the channels.

    Args:
        layout: The front-end's strides, widths and kernels.
        groups: Number of channel groups.
        features: Features of one group.
        width: Features before the last convolution.
        embedding_dim: Features of a token.
        split: Index of the encoder block that the split block mirrors; the bottleneck block comes after the strided
            blocks. With one index more, no block sees all groups: each group starts from its own token, or from its own
            part of a wider projection if the token is common.
        token_groups: Tokens in an embedding: `groups` if the encoder never joins them, else 1.
    """

    def __init__(
        self, layout: Layout, *, groups: int, features: int, width: int, embedding_dim: int, split: int,
        token_groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.groups = groups
        self.token_bins = layout.token_bins
        widths = layout.widths(width)[::-1]
        # Block j mirrors encoder block len(strides) - j; block 0 is the bottleneck block.
        self.split_index = len(layout.strides) - split if groups > 1 else None
        self.separates_tokens = self.split_index == -1 and token_groups == groups
        column = self.token_bins * widths[0]
        self.projection = TokenProjection(
            embedding_dim * (1 if self.separates_tokens else token_groups),
            column,
            column * (groups if self.split_index == -1 and not self.separates_tokens else 1),
            activate_input=False,
        )
        shapes = [(widths[0], widths[0], (1, 1)), *zip(widths[:-1], widths[1:], layout.strides[::-1], strict=True)]
        self.blocks = nn.ModuleList(self._block(index, *shape, layout.kernel) for index, shape in enumerate(shapes))
        self.last = Convolution(widths[-1], features, layout.outer_kernel)

    def _block(self, index: int, before: int, after: int, stride: Pair, kernel: Pair) -> DecoderBlock:
        is_split = index == self.split_index
        out_features = after * (self.groups if is_split else 1)
        # The official code compares with the width before separation, so the block after the split can have a 1x1
        # convolution between equal widths. The released weights have its keys.
        follows_split = index > 0 and index - 1 == self.split_index
        nominal_before = before * (self.groups if follows_split else 1)
        return DecoderBlock(before, out_features, kernel, stride, project_shortcut=nominal_before != out_features)

    def forward(self, embeddings: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, embedding_dim * token_groups, tokens]` to `[batch, groups * features, frames, bins]`."""
        batch, _, tokens = embeddings.shape
        if self.separates_tokens:
            embeddings = separate_groups(embeddings, self.groups)
        column = self.projection(embeddings.unsqueeze(-1)).squeeze(-1)
        if self.split_index == -1 and not self.separates_tokens:
            column = separate_groups(column, self.groups)
        # [batch, bins * C, tokens] -> [batch, C, tokens, bins], index f * C + c
        x = column.reshape(column.shape[0], self.token_bins, -1, tokens).permute(0, 2, 3, 1)
        for index, block in enumerate(self.blocks):
            x = block(x, state)
            if index == self.split_index:
                x = separate_groups(x, self.groups)
        x = self.last(F.elu(x), state)
        return x.reshape(batch, -1, *x.shape[2:])

    @property
    def stack(self) -> list[DecoderBlock]:
        """The blocks, first to last."""
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]

    def input_span(self, first: int, last: int) -> Span:
        """Return the tokens that front-end frames first..last depend on."""
        span = self.last.input_span(first, last)
        for block in reversed(self.stack):
            span = block.input_span(*span)
        return span
