"""Front-ends: audio to features `[batch, channels * features, frames, bins]` and back, and the strides that suit them.

All give 25 tokens/s at 48 kHz (1920 samples a token) and the same number of blocks, so a fusion or split point means
the same thing in each.
"""

from __future__ import annotations

from spectrostream.frontends.contract import SAMPLES_PER_TOKEN, FrontEnd, Layout
from spectrostream.frontends.mdct import MDCT
from spectrostream.frontends.power_stft import PowerSTFT
from spectrostream.frontends.stft import ComplexSTFT
from spectrostream.frontends.waveform import Waveform

__all__ = [
    "FRONT_ENDS",
    "MDCT",
    "SAMPLES_PER_TOKEN",
    "ComplexSTFT",
    "FrontEnd",
    "Layout",
    "PowerSTFT",
    "Waveform",
]

FRONT_ENDS: dict[str, type[ComplexSTFT] | type[Waveform] | type[MDCT] | type[PowerSTFT]] = {
    "stft": ComplexSTFT,
    "waveform": Waveform,
    "mdct": MDCT,
    "power_stft": PowerSTFT,
}
