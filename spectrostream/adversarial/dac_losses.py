"""DAC's training losses (arXiv:2306.06546; Descript's 44.1 kHz training), each a sum over scales; in float32.

DAC's quantizer computes its commitment and codebook losses itself: `other_codecs/dac.py` returns their sum, already
weighted by 0.25 and 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.adversarial.losses import check_comparable, mel_magnitudes
from spectrostream.torchaudio_functional import melscale_fbanks


def least_squares_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Scalar `mean(fake^2) + mean((1 - real)^2)`, summed over scales: targets are 1 (original) and 0 (decoded).

    Args:
        real_logits: One tensor of any shape per scale, for original audio.
        fake_logits: The same for decoded audio.
    """
    losses = [
        fake.float().square().mean() + (1 - real.float()).square().mean()
        for real, fake in zip(real_logits, fake_logits, strict=True)
    ]
    return torch.stack(losses).sum()


def least_squares_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Scalar `mean((1 - fake)^2)`, summed over scales; it is 0 where decoded audio passes for original.

    Args:
        fake_logits: One tensor of any shape per scale, for decoded audio.
    """
    return torch.stack([(1 - fake.float()).square().mean() for fake in fake_logits]).sum()


def summed_feature_matching_loss(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Scalar mean absolute difference of each hidden layer, summed over layers and scales.

    Args:
        real_features: Per scale, per hidden layer a tensor, for original audio; no gradient flows into them.
        fake_features: The same for decoded audio.
    """
    layers = [
        F.l1_loss(fake.float(), real.detach().float())
        for real_layers, fake_layers in zip(real_features, fake_features, strict=True)
        for real, fake in zip(real_layers, fake_layers, strict=True)
    ]
    return torch.stack(layers).sum()


class LogMelLoss(nn.Module):
    """Sum over seven windows of `mean |log10 max(M(decoded), 1e-5) - log10 max(M(original), 1e-5)|`.

    M are magnitudes of an unscaled STFT (periodic Hann, hop of a quarter, reflected ends) through triangular filters
    from 0 Hz to half the sample rate on Slaney's mel scale, each of unit area (librosa's default, which DAC uses). The
    shortest windows have fewer bins than some filters need; a filter without a bin counts as equal, as it does in DAC.

    At 48 kHz the last 2 % of the filters lie above 22.05 kHz, which a DAC that runs at 44.1 kHz inside cannot reach.
    """

    windows = (32, 64, 128, 256, 512, 1024, 2048)
    mels = (5, 10, 20, 40, 80, 160, 320)
    floor = 1e-5

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        for window, mels in zip(self.windows, self.mels, strict=True):
            hann = torch.hann_window(window, periodic=True)
            self.register_buffer(f"hann_{window}", hann, persistent=False)
            self.register_buffer(f"filters_{window}", _unit_area_filters(window, mels, sample_rate), persistent=False)

    def forward(self, decoded: Tensor, original: Tensor) -> Tensor:
        """Compare decoded audio with its original; each channel counts as an example of its own.

        Args:
            decoded: `[batch, channels, samples]`; the gradient flows into it alone.
            original: The same shape.

        Returns:
            A scalar.

        Raises:
            ValueError: The shapes differ, or the audio is not longer than half the longest window.
        """
        check_comparable(decoded, original, max(self.windows))
        scales = []
        with torch.autocast(decoded.device.type, enabled=False):
            for window in self.windows:
                with torch.no_grad():
                    target = self.log_mel(original, window)
                scales.append(F.l1_loss(self.log_mel(decoded, window), target))
        return torch.stack(scales).sum()

    def log_mel(self, audio: Tensor, window: int) -> Tensor:
        """`[batch, channels, samples]` to `[batch * channels, 1 + samples // (window/4), mels]`, log10 from -5 up."""
        mel = mel_magnitudes(audio, self.get_buffer(f"hann_{window}"), self.get_buffer(f"filters_{window}"))
        return mel.clamp(min=self.floor).log10()


def _unit_area_filters(window: int, mels: int, sample_rate: int) -> Tensor:
    """Triangular filters of unit area on Slaney's mel scale, `[window/2 + 1, mels]`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        filters: Tensor = melscale_fbanks(
            window // 2 + 1, 0.0, sample_rate / 2, mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
    return filters
