"""Statistics of a signal that comes in blocks `[channels, samples]`: spectrum, clipping, stereo energies.

The lengths of the blocks do not change the result.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.fft import rfft
from scipy.signal import get_window

_WINDOW = 4096
# Square waves and chip music have flat tops too; a converter or a limiter clips near full scale only.
_LOWEST_CLIPPED_PEAK = 10 ** (-3 / 20)
_SHORTEST_RUN = 3


class AverageSpectrum:
    """Mean power spectrum over time and channels, Hann windows of 4096 samples that overlap by half.

    A sine of amplitude 1 in all channels has 0 dB in its bin. Rounding to 16 bits has about -130 dB in each bin.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._rate = sample_rate
        self._window = get_window("hann", _WINDOW).astype(np.float32)
        self._held = np.zeros((channels, 0), np.float32)
        self._power = np.zeros(_WINDOW // 2 + 1)
        self._windows = 0

    def add(self, audio: np.ndarray) -> None:
        """Add a block, float32 `[channels, samples]`."""
        self._held = np.concatenate((self._held, audio), axis=1)
        whole = (self._held.shape[1] - _WINDOW) // (_WINDOW // 2) + 1
        if whole > 0:
            self._transform(whole)
            self._held = self._held[:, whole * (_WINDOW // 2) :].copy()

    def levels_db(self) -> np.ndarray:
        """Return the spectrum in dB re a full-scale sine, float64 `[2049]`; -inf for bins without energy.

        Samples after the last whole window are ignored, unless there is no whole window.
        """
        if not self._windows:
            self._held = np.pad(self._held, ((0, 0), (0, _WINDOW - self._held.shape[1])))
            self._transform(1)
        amplitude_scale = 2 / float(self._window.sum(dtype=np.float64))
        with np.errstate(divide="ignore"):
            return 10 * np.log10(self._power / self._windows * amplitude_scale**2)

    def bandwidth_hz(self, floor_db: float) -> float | None:
        """Return the highest frequency above the floor; None if there is none."""
        above = np.flatnonzero(self.levels_db() > floor_db)
        return float(above[-1] * self._rate / _WINDOW) if len(above) else None

    def _transform(self, windows: int) -> None:
        # [channels, windows, 4096]
        framed = np.lib.stride_tricks.sliding_window_view(self._held, _WINDOW, axis=1)[:, :: _WINDOW // 2][:, :windows]
        spectra = rfft(framed * self._window, axis=-1)
        power = np.square(spectra.real) + np.square(spectra.imag)
        self._power += power.mean(axis=0).sum(axis=0, dtype=np.float64)
        self._windows += windows


class ClippedRuns:
    """Share of samples in runs of three or more at the extreme of their channel, if that is above -3 dBFS.

    Each channel has its own extreme, so music that was clipped and then made softer is found too.
    """

    def __init__(self, channels: int) -> None:
        self._tops = [_TopRuns() for _ in range(channels)]
        self._bottoms = [_TopRuns() for _ in range(channels)]
        self._samples = 0

    @property
    def peak(self) -> float:
        """Largest magnitude so far."""
        return max(runs.extreme for runs in (*self._tops, *self._bottoms))

    def add(self, audio: np.ndarray) -> None:
        """Add a block, float32 `[channels, samples]`."""
        if not audio.shape[1]:
            return
        self._samples += audio.size
        for channel, top, bottom in zip(audio, self._tops, self._bottoms, strict=True):
            top.add(channel, float(channel.max()))
            bottom.add(-channel, -float(channel.min()))

    def share(self) -> float:
        """Return the share of all samples."""
        clipped = sum(runs.clipped() for runs in (*self._tops, *self._bottoms))
        return clipped / max(self._samples, 1)


class _TopRuns:
    """Runs at the highest sample of one channel."""

    def __init__(self) -> None:
        self.extreme = -math.inf
        self._counted = 0
        self._open = 0  # length of the run that the last sample belongs to

    def add(self, samples: np.ndarray, highest: float) -> None:
        if highest > self.extreme:
            self.extreme, self._counted, self._open = highest, 0, 0
        if highest < max(self.extreme, _LOWEST_CLIPPED_PEAK):
            self._close()
            return
        is_top = np.concatenate(([False], samples == np.float32(self.extreme), [False]))
        edges = np.flatnonzero(is_top[1:] != is_top[:-1])
        starts, ends = edges[::2], edges[1::2]
        lengths = ends - starts
        if starts[0] == 0:
            lengths[0] += self._open
            self._open = 0
        self._close()
        if ends[-1] == len(samples):
            self._open = int(lengths[-1])
            lengths = lengths[:-1]
        self._counted += int(lengths[lengths >= _SHORTEST_RUN].sum())

    def clipped(self) -> int:
        """Return the number of samples in runs, with the open run."""
        return self._counted + (self._open if self._open >= _SHORTEST_RUN else 0)

    def _close(self) -> None:
        self._counted, self._open = self.clipped(), 0


class StereoEnergies:
    """Energies of the sum and of the difference of two channels."""

    def __init__(self) -> None:
        self._mid = 0.0
        self._side = 0.0

    def add(self, audio: np.ndarray) -> None:
        """Add a block `[2, samples]`."""
        left, right = audio.astype(np.float64)
        self._mid += float(np.square(left + right).sum())
        self._side += float(np.square(left - right).sum())

    def side_to_mid_db(self) -> float | None:
        """Return side over mid: -inf for mono in both channels, inf for opposite channels, None for silence."""
        if not self._side:
            return -math.inf if self._mid else None
        return 10 * math.log10(self._side / self._mid) if self._mid else math.inf
