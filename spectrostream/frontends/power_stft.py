"""The complex spectrogram with its moduli compressed by a power law."""

from __future__ import annotations

from torch import Tensor, nn

from spectrostream.frontends.stft import ComplexSTFT
from spectrostream.streaming import Span, StreamState


def power_law(features: Tensor, exponent: float, threshold: float) -> Tensor:
    """Complex values z as (re, im) pairs of features to z |z|^(exponent - 1): modulus |z|^exponent, the phase kept.

    features: `[batch, channels * 2, frames, bins]`. Below `threshold` the law is linear, through the origin and the
    power law's point at the threshold: z times threshold^(exponent - 1). There alone a power below one has an infinite
    slope at zero and a power above one has none, so that a gradient would be NaN, or would vanish. Both pieces have
    an inverse of the same kind: exponent 1 / exponent, threshold threshold^exponent.
    """
    values = features.unflatten(1, (-1, 2))
    power = values.square().sum(2, keepdim=True).clamp(min=threshold**2)
    return (values * power.pow((exponent - 1) / 2)).flatten(1, 2)


class PowerSTFT(nn.Module):
    """`ComplexSTFT` with each value X replaced by |X|^0.3 e^{i phase(X)}: loud and soft bins count more alike.

    The exponent is the one of speech enhancement (Ephrat et al., "Looking to Listen at the Cocktail Party", 2018,
    arXiv:1804.03619, which compresses complex spectrograms so at input and output). `threshold` is a modulus of the
    unscaled STFT: a tone at -128 dB below full scale, less than the noise of 16-bit samples.
    """

    exponent = 0.3
    threshold = 1e-4
    hop_length = ComplexSTFT.hop_length
    look_ahead = ComplexSTFT.look_ahead
    features_per_channel = ComplexSTFT.features_per_channel
    layout = ComplexSTFT.layout

    def __init__(self) -> None:
        super().__init__()
        self.stft = ComplexSTFT()

    def analysis(self, audio: Tensor) -> Tensor:
        """See `FrontEnd.analysis`; features in the STFT's order."""
        return power_law(self.stft.analysis(audio), self.exponent, self.threshold)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`."""
        spectrum = power_law(features.float(), 1 / self.exponent, self.threshold**self.exponent)
        return self.stft.synthesis(spectrum, state)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return self.stft.synthesis_span(first, last)
