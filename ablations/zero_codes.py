"""The trained decoder with no codes at all: what a codec must beat to have learnt to use them."""

from __future__ import annotations

from torch import Tensor

from spectrostream.interface import AudioCodec


class ZeroCodes:
    """A codec that sends nothing; its decoder sees zero embeddings. Completes `spectrostream.interface.AudioCodec`."""

    latency_samples = None

    def __init__(self, codec: AudioCodec) -> None:
        self._codec = codec
        self.sample_rate = codec.sample_rate
        self.channels = codec.channels
        self.levels = codec.levels
        self.is_causal = codec.is_causal

    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        """`[batch, 0, frames]`, whatever `levels` asks for."""
        return self._codec.encode(audio, levels=0)

    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        """The same audio for every input of one length."""
        return self._codec.decode(codes, length=length)

    def kbps(self, levels: int) -> float:
        """Nothing is sent."""
        return 0.0

    def bits(self, codes: Tensor) -> int:
        """Nothing is sent."""
        return 0
