"""The interface of every front-end, and how the residual stacks reduce its features to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from spectrostream.convolution import Pair
from spectrostream.streaming import Span, StreamState

SAMPLES_PER_TOKEN = 1920


@dataclass(frozen=True)
class Layout:
    """How the residual stacks reduce a front-end's features to tokens.

    Attributes:
        bins: Bins of the front-end.
        strides: (time, frequency) of each encoder block, first to last; the decoder has them in reverse order.
        multipliers: Width of each block's output divided by the width of its input.
        kernel: Kernel of the residual convolutions.
        outer_kernel: Kernel of the encoder's first and the decoder's last convolution.
    """

    bins: int
    strides: tuple[Pair, ...]
    multipliers: tuple[int, ...]
    kernel: Pair
    outer_kernel: Pair

    @property
    def frames_per_token(self) -> int:
        """Front-end frames per token."""
        frames = 1
        for stride in self.strides:
            frames *= stride[0]
        return frames

    @property
    def token_bins(self) -> int:
        """Bins at the bottleneck."""
        bins = self.bins
        for stride in self.strides:
            bins //= stride[1]
        return bins

    def widths(self, base: int) -> tuple[int, ...]:
        """Return the width before each block and after the last, for the width `base` before the first."""
        widths = [base]
        for multiplier in self.multipliers:
            widths.append(widths[-1] * multiplier)
        return tuple(widths)


class FrontEnd(Protocol):
    """A transform from audio to features and back; `synthesis(analysis(x))` is x, as far as the features hold it.

    Frame k stands for samples hop_length * k .. hop_length * (k + 1) - 1. It depends on these, on the `look_ahead`
    samples after them, and on no sample before them. So the analysis of a stream needs no state; the synthesis does.

    Attributes:
        hop_length: Samples per frame.
        look_ahead: Samples after its own that a frame depends on.
        features_per_channel: Features of one channel.
        layout: How the residual stacks reduce the features to tokens.
    """

    hop_length: int
    look_ahead: int
    features_per_channel: int
    layout: Layout

    def analysis(self, audio: Tensor) -> Tensor:
        """Compute features in float32, for audio of any type.

        Args:
            audio: `[batch, channels, samples]`; zeros follow after the end.

        Returns:
            `[batch, channels * features_per_channel, ceil(samples / hop_length), bins]`.
        """

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """Compute audio from features.

        Args:
            features: `[batch, channels * features_per_channel, frames, bins]`.
            state: The state of the stream whose next chunk this is; None for a whole signal.

        Returns:
            `[batch, channels, frames * hop_length]`.
        """

    def synthesis_span(self, first: int, last: int) -> Span:
        """Return the first and last frame that output samples first..last depend on."""
