"""The decoder: embeddings through a residual stack that separates the audio channels at the split block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import (
    Convolution,
    Pair,
    TransposedConvolution,
    repeat_upsample,
    resampling_kernel,
    separate_channels,
)
from spectrostream.encoder import TokenProjection
from spectrostream.frontends import Layout


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

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, T*stride_t, F*stride_f]`."""
        y = self.convolution(F.elu(self.resampling(F.elu(x))))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return y + repeat_upsample(shortcut, self.stride)


class Decoder(nn.Module):
    """Embeddings `[batch, embedding_dim, T]` to features `[batch, channels * features_per_channel, frames, bins]`.

    split mirrors the encoder's fusion: with split r the last block that sees all channels is the mirror image of
    encoder block r; -1 means that only the last convolution separates them. The split block's output is one width per
    channel, left first; later blocks run on each channel with shared weights.
    """

    def __init__(
        self, layout: Layout, *, channels: int, features_per_channel: int, width: int, embedding_dim: int, split: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.token_bins = layout.token_bins
        widths = layout.widths(width)[::-1]
        # Block 0, the bottleneck, mirrors the encoder's last one, index len(strides); block j the one j before.
        self.split_index = len(layout.strides) - split if split >= 0 else None
        column = self.token_bins * widths[0]
        self.projection = TokenProjection(embedding_dim, column, column, activate_input=False)
        shapes = [(widths[0], widths[0], (1, 1)), *zip(widths[:-1], widths[1:], layout.strides[::-1], strict=True)]
        self.blocks = nn.ModuleList(self._block(index, *shape, layout.kernel) for index, shape in enumerate(shapes))
        last_features = features_per_channel * (channels if split < 0 else 1)
        self.last = Convolution(widths[-1], last_features, layout.outer_kernel)

    def _block(self, index: int, before: int, after: int, stride: Pair, kernel: Pair) -> DecoderBlock:
        is_split = index == self.split_index
        out_features = after * (self.channels if is_split else 1)
        # The official code compares with the width before separation, so the block after the split sometimes has a 1x1
        # between equal widths. Kept for key parity with the released weights.
        follows_split = self.split_index is not None and index == self.split_index + 1
        nominal_before = before * (self.channels if follows_split else 1)
        return DecoderBlock(before, out_features, kernel, stride, project_shortcut=nominal_before != out_features)

    def forward(self, embeddings: Tensor) -> Tensor:
        """See the class."""
        batch, _, tokens = embeddings.shape
        column = self.projection(embeddings.unsqueeze(-1)).squeeze(-1)
        # [batch, bins * C, tokens] -> [batch, C, tokens, bins], index f * C + c
        x = column.reshape(batch, self.token_bins, -1, tokens).permute(0, 2, 3, 1)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.split_index:
                x = separate_channels(x, self.channels)
        x = self.last(F.elu(x))
        return x.reshape(batch, -1, *x.shape[2:])
