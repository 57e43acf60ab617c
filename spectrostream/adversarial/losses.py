"""The paper's training losses: hinge, feature matching and multi-scale mel, each a mean over scales; all in float32.

The quantizer computes the commitment loss itself and returns it with its result. DAC's losses are in `dac_losses.py`;
`loss_catalog.py` lists the generator's losses and their weights, `objectives.py` says which belong together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.torchaudio_functional import melscale_fbanks


def hinge_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Scalar `mean(relu(1 - real)) + mean(relu(1 + fake))`, averaged over scales; 0 once all lie beyond the margin.

    Args:
        real_logits: One tensor of any shape per scale, for original audio.
        fake_logits: The same for decoded audio.
    """
    losses = [
        F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
        for real, fake in zip(real_logits, fake_logits, strict=True)
    ]
    return torch.stack(losses).mean()


def hinge_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Scalar `-mean(fake)`, averaged over scales: the higher the logits of decoded audio, the lower the loss.

    Args:
        fake_logits: One tensor of any shape per scale, for decoded audio.
    """
    return -torch.stack([fake.float().mean() for fake in fake_logits]).mean()


def feature_matching_loss(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Scalar mean absolute difference of the discriminator's features, averaged over layers, then over scales.

    Args:
        real_features: Per scale, per hidden layer a tensor, for original audio; no gradient flows into them.
        fake_features: The same for decoded audio.
    """
    scales = []
    for real_layers, fake_layers in zip(real_features, fake_features, strict=True):
        layers = [
            F.l1_loss(fake.float(), real.detach().float()) for real, fake in zip(real_layers, fake_layers, strict=True)
        ]
        scales.append(torch.stack(layers).mean())
    return torch.stack(scales).mean()


class MelLoss(NamedTuple):
    """The two parts of the multi-scale mel loss, scalars; `total` is what is minimised."""

    magnitude: Tensor
    log_magnitude: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum: the paper weighs the two parts by the window alone."""
        return self.magnitude + self.log_magnitude


class MultiScaleMelLoss(nn.Module):
    """Distance between mel spectrograms at several windows w, hop w/4 (Gritsenko et al. 2020; SoundStream; paper).

    With S the magnitudes of an unscaled STFT (periodic Hann, reflected ends) through triangular mel filters from 0 Hz
    to half the sample rate, a scale contributes

        magnitude:      mean |S(decoded) - S(original)|
        log magnitude:  sqrt(w/2) * mean (log(S(decoded) + 1e-5) - log(S(original) + 1e-5))^2

    and both are averaged over scales. Unscaled magnitudes of noise grow with sqrt(w), as does the weight of the second
    part. The 1e-5 inside the natural logarithm lies below the rounding noise of 16-bit audio: it bounds the slope and
    makes silence finite.

    Short windows have fewer bins than 64 filters need, and some filters hold no bin at all (26 of 64 at w = 64 and
    48 kHz). The mean leaves them out.
    """

    windows = (64, 128, 256, 512, 1024, 2048)
    mels = 64
    log_floor = 1e-5

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for window in self.windows:
            hann = torch.hann_window(window, periodic=True)
            self.register_buffer(f"hann_{window}", hann, persistent=False)
            self.register_buffer(f"filters_{window}", _mel_filters(window, self.mels, sample_rate), persistent=False)

    def forward(self, decoded: Tensor, original: Tensor) -> Tensor:
        """Scalar sum of both parts; see `parts`."""
        return self.parts(decoded, original).total

    def parts(self, decoded: Tensor, original: Tensor) -> MelLoss:
        """Compare decoded audio with its original; each channel counts as an example of its own.

        Args:
            decoded: `[batch, channels, samples]`; the gradient flows into it alone.
            original: The same shape.

        Raises:
            ValueError: The shapes differ, or the audio is not longer than half the longest window.
        """
        check_comparable(decoded, original, max(self.windows))
        magnitude, log_magnitude = [], []
        with torch.autocast(decoded.device.type, enabled=False):
            for window in self.windows:
                mel = self.mel_spectrogram(decoded, window)
                with torch.no_grad():
                    target = self.mel_spectrogram(original, window)
                    log_target = (target + self.log_floor).log()
                magnitude.append(F.l1_loss(mel, target))
                log_magnitude.append(math.sqrt(window / 2) * F.mse_loss((mel + self.log_floor).log(), log_target))
        return MelLoss(torch.stack(magnitude).mean(), torch.stack(log_magnitude).mean())

    def mel_spectrogram(self, audio: Tensor, window: int) -> Tensor:
        """`[batch, channels, samples]` to magnitudes `[batch * channels, 1 + samples // (window/4), filters]`."""
        return mel_magnitudes(audio, self.get_buffer(f"hann_{window}"), self.get_buffer(f"filters_{window}"))


def check_comparable(decoded: Tensor, original: Tensor, longest_window: int) -> None:
    """Check the input of a mel loss.

    Raises:
        ValueError: The shapes are not the same `[batch, channels, samples]`, or not longer than half of
            `longest_window`.
    """
    shapes = f"{list(decoded.shape)} and {list(original.shape)}"
    if decoded.shape != original.shape or decoded.dim() != 3:
        raise ValueError(f"the mel loss got audio of shapes {shapes}; both must be the same [batch, channels, samples]")
    needed = shortest_for(longest_window)
    if decoded.shape[-1] < needed:
        raise ValueError(f"the mel loss got {decoded.shape[-1]} samples; it needs {needed} or more: use longer crops")


def shortest_for(window: int) -> int:
    """Fewest samples that can be reflected by half of `window` at each end."""
    return window // 2 + 1


def mel_magnitudes(audio: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    """`[batch, channels, samples]` to `[batch * channels, 1 + samples // hop, filters]`; call it without autocast.

    Unscaled STFT, centred with reflected ends, hop of a quarter of `window`: its magnitudes through `filters`
    `[window/2 + 1, filters]`.
    """
    size = len(window)
    padded = F.pad(audio.float().flatten(0, 1), (size // 2, size // 2), mode="reflect")
    # [batch * channels, frames, window]; on a CPU the gradient of unfold and rfft is faster than that of torch.stft
    frames = padded.unfold(-1, size, size // 4) * window.float()
    # abs has a zero (sub)gradient at 0, so silence is safe
    return torch.fft.rfft(frames).abs() @ filters.float()


def _mel_filters(window: int, mels: int, sample_rate: int) -> Tensor:
    """Triangular filters of peak 1 on the HTK mel scale, `[window/2 + 1, filled filters]`."""
    with warnings.catch_warnings():
        # Empty filters are expected at short windows and dropped below.
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        filters: Tensor = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate)
    return filters[:, filters.sum(dim=0) > 0]
