"""Resamples a part of a signal so that it equals the same part of the whole resampled signal.

The filter is a Kaiser-windowed sinc over 128 zero crossings to each side, cut-off at 0.975 of the lower Nyquist
frequency, beta 10. Measured from 44.1 to 48 kHz: flat within 0.002 dB up to 21 kHz, the error 102 dB or more below the
tone.
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

# The kernel has about (source / divisor) * (target / divisor) entries. A rate without a common divisor, such as
# 44101 Hz, would need gigabytes. A kernel of this size takes a second for each crop.
_LARGEST_KERNEL = 2**23
# Longer signals are resampled in blocks of this many output samples, which bounds the memory.
_BLOCK_SAMPLES = 2**20


@dataclass(frozen=True)
class PartResampler:
    """Resamples from `source_rate` to `target_rate`, whole numbers in Hz.

    Raises:
        ValueError: The two rates share too small a divisor.
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
        """Return the number of output samples for a whole signal of `frames`."""
        return -(-frames * self.up // self.down)

    def source_range(self, start: int, stop: int, frames: int) -> tuple[int, int]:
        """Return the frames, of `frames`, that output samples `start` to `stop` depend on.

        The first one is a multiple of `down`. Output j has the source time j * down / up. Both are whole numbers at
        multiples of `up` and `down`; only from there does a part have the same phases of the kernel as the whole.
        """
        first_block = start // self.up - math.ceil(self.reach / self.down)
        last_block = -(-stop // self.up)
        return max(0, first_block) * self.down, min(frames, last_block * self.down + self.reach)

    def resample(self, source: Tensor, start: int, stop: int, frames: int) -> Tensor:
        """Return output samples `start` to `stop`, `[channels, stop - start]`.

        Args:
            source: `[channels, ...]`, the frames of `source_range(start, stop, frames)`.
            start: First output sample.
            stop: One past the last one.
            frames: Length of the whole signal.
        """
        if self.source_rate == self.target_rate:
            return source
        offset = self.source_range(start, stop, frames)[0]
        blocks = []
        for block_start in range(start, stop, _BLOCK_SAMPLES):
            block_stop = min(block_start + _BLOCK_SAMPLES, stop)
            first, last = self.source_range(block_start, block_stop, frames)
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
            blocks.append(resampled[:, block_start - skipped : block_stop - skipped])
        return torch.cat(blocks, dim=1)
