"""The encoder: a residual stack that sees each audio channel alone, joins them at the fusion block, ends in tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.convolution import Convolution, Pair, average_pool, join_channels, resampling_kernel
from spectrostream.frontends import Layout


class EncoderBlock(nn.Module):
    """ELU, convolution, ELU, strided convolution; shortcut: average pool, then 1x1 if the width changes."""

    def __init__(self, in_features: int, out_features: int, kernel: Pair, stride: Pair) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = Convolution(in_features, in_features, kernel)
        self.resampling = Convolution(in_features, out_features, resampling_kernel(kernel, stride), stride)
        self.shortcut = Convolution(in_features, out_features, (1, 1)) if in_features != out_features else None

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, in, T, F]` to `[batch, out, ceil(T/stride_t), F/stride_f]`."""
        y = self.resampling(F.elu(self.convolution(F.elu(x))))
        shortcut = average_pool(x, self.stride)
        return y + (shortcut if self.shortcut is None else self.shortcut(shortcut))


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
    """Features `[batch, channels * features_per_channel, T, F]` to embeddings `[batch, embedding_dim, tokens]`.

    fusion: index r of the block that first sees all channels; the number of strided blocks means the bottleneck block,
    -1 means that the first convolution sees them already (the official "no split").
    """

    def __init__(
        self, layout: Layout, *, channels: int, features_per_channel: int, width: int, embedding_dim: int, fusion: int
    ) -> None:
        super().__init__()
        self.channels = channels
        self.fusion = fusion
        in_features = features_per_channel * (channels if fusion < 0 else 1)
        widths = layout.widths(width)
        self.first = Convolution(in_features, width, layout.outer_kernel)
        # the strided blocks, then the bottleneck, which keeps width and resolution
        shapes = [*zip(widths[:-1], widths[1:], layout.strides, strict=True), (widths[-1], widths[-1], (1, 1))]
        self.blocks = nn.ModuleList(
            EncoderBlock(before * (channels if index == fusion else 1), after, layout.kernel, stride)
            for index, (before, after, stride) in enumerate(shapes)
        )
        column = layout.token_bins * widths[-1]
        self.projection = TokenProjection(column, column, embedding_dim, activate_input=True)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        batch = features.shape[0]
        x = features
        if self.fusion >= 0:
            x = x.reshape(batch * self.channels, -1, *x.shape[2:])
        x = self.first(x)
        for index, block in enumerate(self.blocks):
            if index == self.fusion:
                x = join_channels(x, self.channels)
            x = block(x)
        # [batch, C, tokens, bins] -> [batch, bins * C, tokens, 1], index f * C + c
        column = x.permute(0, 3, 1, 2).flatten(1, 2).unsqueeze(-1)
        return self.projection(column).squeeze(-1)
