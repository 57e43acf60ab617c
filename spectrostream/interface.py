"""The sentence that every codec completes, so that training, evaluation and reports never ask which one they hold."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Reconstruction(NamedTuple):
    """What a codec returns in training.

    audio: `[batch, channels, samples]`, the same length as the input and aligned with it.
    commitment_loss: scalar; for DAC its commitment and codebook losses with their own weights. `loss.commitment` weighs
    it.
    """

    audio: Tensor
    commitment_loss: Tensor


@runtime_checkable
class AudioCodec(Protocol):
    """A lossy codec: audio `[batch, channels, samples]` in [-1, 1] at `sample_rate` to codes, and back to its length.

    `codes` is what the codec likes (an int64 tensor `[batch, levels, frames]` for SpectroStream); whoever holds it only
    hands it back to `decode` and asks for its `bits`. `levels` selects the rate: 1 (lowest) .. `codec.levels`.
    """

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def channels(self) -> int:
        """Audio channels of the input and of the output."""

    @property
    def levels(self) -> int:
        """The highest number of quantizer levels."""

    @property
    def is_causal(self) -> bool:
        """True if it can stream."""

    @property
    def latency_samples(self) -> int | None:
        """Delay from a sample's arrival to its output when streaming; None if the codec cannot stream."""

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Any:
        """`[batch, channels, samples]` to codes of `levels` (default: all) levels."""

    def decode(self, codes: Any, *, length: int) -> Tensor:
        """Codes to `[batch, channels, length]`, aligned to the sample with what was encoded."""

    def kbps(self, levels: int) -> float:
        """Nominal rate of all channels together, kilobits per second."""

    def bits(self, codes: Any) -> int:
        """Bits that the codes of one example occupy."""
