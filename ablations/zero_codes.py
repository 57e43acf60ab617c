"""The trained decoder without codes: a codec that has learnt to use its codes scores better."""

from __future__ import annotations

from torch import Tensor

from spectrostream.interface import AudioCodec


class ZeroCodes:
    """An `AudioCodec` that sends no codes; its decoder gets zero embeddings."""

    latency_samples = None

    def __init__(self, codec: AudioCodec) -> None:
        self._codec = codec
        self.sample_rate = codec.sample_rate
        self.channels = codec.channels
        self.levels = codec.levels
        self.is_causal = codec.is_causal

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        """Return `[batch, 0, frames]` for every value of `levels`."""
        return self._codec.encode(audio, levels=0)

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        """Return the audio of zero embeddings: the same for every input of one length."""
        return self._codec.decode(codes, length=length)

    def kbps(self, levels: int) -> float:
        """Return 0: nothing is sent."""
        return 0.0

    def bits(self, codes: Tensor) -> int:
        """Return 0: nothing is sent."""
        return 0
