"""The modified discrete cosine transform: it has as many real coefficients as samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spectrostream.frontends.lapped_frames import HOP_LENGTH, SPECTRAL_LAYOUT, frames_over, lapped_frames, overlap_add
from spectrostream.streaming import Span, StreamState


class MDCT(nn.Module):
    """MDCT with a sine window of 960, hop 480: 480 real coefficients per frame (Princen, Johnson and Bradley, 1987).

    Coefficient m of frame k is `sqrt(3)/2 * sum_n w[n] x[480k + n] cos(pi/480 (n + 1/2 + 240) (m + 1/2))`. The factor
    is ours: for white noise, each coefficient has the variance of the STFT's real and imaginary parts, 180 times that
    of the samples.

    The 480 coefficients of a frame do not determine its 960 samples: each half is aliased with its mirror image. The
    aliasing of neighbouring frames cancels. Only frame 0 contains the first 480 samples, so their aliasing remains:
    sample n < 480 becomes `w[n]^2 x[n] - w[n] w[479-n] x[479-n]`. Of all blocks that give frame 0, this one has the
    least energy. The start fades in like the STFT's, and the mirror image has at most half of the amplitude. A silent
    start remains silent, and a stream needs no exception. All later samples are reconstructed.
    """

    window: Tensor
    twiddle: Tensor
    hop_length = HOP_LENGTH
    look_ahead = HOP_LENGTH
    features_per_channel = 1
    layout = SPECTRAL_LAYOUT
    # The orthonormal transform keeps the variance of white noise. The squares of the STFT's window sum to 360, half of
    # that for the real part.
    scale = math.sqrt(180.0)

    def __init__(self) -> None:
        super().__init__()
        window = torch.sin(math.pi * (torch.arange(2 * HOP_LENGTH, dtype=torch.float64) + 0.5) / (2 * HOP_LENGTH))
        angle = -math.pi / HOP_LENGTH * (torch.arange(HOP_LENGTH // 2, dtype=torch.float64) + 1 / 8)
        self.register_buffer("window", window.float(), persistent=False)
        # (cosine, sine), because a change of dtype and some distributed backends fail with complex buffers.
        twiddle = torch.stack((angle.cos(), angle.sin()), dim=-1)
        self.register_buffer("twiddle", twiddle.float(), persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`."""
        # The quarters of [batch, channels, frames, 960]; the mirror images of b and c are added to a and d.
        a, b, c, d = (lapped_frames(audio) * self.window).split(HOP_LENGTH // 2, dim=-1)
        folded = torch.cat((-c.flip(-1) - d, a - b.flip(-1)), dim=-1)
        return self.scale * self._dct_iv(folded)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`."""
        second, first = self._dct_iv(features.float() / self.scale).split(HOP_LENGTH // 2, dim=-1)
        unfolded = torch.cat((first, -first.flip(-1), -second.flip(-1), -second), dim=-1)
        return overlap_add(unfolded * self.window, self, state)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return frames_over(first, last)

    def _dct_iv(self, x: Tensor) -> Tensor:
        # X[m] = sqrt(2/N) sum_n x[n] cos(pi/N (n + 1/2) (m + 1/2)), N = 480, is orthonormal and its own inverse.
        # With z[n] = x[2n] + i x[N-1-2n] and t[n] = exp(-i pi/N (n + 1/8)), n < N/2, one FFT of N/2 points is enough:
        # y = t FFT(t z), and y[m] = X[2m] - i X[N-1-2m].
        twiddle = torch.view_as_complex(self.twiddle)
        z = torch.complex(x[..., 0::2], x[..., 1::2].flip(-1))
        y = twiddle * torch.fft.fft(twiddle * z, norm="ortho")
        return torch.stack((y.real, -y.imag.flip(-1)), dim=-1).flatten(-2)
