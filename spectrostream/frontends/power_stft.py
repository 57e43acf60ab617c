"""The complex spectrogram with moduli compressed by a power law."""

from __future__ import annotations

from torch import Tensor, nn

from spectrostream.frontends.stft import ComplexSTFT
from spectrostream.streaming import Span, StreamState


def power_law(features: Tensor, exponent: float, threshold: float) -> Tensor:
    """Map complex values z to z |z|^(exponent - 1): the modulus becomes |z|^exponent, the phase stays.

    Below the threshold, the map is linear: z times threshold^(exponent - 1). Otherwise the slope at zero would be
    infinite or zero, and gradients would be NaN or vanish. The inverse is the same function with the exponent
    1 / exponent and the threshold threshold^exponent.

    Args:
        features: `[batch, channels * 2, frames, bins]`, real and imaginary parts alternate.
        exponent: Exponent of the modulus.
        threshold: Modulus below which the map is linear.
    """
    values = features.unflatten(1, (-1, 2))
    power = values.square().sum(2, keepdim=True).clamp(min=threshold**2)
    return (values * power.pow((exponent - 1) / 2)).flatten(1, 2)


class PowerSTFT(nn.Module):
    """`ComplexSTFT` with each value X replaced by |X|^0.3 e^{i phase(X)}, so that soft bins count more.

    The exponent comes from speech enhancement: Ephrat et al., "Looking to Listen at the Cocktail Party", 2018,
    arXiv:1804.03619, compress complex spectrograms in this way at input and output. The threshold is a modulus of the
    unscaled STFT: that of a tone 128 dB below full scale, less than the noise of 16-bit samples.
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
        """See `FrontEnd.analysis`; the order of the features is that of `ComplexSTFT`."""
        return power_law(self.stft.analysis(audio), self.exponent, self.threshold)

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `FrontEnd.synthesis`."""
        spectrum = power_law(features.float(), 1 / self.exponent, self.threshold**self.exponent)
        return self.stft.synthesis(spectrum, state)

    def synthesis_span(self, first: int, last: int) -> Span:
        """See `FrontEnd.synthesis_span`."""
        return self.stft.synthesis_span(first, last)
