"""SpectroStream: front-end, encoder, residual vector quantizer, decoder, inverse front-end (arXiv:2508.05207)."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.codebook_learning import CodebookStatistics
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.codec_stream import CodecStream, DecoderStream, EncoderStream
from spectrostream.cpu_inference.convert import for_inference
from spectrostream.decoder import Decoder, DecoderBlock
from spectrostream.encoder import Encoder, EncoderBlock
from spectrostream.frontends import FRONT_ENDS, SAMPLES_PER_TOKEN
from spectrostream.interface import Reconstruction, TrainableCodec
from spectrostream.quantizer import ABSENT, ResidualVectorQuantizer
from spectrostream.streaming import Span, StreamState
from spectrostream.weight_files.pretrained import LoadedWeights, find_weights

SAMPLE_RATE = 48000
CHUNK_TOKENS = 250  # `encode` and `decode` process a long signal in chunks of 10 s, so that memory stays bounded


class SpectroStream(TrainableCodec):
    """The SpectroStream codec.

    Token t stands for samples 1920t .. 1920t + 1919. It also depends on the front-end's look-ahead after them (480
    samples for the STFT). The decoder looks one embedding ahead: it drops the frames of its first token, and one zero
    embedding is appended at the end.
    """

    sample_rate = SAMPLE_RATE
    is_causal = True
    takes_zero_levels = True
    draws_for_all_processes = True

    config: SpectroStreamConfig

    def __init__(self, config: SpectroStreamConfig) -> None:
        super().__init__()
        self.config = config
        self.frontend = FRONT_ENDS[config.frontend]()
        layout = self.frontend.layout
        self.frames_per_token = layout.frames_per_token
        order = [channel for group in config.groups for channel in group]
        self._order = order if order != sorted(order) else None
        features = self.frontend.features_per_channel * config.channels
        self.encoder = Encoder(
            layout,
            groups=config.encoder_groups,
            features=features // config.encoder_groups,
            width=config.encoder_width,
            embedding_dim=config.embedding_dim,
            fusion=config.block_index(config.fusion),
        )
        self.quantizer = ResidualVectorQuantizer(config.quantizer, config.embedding_dim, config.token_groups)
        self.decoder = Decoder(
            layout,
            groups=config.decoder_groups,
            features=features // config.decoder_groups,
            width=config.decoder_width,
            embedding_dim=config.embedding_dim,
            split=config.block_index(config.split),
            token_groups=config.token_groups,
        )

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> SpectroStream:  # fmt: skip
        """Load a trained codec in evaluation mode; see `spectrostream.weights.load_pretrained` for the arguments."""
        found = find_weights(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        return cls.from_weights(found).eval()

    @classmethod
    def from_weights(cls, weights: LoadedWeights) -> SpectroStream:
        """Build a codec from weights; its codebooks start with the loaded entries.

        Raises:
            WeightsError: The weights do not fit.
        """
        codec = weights.load_into(cls)
        codec.adopt_codebooks()
        return codec

    def adopt_codebooks(self) -> None:
        """See `TrainableCodec.adopt_codebooks`."""
        self.quantizer.learning.adopt(self.quantizer.codebooks)

    def codebook_statistics(self) -> CodebookStatistics | None:
        """See `TrainableCodec.codebook_statistics`."""
        learning = self.quantizer.learning
        return learning.statistics() if learning.is_started else None

    def freeze_part(self, part: str) -> None:
        """See `TrainableCodec.freeze_part`."""
        if part == "codebooks":
            self.quantizer.learning.freeze(self.quantizer.codebooks)
        else:
            self.get_submodule(part).requires_grad_(False)

    def for_inference(self, *, precision: str = "float32", compile: bool = False) -> SpectroStream:
        """Copy the codec for fast encoding and decoding; the copy cannot be trained.

        - "float32" uses matrix products of our own on a CPU (`spectrostream.cpu_inference.stacks`). The result is equal
          within rounding (1e-5 of the peak); a code differs only if two entries are almost equally near.
        - "bfloat16" uses the library's convolutions, for processors with bfloat16 matrix units. Some codes change and
          quality falls (measured in BENCHMARKS.md).
        - "int8" uses 8-bit products (`spectrostream.cpu_inference.int8_layers`) on a CPU, for the spectral front-ends.
          More codes change than with bfloat16. With VNNI, decoding was measured 1.2 to 1.4 times as fast as float32,
          encoding no faster. Without VNNI it is slower, because each product is computed as two. It needs no
          calibration. The copy cannot be saved; save the original codec.

        Args:
            precision: "float32", "bfloat16" or "int8".
            compile: Use `torch.compile` for the library's convolutions. The first calls take minutes and need a C++
                compiler.

        Raises:
            ValueError: The precision is not known.
            Int8UnavailableError: int8 is not possible here.
        """
        return for_inference(self, precision=precision, compile=compile)

    @property
    def latency_samples(self) -> int:
        """Delay in samples when streaming in blocks of one token: 3840 (80 ms) with the STFT, 1920 with the waveform.

        Output block b needs token b + 1, and this token needs the front-end's look-ahead.
        """
        return SAMPLES_PER_TOKEN * (1 + math.ceil(self.frontend.look_ahead / SAMPLES_PER_TOKEN))

    def token_span(self, token: int) -> Span:
        """Return the first and last sample that a token can depend on; samples before 0 are silence."""
        first, last = self.encoder.input_span(token, token)
        hop = self.frontend.hop_length
        return first * hop, (last + 1) * hop - 1 + self.frontend.look_ahead

    def block_span(self, block: int) -> Span:
        """Return the first and last token that the output samples 1920 * block .. 1920 * block + 1919 can depend on."""
        frames = self.frontend.synthesis_span(SAMPLES_PER_TOKEN * block, SAMPLES_PER_TOKEN * (block + 1) - 1)
        first, last = (frame + self.frames_per_token for frame in frames)
        return self.decoder.input_span(first, last)

    @property
    def codebook_size(self) -> int:
        """Entries per level."""
        return self.config.quantizer.codebook_size

    @property
    def codebook_parameters(self) -> int:
        """Number of values in all codebooks, which are buffers and not `parameters()`."""
        return self.quantizer.codebooks.numel()

    @property
    def network_parameters(self) -> int:
        """Number of parameters in encoder and decoder."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Encoder and decoder."""
        return self.encoder, self.decoder

    @property
    def recomputed_blocks(self) -> Iterator[nn.Module]:
        """The residual blocks of encoder and decoder."""
        return (module for module in self.modules() if isinstance(module, EncoderBlock | DecoderBlock))

    def kbps(self, levels: int) -> float:
        """Return the rate of all channels together, in kilobits per second."""
        return levels * self.config.quantizer.bits_per_index * self.sample_rate / SAMPLES_PER_TOKEN / 1000

    def levels_at(self, kbps: float) -> int:
        """Return the most levels whose rate is at most `kbps`.

        Raises:
            ValueError: The rate is below that of one level or above that of all levels.
        """
        levels = int(kbps / self.kbps(1) + 1e-9) if math.isfinite(kbps) else 0
        if not 1 <= levels <= self.levels:
            raise ValueError(
                f"kbps = {kbps:g} is not possible with this codec; "
                f"allowed: {self.kbps(1):g}..{self.kbps(self.levels):g}"
            )
        return levels

    def bits(self, codes: Tensor) -> int:
        """Return the bits of one example's codes `[batch, levels, frames]`; absent codes have none."""
        return round(int((codes[0] != ABSENT).sum()) * self.config.quantizer.bits_per_index)

    def encode(self, audio: Tensor, *, levels: int | Tensor | None = None, kbps: float | None = None) -> Tensor:
        """Encode audio; without `levels` and `kbps`, to all levels.

        Args:
            audio: `[batch, channels, samples]` in [-1, 1]. Mono, `[batch, 1, samples]`, is tiled to the codec's
                channels, as in the official implementation.
            levels: One number, or int64 `[batch]`, one for each example; codes above an example's number are -1.
            kbps: The rate of all channels together, rounded down to whole levels.

        Returns:
            int64 codes `[batch, levels, ceil(samples / 1920)]`.

        Raises:
            ValueError: The audio has another number of channels or no samples, the levels are not possible, or both
                levels and kbps are given.
        """
        stream = EncoderStream(self, self._chosen_levels(levels, kbps))
        chunks = audio.split(CHUNK_TOKENS * SAMPLES_PER_TOKEN, dim=-1)
        return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.finish()], dim=-1)

    def decode(self, codes: Tensor, *, length: int | None = None) -> Tensor:
        """Decode codes.

        Args:
            codes: int64 `[batch, levels, frames]`; a code of -1 is absent and adds nothing.
            length: Samples of the audio, 1920 * (frames - 1) + 1 .. 1920 * frames (default: the highest).

        Returns:
            Audio `[batch, channels, length]`.

        Raises:
            ValueError: The length does not fit the frames, or the codes are not possible with this codec.
        """
        length = codes.shape[-1] * SAMPLES_PER_TOKEN if length is None else length
        self.require_length(codes.shape[-1], length)
        stream = DecoderStream(self)
        chunks = codes.split(CHUNK_TOKENS, dim=-1)
        return torch.cat([*(stream.push(chunk) for chunk in chunks), stream.finish(length)], dim=-1)

    def streaming(
        self, batch_size: int = 1, *, levels: int | Tensor | None = None, kbps: float | None = None
    ) -> CodecStream:
        """Return a stream, or a batch of streams in lockstep; see `CodecStream`, and `encode` for the rate."""
        return CodecStream(self, self._chosen_levels(levels, kbps), batch_size)

    def _chosen_levels(self, levels: int | Tensor | None, kbps: float | None) -> int | Tensor:
        if levels is not None and kbps is not None:
            raise ValueError(f"levels = {levels} and kbps = {kbps} are both given; give one of them")
        if kbps is not None:
            return self.levels_at(kbps)
        chosen = self.levels if levels is None else levels
        if not isinstance(chosen, Tensor):
            chosen = self._whole(chosen)
            self._require_levels(chosen)
            return chosen
        if chosen.ndim != 1 or chosen.numel() == 0 or chosen.dtype != torch.int64:
            raise ValueError(f"levels are {chosen.dtype} {list(chosen.shape)}; allowed: a number, or int64 [batch]")
        self._require_levels(int(chosen.min()))
        self._require_levels(int(chosen.max()))
        return chosen

    def _whole(self, levels: int) -> int:
        try:
            return operator.index(levels)
        except TypeError:
            raise ValueError(
                f"levels = {levels!r} is not a whole number; allowed: 0..{self.levels}, or int64 [batch]"
            ) from None

    def _require_levels(self, levels: int) -> None:
        if not 0 <= levels <= self.levels:
            raise ValueError(
                f"levels = {levels} is not possible: this codec was trained with {self.levels}; "
                f"allowed: 0..{self.levels}"
            )

    def require_codes(self, codes: Tensor) -> None:
        """Check that codes are int64 `[batch, levels, frames]` and indices of this codec's codebooks.

        Raises:
            ValueError: They are not.
        """
        if codes.ndim != 3 or codes.dtype != torch.int64:
            raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}; allowed: int64 [batch, levels, frames]")
        self._require_levels(codes.shape[1])
        lowest, highest = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        if lowest < ABSENT or highest >= self.codebook_size:
            raise ValueError(
                f"codes go from {lowest} to {highest}; allowed: 0..{self.codebook_size - 1}, or {ABSENT} for absent"
            )

    def require_length(self, frames: int, length: int) -> None:
        """Check that `frames` frames of codes stand for `length` samples.

        Raises:
            ValueError: They do not.
        """
        if frames == 0:
            raise ValueError("0 frames of codes stand for no sample; allowed: 1 frame or more")
        if frames != -(-length // SAMPLES_PER_TOKEN):
            raise ValueError(
                f"{frames} frames of codes stand for {SAMPLES_PER_TOKEN * (frames - 1) + 1} .. "
                f"{SAMPLES_PER_TOKEN * frames} samples, not for length = {length}"
            )

    def with_all_channels(self, audio: Tensor) -> Tensor:
        """Check the shape of `encode`'s audio, and tile mono to the codec's channels.

        Raises:
            ValueError: The audio has another shape.
        """
        if audio.ndim != 3 or audio.shape[1] not in (1, self.channels) or audio.shape[2] == 0:
            raise ValueError(
                f"audio has the shape {tuple(audio.shape)}; "
                f"this codec takes [batch, {self.channels}, samples], samples > 0"
            )
        return audio.expand(-1, self.channels, -1)

    def forward(self, audio: Tensor) -> Reconstruction:
        """See `TrainableCodec.forward`; each example draws its levels and bypass, and the codebooks learn."""
        quantized = self.quantizer(self.embed(audio))
        return Reconstruction(self.synthesize(quantized.embeddings, audio.shape[-1]), quantized.commitment_loss)

    def embed(self, audio: Tensor) -> Tensor:
        """Compute the embeddings of audio `[batch, channels, samples]`.

        Returns:
            `[batch, embedding_dim * token_groups, ceil(samples / 1920)]`.
        """
        return self.encoder(self.analysis(self.with_all_channels(audio)))

    def synthesize(self, embeddings: Tensor, length: int) -> Tensor:
        """Decode embeddings to audio `[batch, channels, length]`, where length <= 1920 * frames."""
        features = self.decoder(F.pad(embeddings, (0, 1)))[..., self.frames_per_token :, :]
        return self.synthesis(features)[..., :length]

    def analysis(self, audio: Tensor) -> Tensor:
        """Compute the front-end's features, with the channels in the order of their groups."""
        return self.frontend.analysis(audio if self._order is None else audio[:, self._order])

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """Compute the front-end's audio, with the channels in their original order."""
        audio = self.frontend.synthesis(features, state)
        return audio if self._order is None else audio[:, torch.tensor(self._order).argsort()]
