"""SpectroStream: front-end, encoder, residual vector quantizer, decoder, inverse front-end (arXiv:2508.05207)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.decoder import Decoder
from spectrostream.encoder import Encoder
from spectrostream.frontends import FRONT_ENDS, SAMPLES_PER_TOKEN
from spectrostream.interface import Reconstruction
from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer

SAMPLE_RATE = 48000


@dataclass(frozen=True)
class SpectroStreamConfig:
    """Everything that makes one SpectroStream; the defaults are the released layout.

    frontend: "stft" (complex spectrogram) or "waveform".
    channels: audio channels of input and output.
    encoder_width, decoder_width: features of the outermost block.
    embedding_dim: features of a token.
    fusion: encoder block 0..7 before which the channels are joined (7: the bottleneck block), or "input": the first
        convolution sees all channels.
    split: the decoder's mirror image: 0..7, or "output".
    """

    kind: str = "spectrostream"
    frontend: str = "stft"
    channels: int = 2
    encoder_width: int = 32
    decoder_width: int = 64
    embedding_dim: int = 256
    fusion: int | str = 6
    split: int | str = 6
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        if self.frontend not in FRONT_ENDS:
            raise ValueError(f"model.frontend = {self.frontend!r} is not known; allowed: {', '.join(FRONT_ENDS)}")
        for key in ("channels", "encoder_width", "decoder_width", "embedding_dim"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key} = {getattr(self, key)} is not possible; allowed: 1 or more")
        for key, outermost in (("fusion", "input"), ("split", "output")):
            self._require_position(key, outermost)

    def _require_position(self, key: str, outermost: str) -> None:
        value = getattr(self, key)
        last = len(FRONT_ENDS[self.frontend].layout.strides)
        if value != outermost and not (isinstance(value, int) and 0 <= value <= last):
            raise ValueError(
                f"model.{key} = {value!r} is not possible: the stack has the strided blocks 0..{last - 1} and the "
                f"bottleneck block {last}; allowed: 0..{last} or {outermost!r}"
            )

    @property
    def fusion_block(self) -> int:
        """Index of the fusion block; -1 if the channels are joined at the input (one channel has nothing to join)."""
        return -1 if self.channels == 1 or isinstance(self.fusion, str) else self.fusion

    @property
    def split_block(self) -> int:
        """Index, counted as the encoder's, of the split block; -1 if the channels part at the output."""
        return -1 if self.channels == 1 or isinstance(self.split, str) else self.split


class SpectroStream(nn.Module):
    """The codec; completes `spectrostream.interface.AudioCodec`.

    Token t of an N-sample signal stands for samples 1920t .. 1920t + 1919 and sees the front-end's look-ahead beyond
    them (480 samples for the STFT); the decoder looks one embedding ahead: it drops the frames of its first token, and
    one zero embedding is appended at the end.
    """

    sample_rate = SAMPLE_RATE
    is_causal = True

    def __init__(self, config: SpectroStreamConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = FRONT_ENDS[config.frontend]()
        layout = self.frontend.layout
        self.frames_per_token = layout.frames_per_token
        shared = {
            "channels": config.channels,
            "features_per_channel": self.frontend.features_per_channel,
            "embedding_dim": config.embedding_dim,
        }
        self.encoder = Encoder(layout, width=config.encoder_width, fusion=config.fusion_block, **shared)
        self.quantizer = ResidualVectorQuantizer(config.quantizer, config.embedding_dim)
        self.decoder = Decoder(layout, width=config.decoder_width, split=config.split_block, **shared)

    @property
    def channels(self) -> int:
        """Audio channels."""
        return self.config.channels

    @property
    def latency_samples(self) -> int:
        """Delay of the output stream when streaming in blocks of one token: 3840 (80 ms; STFT) or 1920 (waveform).

        Output block b waits for token b + 1, and that for the blocks which its front-end's look-ahead reaches.
        """
        return SAMPLES_PER_TOKEN * (1 + math.ceil(self.frontend.look_ahead / SAMPLES_PER_TOKEN))

    @property
    def levels(self) -> int:
        """Trained quantizer levels."""
        return self.config.quantizer.levels

    @property
    def codebook_size(self) -> int:
        """Entries per level."""
        return self.config.quantizer.codebook_size

    @property
    def codebook_parameters(self) -> int:
        """Numbers in all codebooks; they are buffers, so not among `parameters()`."""
        return self.quantizer.codebooks.numel()

    def kbps(self, levels: int) -> float:
        """Rate of all channels together."""
        return levels * self.config.quantizer.bits_per_index * self.sample_rate / SAMPLES_PER_TOKEN / 1000

    def bits(self, codes: Tensor) -> int:
        """Bits of one example's codes `[batch, levels, frames]`."""
        return round(codes[0].numel() * self.config.quantizer.bits_per_index)

    @torch.no_grad()
    def encode(self, audio: Tensor, *, levels: int | None = None) -> Tensor:
        """Audio `[batch, channels, samples]` to int64 codes `[batch, levels, ceil(samples / 1920)]`.

        Raises ValueError for another number of channels, no samples, or levels that were not trained.
        """
        levels = self.levels if levels is None else levels
        self._require_levels(levels)
        return self.quantizer.encode(self.embed(audio), levels)

    @torch.no_grad()
    def decode(self, codes: Tensor, *, length: int) -> Tensor:
        """Codes `[batch, levels, frames]` to audio `[batch, channels, length]`.

        Raises ValueError if the codes do not stand for `length` samples, or for levels that were not trained.
        """
        self._require_levels(codes.shape[1])
        if codes.shape[-1] != -(-length // SAMPLES_PER_TOKEN):
            raise ValueError(
                f"{codes.shape[-1]} frames of codes stand for {SAMPLES_PER_TOKEN * (codes.shape[-1] - 1) + 1} .. "
                f"{SAMPLES_PER_TOKEN * codes.shape[-1]} samples, not for length = {length}"
            )
        return self.synthesize(self.quantizer.decode(codes), length)

    def _require_levels(self, levels: int) -> None:
        if not 0 <= levels <= self.levels:
            raise ValueError(
                f"levels = {levels} is not possible: this codec was trained with {self.levels}; "
                f"allowed: 0..{self.levels}"
            )

    def forward(self, audio: Tensor) -> Reconstruction:
        """One training pass: random levels and bypass per example; the codebooks learn."""
        quantized = self.quantizer(self.embed(audio))
        return Reconstruction(self.synthesize(quantized.embeddings, audio.shape[-1]), quantized.commitment_loss)

    def embed(self, audio: Tensor) -> Tensor:
        """Audio `[batch, channels, samples]` to embeddings `[batch, embedding_dim, ceil(samples / 1920)]`."""
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.shape[2] == 0:
            raise ValueError(
                f"audio has the shape {tuple(audio.shape)}; "
                f"this codec takes [batch, {self.channels}, samples], samples > 0"
            )
        return self.encoder(self.frontend.analysis(audio))

    def synthesize(self, embeddings: Tensor, length: int) -> Tensor:
        """Embeddings `[batch, embedding_dim, tokens]` to audio `[batch, channels, length]`, length <= 1920 * tokens."""
        features = self.decoder(F.pad(embeddings, (0, 1)))[..., self.frames_per_token :, :]
        return self.frontend.synthesis(features)[..., :length]
