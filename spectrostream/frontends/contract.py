"""What every front-end promises, and how the stacks around it reduce its features to tokens."""

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

    strides: (time, frequency) of each encoder block, first to last; the decoder runs them backwards.
    multipliers: width of each block's output over that of its input.
    kernel: of the residual convolutions; outer_kernel: of the first and the last convolution.
    """

    bins: int
    strides: tuple[Pair, ...]
    multipliers: tuple[int, ...]
    kernel: Pair
    outer_kernel: Pair

    @property
    def frames_per_token(self) -> int:
        """Front-end frames that make one token."""
        frames = 1
        for stride in self.strides:
            frames *= stride[0]
        return frames

    @property
    def token_bins(self) -> int:
        """Bins left at the bottleneck."""
        bins = self.bins
        for stride in self.strides:
            bins //= stride[1]
        return bins

    def widths(self, base: int) -> tuple[int, ...]:
        """Width before each block and after the last: one more than there are blocks."""
        widths = [base]
        for multiplier in self.multipliers:
            widths.append(widths[-1] * multiplier)
        return tuple(widths)


class FrontEnd(Protocol):
    """The contract of a front-end; the first samples of `synthesis(analysis(x))` are x, as far as the features hold it.

    Frame k stands for samples hop_length * k .. hop_length * (k + 1) - 1 and sees `look_ahead` samples beyond them,
    none before. So any piece of a signal gives its own frames once those samples are there; synthesis remembers.
    """

    hop_length: int
    look_ahead: int
    features_per_channel: int
    layout: Layout

    def analysis(self, audio: Tensor) -> Tensor:
        """`[batch, channels, samples]` to `[batch, channels * features_per_channel, ceil(samples/hop), bins]`.

        Samples after the end are zeros. Computed in float32 whatever comes in.
        """

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """`[batch, channels * features_per_channel, frames, bins]` to `[batch, channels, frames * hop_length]`."""

    def synthesis_span(self, first: int, last: int) -> Span:
        """Frames that output samples first..last depend on."""
