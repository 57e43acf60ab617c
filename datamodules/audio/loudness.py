"""Integrated loudness after ITU-R BS.1770-4, computed block by block, and energies of blocks of 100 ms.

The result equals that of `pyloudnorm.Meter`, which needs several copies of the whole signal in memory. Both filters and
the rule for an incomplete block at the end are pyloudnorm's.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from pyloudnorm import IIRfilter
from scipy.signal import sosfilt
from torch import Tensor

from datamodules.audio.opening import LOWEST_RATE

BLOCKS_PER_SECOND = 10
_ABSOLUTE_GATE = -70.0  # LUFS
_RELATIVE_GATE = -10.0  # LU
_BLOCKS_PER_WINDOW = 4  # 400 ms, which overlap by three quarters
_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, left surround, right surround
_SHORTEST_CROP_SECONDS = 0.5  # as in DAC's audiotools
# Smaller numbers in the filters become zero: after the end of the music they would be denormal, which is slow.
_NEGLIGIBLE = 1e-30


class BlockEnergies:
    """Sums over consecutive blocks of 100 ms of a signal that comes in parts; 80 bytes for each second.

    Args:
        sample_rate: In Hz. Block k begins at sample floor(k * sample_rate / 10).
    """

    def __init__(self, sample_rate: int) -> None:
        self.samples = 0
        self._rate = sample_rate
        self._complete: list[np.ndarray] = []
        self._blocks = 0
        self._open = 0.0

    def add(self, energy: np.ndarray) -> None:
        """Add the next samples of the energy, float64 `[samples]`."""
        if not len(energy):
            return
        start, self.samples = self.samples, self.samples + len(energy)
        # Blocks end at `ends`; the last one may end with this part.
        blocks = np.arange(self._blocks + 1, self.samples * BLOCKS_PER_SECOND // self._rate + 2)
        ends = blocks * self._rate // BLOCKS_PER_SECOND
        ends = ends[ends <= self.samples]
        inner = ends[ends < self.samples] - start
        sums = np.add.reduceat(energy, np.concatenate(([0], inner)))
        sums[0] += self._open
        self._complete.append(sums[: len(ends)])
        self._blocks += len(ends)
        self._open = float(sums[-1]) if len(sums) > len(ends) else 0.0

    def sums(self) -> np.ndarray:
        """Return the sums of all blocks, float64 `[blocks]`; the last one may be incomplete."""
        is_open = self._blocks * self._rate // BLOCKS_PER_SECOND < self.samples
        return np.concatenate((*self._complete, [self._open] if is_open else []))

    def lengths(self) -> np.ndarray:
        """Return the number of samples in each of these blocks."""
        edges = np.arange(len(self.sums()) + 1) * self._rate // BLOCKS_PER_SECOND
        return np.diff(np.minimum(edges, self.samples))


class LoudnessMeter:
    """Measures the integrated loudness of a signal that comes in parts.

        meter = LoudnessMeter(48000, channels=2)
        for audio in parts:
            meter.add(audio)
        meter.integrated()

    Args:
        sample_rate: In Hz, at least 4000.
        channels: Up to five are left, right, centre, left surround and right surround with the standard's weights. With
            more channels, whose meaning files do not say, the mean of all counts as one channel.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        if sample_rate < LOWEST_RATE:
            raise ValueError(f"loudness needs a sample rate of at least {LOWEST_RATE} Hz, got {sample_rate}")
        self._rate = sample_rate
        self._weights = np.array(_WEIGHTS[:channels] if channels <= len(_WEIGHTS) else [1 / channels] * channels)
        self._filters = _k_weighting(sample_rate)
        self._state = np.zeros((len(self._filters), channels, 2))
        self._energies = BlockEnergies(sample_rate)

    def add(self, audio: np.ndarray) -> None:
        """Add the next part `[channels, samples]`, full scale 1, of any length."""
        if not audio.shape[-1]:
            return
        weighted, self._state = sosfilt(self._filters, audio, zi=self._state)
        self._state[np.abs(self._state) < _NEGLIGIBLE] = 0
        # No matrix product: its library would start threads in every process that scans.
        self._energies.add(np.einsum("c,cs->s", self._weights, np.square(weighted)))

    def integrated(self) -> float:
        """Return the loudness in LUFS of all parts so far; -inf if no window of 400 ms is louder than -70.

        A signal below 400 ms counts as if silence followed.
        """
        powers = _window_powers(self._energies, self._rate)
        loud = powers[_lufs(powers) >= _ABSOLUTE_GATE]
        if not len(loud):
            return -math.inf
        threshold = max(_lufs(loud.mean()) + _RELATIVE_GATE, _ABSOLUTE_GATE)
        kept = loud[_lufs(loud) > threshold]
        return float(_lufs(kept.mean())) if len(kept) else -math.inf


def loudness_of(audio: Tensor, sample_rate: int) -> float:
    """Return the integrated loudness of a crop `[channels, samples]` in LUFS, at least -70.

    Crops below 0.5 s are padded with silence. DAC's audiotools compute the same to normalize crops.
    """
    crop = audio.detach().cpu().numpy()
    missing = round(_SHORTEST_CROP_SECONDS * sample_rate) - crop.shape[-1]
    meter = LoudnessMeter(sample_rate, len(crop))
    meter.add(np.pad(crop, ((0, 0), (0, max(missing, 0)))))
    return max(meter.integrated(), _ABSOLUTE_GATE)


@lru_cache
def _k_weighting(sample_rate: int) -> np.ndarray:
    """Return the second-order sections: the shelf for the effect of the head, and the high-pass."""
    shelf = IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, sample_rate, "high_shelf")
    high_pass = IIRfilter(0.0, 0.5, 38.0, sample_rate, "high_pass")
    return np.array([np.concatenate((stage.b, stage.a)) for stage in (shelf, high_pass)])


def _window_powers(energies: BlockEnergies, sample_rate: int) -> np.ndarray:
    """Return the mean power of each window of four blocks."""
    # A window counts if less than half a block is missing at its end.
    seconds = energies.samples / sample_rate
    windows = max(round((seconds - 0.4) * BLOCKS_PER_SECOND) + 1, 1)
    blocks = energies.sums()
    blocks = np.pad(blocks, (0, max(windows + _BLOCKS_PER_WINDOW - 1 - len(blocks), 0)))
    sums = sum(blocks[offset : offset + windows] for offset in range(_BLOCKS_PER_WINDOW))
    return np.asarray(sums) * BLOCKS_PER_SECOND / (_BLOCKS_PER_WINDOW * sample_rate)


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)
