"""The complex spectrogram of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.frontends.lapped_frames import HOP_LENGTH, SPECTRAL_LAYOUT, frames_over, lapped_frames, overlap_add
from spectrostream.streaming import Span, StreamState


class ComplexSTFT(nn.Module):
    """Complex spectrogram: periodic Hann 960, hop 480, the Nyquist bin dropped (paper; official implementation).

    Frame k contains samples 480k .. 480k + 959. Only one frame contains the first 480 samples, so they are
    reconstructed with a fade-in. All later samples are reconstructed, except for the Nyquist bin.
    """

    window: Tensor
    synthesis_window: Tensor
    hop_length = HOP_LENGTH
    look_ahead = HOP_LENGTH
    features_per_channel = 2  # real, imaginary
    layout = SPECTRAL_LAYOUT

    def __init__(self) -> None:
        super().__init__()
        window = torch.hann_window(2 * self.hop_length, periodic=True, dtype=torch.float64)
        # w * w / (w^2 + shifted w^2) adds up to one where two frames overlap.
        power = window.square()
        synthesis_window = window / (power + power.roll(self.hop_length))
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("synthesis_window", synthesis_window.float(), persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`; the order of the features is L re, L im, R re, R im."""
        # [batch, channels, frames, bins]
        spectrum = torch.fft.rfft(lapped_frames(audio) * self.window)[..., :-1]
        return torch.stack((spectrum.real, spectrum.imag), dim=2).flatten(1, 2)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`."""
        real, imaginary = features.float().unflatten(1, (-1, 2)).unbind(2)
        spectrum = F.pad(torch.complex(real, imaginary), (0, 1))
        return overlap_add(torch.fft.irfft(spectrum) * self.synthesis_window, self, state)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return frames_over(first, last)
