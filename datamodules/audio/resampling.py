"""Resampling a part of a signal so that it equals the same part of the whole signal resampled.

A Kaiser-windowed sinc over 128 zero crossings to each side, cut-off at 0.975 of the lower Nyquist frequency, beta 10.
Measured from 44.1 to 48 kHz: flat within 0.002 dB up to 21 kHz, the error 102 dB or more below the tone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrostream.torchaudio_functional import resample

ZERO_CROSSINGS = 128
ROLLOFF = 0.975
KAISER_BETA = 10.0

# The kernel has about (source / divisor) * (target / divisor) entries: a rate that has no divisor in common with the
# target, such as 44101 Hz, would take gigabytes; at this size it takes a second, for each crop.
_LARGEST_KERNEL = 2**23
# Longer signals are resampled in pieces of this many output samples, which bounds the memory.
_PIECE_SAMPLES = 2**20


@dataclass(frozen=True)
class PartResampler:
    """From `source_rate` to `target_rate` in Hz, whole numbers.

    Raises:
        ValueError: the two rates share too small a divisor.
    """

    source_rate: int
    target_rate: int

    def __post_init__(self) -> None:
        if self.up * (self.down + 2 * self.reach) > _LARGEST_KERNEL:
            divisor = math.gcd(self.source_rate, self.target_rate)
            raise ValueError(
                f"{self.source_rate} Hz and {self.target_rate} Hz share too small a divisor ({divisor}) to be resampled"
            )

    @property
    def up(self) -> int:
        """Output samples for each `down` source frames."""
        return self.target_rate // math.gcd(self.source_rate, self.target_rate)

    @property
    def down(self) -> int:
        """Source frames for each `up` output samples."""
        return self.source_rate // math.gcd(self.source_rate, self.target_rate)

    @property
    def reach(self) -> int:
        """Source frames that the kernel sees to each side."""
        if self.source_rate == self.target_rate:
            return 0
        return math.ceil(ZERO_CROSSINGS * self.down / (min(self.up, self.down) * ROLLOFF))

    def length(self, frames: int) -> int:
        """Output samples of a whole signal of `frames`."""
        return -(-frames * self.up // self.down)

    def source_range(self, start: int, stop: int, frames: int) -> tuple[int, int]:
        """The frames, of `frames`, that output samples `start` to `stop` depend on; the first is a multiple of `down`.

        Output j lies at source time j * down / up. Only where both are whole numbers, at multiples of `up` and `down`,
        does a part of the source meet the same phases of the kernel as the whole.
        """
        first_block = start // self.up - math.ceil(self.reach / self.down)
        last_block = -(-stop // self.up)
        return max(0, first_block) * self.down, min(frames, last_block * self.down + self.reach)

    def resample(self, source: Tensor, start: int, stop: int, frames: int) -> Tensor:
        """Output samples `start` to `stop`, `[channels, stop - start]`.

        Args:
            source: `[channels, ...]`, the frames named by `source_range(start, stop, frames)`.
            start: first output sample.
            stop: one past the last.
            frames: length of the whole signal.
        """
        if self.source_rate == self.target_rate:
            return source
        offset = self.source_range(start, stop, frames)[0]
        pieces = []
        for piece_start in range(start, stop, _PIECE_SAMPLES):
            piece_stop = min(piece_start + _PIECE_SAMPLES, stop)
            first, last = self.source_range(piece_start, piece_stop, frames)
            # [channels, last - first] -> [channels, samples from the output time of frame `first` on]
            resampled = resample(
                source[:, first - offset : last - offset],
                self.source_rate,
                self.target_rate,
                lowpass_filter_width=ZERO_CROSSINGS,
                rolloff=ROLLOFF,
                resampling_method="sinc_interp_kaiser",
                beta=KAISER_BETA,
            )
            skipped = first // self.down * self.up
            pieces.append(resampled[:, piece_start - skipped : piece_stop - skipped])
        return torch.cat(pieces, dim=1)
