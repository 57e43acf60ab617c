"""The waveform as a front-end, for a codec that works on samples."""

from __future__ import annotations

from torch import Tensor, nn

from spectrostream.frontends.contract import Layout
from spectrostream.streaming import Span, StreamState


class Waveform(nn.Module):
    """The samples themselves: one feature per channel and one bin. The stacks become 1-D residual networks.

    The strides reduce the positions as the spectral stack's do, as closely as 1920 samples per token allow. At equal
    widths this stack costs half as much; `spectrostream.width_matching` finds widths of equal cost.
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
        """Map `[batch, channels, samples]` to `[batch, channels, samples, 1]`."""
        return audio.float().unsqueeze(-1)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """Map `[batch, channels, samples, 1]` to `[batch, channels, samples]`."""
        return features.float().squeeze(-1)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return first, last
