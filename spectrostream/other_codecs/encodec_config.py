"""The configuration of EnCodec and what follows from it: chunks, levels, rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spectrostream.errors import require

SAMPLE_RATE = 48000


@dataclass(frozen=True)
class EncodecConfig:
    """EnCodec's architecture; the defaults are Meta's 48 kHz stereo model (paper, section 3; `facebook/encodec_48khz`).

    Raises:
        ValueError: A value is not possible; the message says what is allowed.
    """

    kind: str = "encodec"
    """The tag of this codec. Allowed: encodec."""
    channels: int = 2
    """Audio channels of input and output. Allowed: 1 or 2."""
    width: int = 32
    """Features after the first convolution; each stride doubles them. Allowed: even numbers, 4 or more."""
    strides: tuple[int, ...] = (2, 4, 5, 8)
    """Strides of the encoder; the decoder runs them backwards. Allowed: 2 or more each."""
    residual_layers: int = 1
    """Residual layers in each block."""
    lstm_layers: int = 2
    """Layers of the LSTM between convolutions and quantizer."""
    embedding_dim: int = 128
    """Features of an embedding and of a codebook entry."""
    codebook_size: int = 1024
    """Entries of a codebook; 1024 are 10 bits per code."""
    bandwidths: tuple[float, ...] = (3.0, 6.0, 12.0, 24.0)
    """Nominal rates in kbps of the training, ascending; each is a number of levels."""
    chunk_seconds: float = 1.0
    """Length of a chunk in seconds."""
    overlap: float = 0.01
    """Share of a chunk that the next chunk repeats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))
        object.__setattr__(self, "bandwidths", tuple(float(kbps) for kbps in self.bandwidths))
        size = self.codebook_size
        self._require("channels", self.channels in (1, 2), "1 or 2")
        self._require("width", self.width >= 4 and self.width % 2 == 0, "even numbers from 4")
        self._require("strides", bool(self.strides) and min(self.strides) >= 2, "2 or more each")
        self._require("strides", SAMPLE_RATE % self.hop_length == 0, f"a product that divides {SAMPLE_RATE}")
        self._require("residual_layers", self.residual_layers >= 1, "1 or more")
        self._require("lstm_layers", self.lstm_layers >= 1, "1 or more")
        self._require("embedding_dim", self.embedding_dim >= 2, "2 or more")
        self._require("codebook_size", size >= 2 and size & (size - 1) == 0, "powers of two from 2")
        self._require_bandwidths()
        whole = self.chunk_length > 0 and self.chunk_length % self.hop_length == 0
        self._require("chunk_seconds", whole, f"multiples of {self.hop_length} samples")
        self._require("overlap", 0 <= self.overlap < 1, "0 <= overlap < 1")

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)

    @property
    def chunk_length(self) -> int:
        """Samples of a chunk."""
        return int(self.chunk_seconds * SAMPLE_RATE)

    @property
    def chunk_stride(self) -> int:
        """Samples from the start of a chunk to the start of the next."""
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    @property
    def level_kbps(self) -> float:
        """Nominal rate of one level, in kbps."""
        return math.log2(self.codebook_size) * SAMPLE_RATE / self.hop_length / 1000

    @property
    def trained_levels(self) -> tuple[int, ...]:
        """The number of levels of each bandwidth; `Encodec.encode` allows only these."""
        return tuple(math.floor(kbps / self.level_kbps + 1e-9) for kbps in self.bandwidths)

    @property
    def levels(self) -> int:
        """Quantizer levels of the highest bandwidth."""
        return self.trained_levels[-1]

    def _require_bandwidths(self) -> None:
        self._require("bandwidths", len(self.bandwidths) > 0, "at least one")
        steps = zip((0, *self.trained_levels), self.trained_levels, strict=False)
        allowed = f"ascending, at least {self.level_kbps:g} kbps (one level) more each"
        self._require("bandwidths", all(before < after for before, after in steps), allowed)

    def _require(self, key: str, is_possible: bool, allowed: str) -> None:
        require(is_possible, f"model.{key} = {getattr(self, key)} is not possible", allowed)
