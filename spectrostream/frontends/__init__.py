"""Front-ends: audio to features `[batch, channels * features, frames, bins]` and back, with strides for the stacks.

All give 25 tokens per second at 48 kHz (1920 samples per token) and the same number of blocks. So a fusion or split
point means the same in each.
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

FRONT_ENDS: dict[str, type[FrontEnd]] = {
    "stft": ComplexSTFT,
    "waveform": Waveform,
    "mdct": MDCT,
    "power_stft": PowerSTFT,
}
