"""Front-ends: audio to features `[batch, channels * features, frames, bins]` and back, and the strides that suit them.

Both give 25 tokens/s at 48 kHz (1920 samples a token) and the same number of blocks, so a fusion or split point means
the same thing in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

        Samples after the end are zeros.
        """

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """`[batch, channels * features_per_channel, frames, bins]` to `[batch, channels, frames * hop_length]`."""

    def synthesis_span(self, first: int, last: int) -> Span:
        """Frames that output samples first..last depend on."""


class ComplexSTFT(nn.Module):
    """Complex spectrogram: periodic Hann 960, hop 480, the Nyquist bin dropped (paper; official implementation).

    Frame k covers samples 480k .. 480k + 959; only the right end is zero-padded, so the first 480 samples lie in one
    frame and come back with a fade-in. Everything else comes back but for the dropped bin.
    """

    window: Tensor
    synthesis_window: Tensor
    hop_length = 480
    look_ahead = 480
    features_per_channel = 2  # real, imaginary
    layout = Layout(
        bins=480,
        strides=((1, 2), (1, 2), (1, 3), (1, 2), (1, 2), (2, 2), (2, 1)),
        multipliers=(2, 1, 2, 1, 1, 2, 1),
        kernel=(3, 3),
        outer_kernel=(7, 7),
    )

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(2 * self.hop_length, periodic=True, dtype=torch.float64)
        # Overlap-add of w * w / (w^2 + shifted w^2) is one wherever two frames meet.
        power = window.square()
        synthesis_window = window / (power + power.roll(self.hop_length))
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("synthesis_window", synthesis_window.float(), persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`; features in the order L re, L im, R re, R im."""
        batch, channels, samples = audio.shape
        frames = -(-samples // self.hop_length)
        padded = F.pad(audio.float(), (0, (frames + 1) * self.hop_length - samples))
        # [batch, channels, frames, bins] without the Nyquist bin
        spectrum = torch.fft.rfft(padded.unfold(-1, 2 * self.hop_length, self.hop_length) * self.window)[..., :-1]
        return torch.stack((spectrum.real, spectrum.imag), dim=2).reshape(batch, 2 * channels, frames, -1)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`."""
        batch, _, frames, bins = features.shape
        real, imaginary = features.float().reshape(batch, -1, 2, frames, bins).unbind(2)
        spectrum = F.pad(torch.complex(real, imaginary), (0, 1))
        windowed = torch.fft.irfft(spectrum) * self.synthesis_window
        first, second = windowed.split(self.hop_length, dim=-1)
        # Block k is the first half of frame k plus the second half of frame k - 1; the last tail has no partner yet.
        tails = F.pad(second, (0, 0, 1, 0)) if state is None else state.prepend(self, second, 1)
        return (first + tails[..., :-1, :]).flatten(-2)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return first // self.hop_length - 1, last // self.hop_length


class Waveform(nn.Module):
    """Samples as they are: one feature per channel, one bin; the stacks become 1-D strided residual networks.

    Strides follow the spectral stack's reduction of time x frequency positions as closely as 1920 samples a token
    allow, so that the two variants cost about the same.
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


FRONT_ENDS: dict[str, type[ComplexSTFT] | type[Waveform]] = {"stft": ComplexSTFT, "waveform": Waveform}
