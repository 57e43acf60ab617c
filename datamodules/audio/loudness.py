"""Integrated loudness after ITU-R BS.1770-4, piece by piece; the energies of short blocks on which it rests.

Both filters are those of `pyloudnorm`, and so is the rule which incomplete block at the end still counts: the result is
that of `pyloudnorm.Meter` for the whole signal, which holds it in memory several times over.
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
# What is left in a filter after the music has ended; smaller numbers would reach the denormals, which are slow.
_NEGLIGIBLE = 1e-30


class BlockEnergies:
    """Sums over consecutive blocks of 100 ms of a signal that comes in pieces; eighty bytes for each second.

    sample_rate: in Hz. Block k begins at sample floor(k * sample_rate / 10).
    """

    def __init__(self, sample_rate: int) -> None:
        self.samples = 0
        self._rate = sample_rate
        self._complete: list[np.ndarray] = []
        self._blocks = 0
        self._open = 0.0

    def add(self, energy: np.ndarray) -> None:
        """The next samples of the energy, float64 `[samples]`."""
        if not len(energy):
            return
        start, self.samples = self.samples, self.samples + len(energy)
        # Blocks end at `ends`; the last one may end with this very piece.
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
        """Of all blocks, float64 `[blocks]`, the last one perhaps incomplete."""
        is_open = self._blocks * self._rate // BLOCKS_PER_SECOND < self.samples
        return np.concatenate((*self._complete, [self._open] if is_open else []))

    def lengths(self) -> np.ndarray:
        """Samples in each of these blocks."""
        edges = np.arange(len(self.sums()) + 1) * self._rate // BLOCKS_PER_SECOND
        return np.diff(np.minimum(edges, self.samples))


class LoudnessMeter:
    """Integrated loudness of a signal that comes in pieces.

        meter = LoudnessMeter(48000, channels=2)
        for audio in pieces:
            meter.add(audio)
        meter.integrated()

    sample_rate: in Hz, at least 4000.
    channels: up to five in the order left, right, centre, left surround, right surround with the standard's weights.
        For more, whose meaning no file tells, the mean of all channels counts as one channel would.
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
        """The next piece `[channels, samples]`, full scale 1, of any length."""
        if not audio.shape[-1]:
            return
        weighted, self._state = sosfilt(self._filters, audio, zi=self._state)
        self._state[np.abs(self._state) < _NEGLIGIBLE] = 0
        # No matrix product: its library would start threads in every process that scans.
        self._energies.add(np.einsum("c,cs->s", self._weights, np.square(weighted)))

    def integrated(self) -> float:
        """Loudness in LUFS of all so far; -inf where no window of 400 ms is louder than -70.

        Less than 400 ms count as if silence followed.
        """
        powers = _window_powers(self._energies, self._rate)
        loud = powers[_lufs(powers) >= _ABSOLUTE_GATE]
        if not len(loud):
            return -math.inf
        threshold = max(_lufs(loud.mean()) + _RELATIVE_GATE, _ABSOLUTE_GATE)
        kept = loud[_lufs(loud) > threshold]
        return float(_lufs(kept.mean())) if len(kept) else -math.inf


def loudness_of(audio: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS of a crop `[channels, samples]`, at least -70; shorter ones are padded to 0.5 s.

    This is what DAC's audiotools compute where they bring crops to one loudness.
    """
    crop = audio.detach().cpu().numpy()
    missing = round(_SHORTEST_CROP_SECONDS * sample_rate) - crop.shape[-1]
    meter = LoudnessMeter(sample_rate, len(crop))
    meter.add(np.pad(crop, ((0, 0), (0, max(missing, 0)))))
    return max(meter.integrated(), _ABSOLUTE_GATE)


@lru_cache
def _k_weighting(sample_rate: int) -> np.ndarray:
    """Second-order sections: the shelf that stands for the head, the high-pass."""
    shelf = IIRfilter(4.0, 1 / math.sqrt(2), 1500.0, sample_rate, "high_shelf")
    high_pass = IIRfilter(0.0, 0.5, 38.0, sample_rate, "high_pass")
    return np.array([np.concatenate((stage.b, stage.a)) for stage in (shelf, high_pass)])


def _window_powers(energies: BlockEnergies, sample_rate: int) -> np.ndarray:
    """Mean power of each window of four blocks."""
    # A window that lacks less than half a block at its end counts.
    seconds = energies.samples / sample_rate
    windows = max(round((seconds - 0.4) * BLOCKS_PER_SECOND) + 1, 1)
    blocks = energies.sums()
    blocks = np.pad(blocks, (0, max(windows + _BLOCKS_PER_WINDOW - 1 - len(blocks), 0)))
    sums = sum(blocks[offset : offset + windows] for offset in range(_BLOCKS_PER_WINDOW))
    return np.asarray(sums) * BLOCKS_PER_SECOND / (_BLOCKS_PER_WINDOW * sample_rate)


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)
