"""The modified discrete cosine transform: as many real coefficients as samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spectrostream.frontends.lapped_frames import HOP_LENGTH, SPECTRAL_LAYOUT, frames_over, lapped_frames, overlap_add
from spectrostream.streaming import Span, StreamState


class MDCT(nn.Module):
    """MDCT with a sine window of 960, hop 480: 480 real coefficients a frame (Princen, Johnson and Bradley, 1987).

    Coefficient m of frame k is `sqrt(3)/2 * sum_n w[n] x[480k + n] cos(pi/480 (n + 1/2 + 240) (m + 1/2))`. The factor
    is ours: for white noise every coefficient then has the variance of the STFT's real and imaginary parts, 180 times
    that of the samples.

    A frame holds 480 numbers of its 960 samples: each half is mixed with its mirror image, and the mixtures of two
    neighbours cancel. Frames are aligned as the STFT's, so the first 480 samples lie in frame 0 alone, whose mixture
    stays: sample n < 480 comes back as `w[n]^2 x[n] - w[n] w[479-n] x[479-n]`. This is the orthogonal projection of
    the block onto what frame 0 holds of it: of all blocks that give this frame, the one of least energy. It needs no
    exception at the start of a signal, where a stream would need one too. It fades in as the STFT's first block does,
    beside a mirror image of at most half of the amplitude; a silent start stays silent. All later samples come back.
    """

    window: Tensor
    twiddle: Tensor
    hop_length = HOP_LENGTH
    look_ahead = HOP_LENGTH
    features_per_channel = 1
    layout = SPECTRAL_LAYOUT
    # Of the orthonormal transform, which keeps the variance of white noise; the Hann window's squares sum to 360.
    scale = math.sqrt(180.0)

    def __init__(self) -> None:
        super().__init__()
        window = torch.sin(math.pi * (torch.arange(2 * HOP_LENGTH, dtype=torch.float64) + 0.5) / (2 * HOP_LENGTH))
        angle = -math.pi / HOP_LENGTH * (torch.arange(HOP_LENGTH // 2, dtype=torch.float64) + 1 / 8)
        self.register_buffer("window", window.float(), persistent=False)
        # (cosine, sine): complex buffers do not survive a change of dtype, nor every backend of distributed training.
        twiddle = torch.stack((angle.cos(), angle.sin()), dim=-1)
        self.register_buffer("twiddle", twiddle.float(), persistent=False)

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`."""
        # [batch, channels, frames, 960] in quarters; the mirror images of b and c lie on a and d
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
        # Orthonormal, hence its own inverse: X[m] = sqrt(2/N) sum_n x[n] cos(pi/N (n + 1/2) (m + 1/2)), N = 480.
        # With z[n] = x[2n] + i x[N-1-2n] and t[n] = exp(-i pi/N (n + 1/8)), n < N/2, the transform of t z times t is
        # y[m] = X[2m] - i X[N-1-2m]: one FFT of N/2 points.
        twiddle = torch.view_as_complex(self.twiddle)
        z = torch.complex(x[..., 0::2], x[..., 1::2].flip(-1))
        y = twiddle * torch.fft.fft(twiddle * z, norm="ortho")
        return torch.stack((y.real, -y.imag.flip(-1)), dim=-1).flatten(-2)
