"""No front-end at all: the samples themselves."""

from __future__ import annotations

from torch import Tensor, nn

from spectrostream.frontends.contract import Layout
from spectrostream.streaming import Span, StreamState


class Waveform(nn.Module):
    """Samples as they are: one feature per channel, one bin; the stacks become 1-D strided residual networks.

    Strides follow the spectral stack's reduction of time x frequency positions as closely as 1920 samples a token
    allow. At equal widths it costs half of the spectral stack; `spectrostream.width_matching` finds the widths of equal
    cost.
    """

    hop_length = 1
    look_ahead = 0
    features_per_channel = 1
    layout = Layout(
        bins=1,
        strides=((2, 1), (2, 1), (3, 1), (2, 1), (4, 1), (4, 1), (5, 1)),
        multipliers=(2, 1, 2, 1, 1, 2, 1),
        kernel=(7, 1),
        outer_kernel=(7, 1),
    )

    def analysis(self, audio: Tensor) -> Tensor:
        """`[batch, channels, samples]` to `[batch, channels, samples, 1]`."""
        return audio.float().unsqueeze(-1)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """`[batch, channels, samples, 1]` to `[batch, channels, samples]`."""
        return features.float().squeeze(-1)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return first, last
