"""The decoder: embeddings through a residual stack that separates the channel groups at the split block."""

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
    """ELU, transposed convolution, ELU, convolution; shortcut: 1x1 where asked, then repetition."""

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
        """`[batch, in, T, F]` to `[batch, out, T*stride_t, F*stride_f]`."""
        y = self.convolution(F.elu(self.resampling(F.elu(x), state)), state)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return y + repeat_upsample(shortcut, self.stride)

    def input_span(self, first: int, last: int) -> Span:
        """Input frames that output frames first..last depend on."""
        return self.resampling.input_span(*self.convolution.input_span(first, last))


class Decoder(nn.Module):
    """Embeddings `[batch, embedding_dim * token_groups, T]` to features `[batch, groups * features, frames, F]`.

    token_groups: tokens side by side in an embedding: `groups` if the encoder never joined them, else 1.
    split mirrors the encoder's fusion: with split r the last block that sees all groups is the mirror image of encoder
    block r, and its output is one width per group, first (left) group first; later blocks run on each group with shared
    weights. The number of strided blocks means the bottleneck block, one more that no block sees all groups: each group
    goes from its own token, or, where the tokens are joint, from its own part of a wider input projection. With one
    group only the last convolution separates the channels.
    """

    def __init__(
        self, layout: Layout, *, groups: int, features: int, width: int, embedding_dim: int, split: int,
        token_groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.groups = groups
        self.token_bins = layout.token_bins
        widths = layout.widths(width)[::-1]
        # Block 0, the bottleneck, mirrors the encoder's last one, index len(strides); block j the one j before.
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
        # The official code compares with the width before separation, so the block after the split sometimes has a 1x1
        # between equal widths. Kept for key parity with the released weights.
        follows_split = index > 0 and index - 1 == self.split_index
        nominal_before = before * (self.groups if follows_split else 1)
        return DecoderBlock(before, out_features, kernel, stride, project_shortcut=nominal_before != out_features)

    def forward(self, embeddings: Tensor, state: StreamState | None = None) -> Tensor:
        """See the class."""
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
        """Tokens that front-end frames first..last depend on."""
        span = self.last.input_span(first, last)
        for block in reversed(self.stack):
            span = block.input_span(*span)
        return span
