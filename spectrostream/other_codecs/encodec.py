"""EnCodec (arXiv:2210.13438), 48 kHz stereo, through `transformers.EncodecModel`, behind the interface of our codec.

EnCodec cuts the audio into chunks of one second, each beginning 0.99 s after the one before. Each chunk is divided by
its loudness and coded on its own; decoded chunks are cross-faded. It is here to be compared with, not to be trained.

The networks and codebooks are those of transformers; the chunks are cut and joined here, because transformers (5.23)
fails at most lengths whose last chunk is a single frame. Elsewhere codes and audio are equal to its own, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrostream.errors import UserError, require
from spectrostream.interface import Reconstruction
from spectrostream.other_codecs.dac import MissingPackageError, PretrainedWeightsError

PRETRAINED_NAME = "facebook/encodec_48khz"
SAMPLE_RATE = 48000
SCALE_BITS = 32  # EnCodec's own files hold a chunk's scale as a 32-bit float
_SILENCE = 1e-8  # added to every scale, so that a silent chunk can be divided by it

# What distinguishes the 48 kHz model from transformers' defaults and cannot be chosen here.
_FIXED = {"sampling_rate": SAMPLE_RATE, "norm_type": "time_group_norm", "use_causal_conv": False, "normalize": True}
_HOW_TO_GET_THEM = (
    f"On a machine with a network type: hf download {PRETRAINED_NAME}\n"
    "or give the path of a folder that holds config.json and model.safetensors."
)


class EvaluationOnlyError(UserError):
    """EnCodec was asked to learn; the message says what can."""


class UntrainedLevelsError(UserError, ValueError):
    """A number of levels that belongs to none of the model's rates; the message lists those that do."""


@dataclass(frozen=True)
class EncodecConfig:
    """EnCodec's shape; the defaults are Meta's 48 kHz stereo model (paper's section 3, `facebook/encodec_48khz`)."""

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
    """Nominal rates in kbps that the model was trained at, ascending; each is a number of levels."""
    chunk_seconds: float = 1.0
    """Seconds that are coded at once."""
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
        """Samples coded at once."""
        return int(self.chunk_seconds * SAMPLE_RATE)

    @property
    def chunk_stride(self) -> int:
        """Samples from the beginning of a chunk to that of the next."""
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    @property
    def level_kbps(self) -> float:
        """Nominal rate of one level."""
        return math.log2(self.codebook_size) * SAMPLE_RATE / self.hop_length / 1000

    @property
    def trained_levels(self) -> tuple[int, ...]:
        """The number of levels of each bandwidth; only these can be encoded."""
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


class EncodecCodes(NamedTuple):
    """The codes of a batch.

    indices: int64 `[batch, levels, frames]`, the frames of all chunks one after another without padding.
    scales: float32 `[batch, chunks]`, what each chunk was divided by: the root mean square of its channels' mean.
    """

    indices: Tensor
    scales: Tensor

    @property
    def device(self) -> torch.device:
        """Where the codes lie."""
        return self.indices.device

    @property
    def is_cuda(self) -> bool:
        """As a tensor's; whoever times the encoder asks for it."""
        return self.indices.is_cuda


class Encodec(nn.Module):
    """EnCodec for audio `[batch, channels, samples]` at 48 kHz; completes `spectrostream.interface.AudioCodec`.

    Its codes are `EncodecCodes`. The frames of all chunks follow from the number of samples, which the decoder is told.
    """

    sample_rate = SAMPLE_RATE
    is_causal = False
    latency_samples = None

    model: Any  # a transformers.EncodecModel; transformers is imported only where it is used

    def __init__(self, config: EncodecConfig, model: nn.Module | None = None) -> None:
        """model: a `transformers.EncodecModel` with weights; random weights of `config` by default."""
        super().__init__()
        self.config = config
        self.model = _random_model(config) if model is None else model

    @classmethod
    def from_pretrained(cls, name: str | Path = PRETRAINED_NAME) -> Encodec:
        """Meta's weights from a local folder or the local Hugging Face cache; nothing is downloaded or unpickled.

        Raises PretrainedWeightsError, saying what to type, if they are not there, incomplete, or of another EnCodec
        than the 48 kHz one.
        """
        transformers = _import_transformers()
        with _explaining(name):
            inner = transformers.EncodecConfig.from_pretrained(name, local_files_only=True)
        config = _config_of(inner, name)
        with _explaining(name):
            model, report = transformers.EncodecModel.from_pretrained(
                name, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(report["missing_keys"]):  # transformers would leave them random
            raise PretrainedWeightsError(
                f"the weights {str(name)!r} lack {len(missing)} tensors, {missing[0]} among them. {_HOW_TO_GET_THEM}"
            )
        return cls(config, model).eval()

    @property
    def channels(self) -> int:
        """Audio channels."""
        return self.config.channels

    @property
    def levels(self) -> int:
        """Quantizer levels of the highest rate."""
        return self.config.levels

    @property
    def codebook_size(self) -> int:
        """Entries per level."""
        return self.config.codebook_size

    @property
    def codebook_parameters(self) -> int:
        """Numbers in all codebooks; they are buffers and not among `parameters()`."""
        return self.levels * self.codebook_size * self.config.embedding_dim

    def kbps(self, levels: int) -> float:
        """Nominal rate of all channels together, as the model is named: 1.5 kbps per level for the released one.

        One or two per cent more are sent, as chunks overlap and have a scale each. `bits` counts that: 3.06 kbps for
        the nominal 3, 24.27 for 24.
        """
        return levels * self.config.level_kbps

    def bits(self, codes: EncodecCodes) -> int:
        """Bits of one example: every index of every chunk, overlaps twice, and 32 for each chunk's scale.

        These are the bits that EnCodec's own files spend without entropy coding, but for the header and the filling of
        each chunk's last byte.
        """
        index_bits = self.codebook_size.bit_length() - 1  # a power of two
        return codes.indices[0].numel() * index_bits + codes.scales.shape[1] * SCALE_BITS

    @torch.no_grad()
    def encode(self, audio: Tensor, *, levels: int | None = None) -> EncodecCodes:
        """Audio `[batch, channels, samples]` at 48 kHz to codes of `levels` (default: all) levels.

        Raises ValueError for audio of another shape, UntrainedLevelsError for levels that are no trained rate.
        """
        bandwidth = self._bandwidth(self.levels if levels is None else levels)
        self._require_audio(audio)
        chunks = [self._encode_chunk(chunk, bandwidth) for chunk in self._chunks(audio.float())]
        indices, scales = zip(*chunks, strict=True)
        return EncodecCodes(torch.cat(indices, dim=-1), torch.cat(scales, dim=-1))

    @torch.no_grad()
    def decode(self, codes: EncodecCodes, *, length: int) -> Tensor:
        """Codes of `length` samples to audio `[batch, channels, length]` at 48 kHz, float32.

        Raises ValueError if `length` samples have other codes than these.
        """
        frames = self.chunk_frames(length)
        self._require_codes(codes, frames, length)
        indices = codes.indices.split(frames, dim=-1)
        chunks = [self._decode_chunk(*chunk) for chunk in zip(indices, codes.scales.unbind(1), strict=True)]
        return self._cross_fade(chunks, length)

    def forward(self, audio: Tensor) -> Reconstruction:
        """Always EvaluationOnlyError: there is nothing here to train it with."""
        raise EvaluationOnlyError(
            "model.kind = encodec is for evaluation only: transformers' EnCodec has no commitment loss and no "
            "codebooks that learn. Allowed for training: model.kind = spectrostream or dac. "
            "For trained weights use Encodec.from_pretrained(folder)."
        )

    def chunk_frames(self, samples: int) -> list[int]:
        """Frames of each chunk of `samples` samples."""
        hop = self.config.hop_length
        return [-(-length // hop) for length in self._chunk_lengths(samples)]

    def _chunk_lengths(self, samples: int) -> list[int]:
        longest, stride = self.config.chunk_length, self.config.chunk_stride
        return [min(longest, samples - start) for start in range(0, samples, stride)]

    def _chunks(self, audio: Tensor) -> list[Tensor]:
        lengths = self._chunk_lengths(audio.shape[-1])
        return [audio.narrow(-1, i * self.config.chunk_stride, length) for i, length in enumerate(lengths)]

    def _encode_chunk(self, audio: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """`[batch, channels, samples]` to indices `[batch, levels, frames]` and scales `[batch, 1]`."""
        # A sum divided by their number, not `mean`: transformers' order of rounding, hence its codes.
        middle = audio.sum(1, keepdim=True) / self.channels
        scale = middle.square().mean(-1, keepdim=True).sqrt() + _SILENCE
        embeddings = self.model.encoder(audio / scale)
        indices = self.model.quantizer.encode(embeddings, bandwidth)  # [levels, batch, frames]
        return indices.transpose(0, 1), scale.flatten(1)

    def _decode_chunk(self, indices: Tensor, scale: Tensor) -> Tensor:
        """Indices `[batch, levels, frames]` and scales `[batch]` to `[batch, channels, frames * hop]`."""
        embeddings = self.model.quantizer.decode(indices.transpose(0, 1))
        return self.model.decoder(embeddings) * scale[:, None, None]

    def _cross_fade(self, chunks: Sequence[Tensor], length: int) -> Tensor:
        """Overlapping chunks `[batch, channels, samples]` to `[batch, channels, length]`."""
        # Every chunk is weighed by a triangle, 0 at its ends: y = sum_i w_i x_i / sum_i w_i. Where one chunk is alone
        # this is the chunk; where two meet it is a linear cross-fade.
        first = chunks[0]
        position = torch.linspace(0, 1, first.shape[-1] + 2, device=first.device)[1:-1]
        triangle = 0.5 - (position - 0.5).abs()
        weights = first.new_zeros(length)
        audio = first.new_zeros(*first.shape[:-1], length)
        for start, chunk in zip(range(0, length, self.config.chunk_stride), chunks, strict=True):
            size = min(chunk.shape[-1], length - start)  # the last frame of a chunk may reach beyond the end
            audio[..., start : start + size] += triangle[:size] * chunk[..., :size]
            weights[start : start + size] += triangle[:size]
        return audio / weights

    def _bandwidth(self, levels: int) -> float:
        by_levels = dict(zip(self.config.trained_levels, self.config.bandwidths, strict=True))
        if levels not in by_levels:
            allowed = ", ".join(f"{count} ({kbps:g} kbps)" for count, kbps in by_levels.items())
            raise UntrainedLevelsError(f"levels = {levels} is no rate of this EnCodec; allowed: {allowed}")
        return by_levels[levels]

    def _require_audio(self, audio: Tensor) -> None:
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.shape[2] == 0:
            raise ValueError(
                f"audio has the shape {tuple(audio.shape)}; "
                f"this codec takes [batch, {self.channels}, samples], samples > 0"
            )

    def _require_codes(self, codes: EncodecCodes, frames: Sequence[int], length: int) -> None:
        indices, scales = codes
        if length < 1 or indices.ndim != 3 or not 1 <= indices.shape[1] <= self.levels:
            raise ValueError(
                f"indices have the shape {tuple(indices.shape)} and length = {length}; "
                f"allowed: [batch, 1..{self.levels} levels, frames], length > 0"
            )
        expected = (indices.shape[0], len(frames))
        if indices.shape[-1] != sum(frames) or scales.shape != expected:
            raise ValueError(
                f"{indices.shape[-1]} frames with scales {tuple(scales.shape)} are not the codes of length = {length}: "
                f"that has {sum(frames)} frames and scales {expected}; give decode the length that was encoded"
            )


def _random_model(config: EncodecConfig) -> nn.Module:
    model = _import_transformers().EncodecModel(_inner_config(config))
    for layer in model.quantizer.layers:
        # transformers leaves codebooks at zero for weights to come: every code would be 0. This is the start that
        # EnCodec's authors use without k-means.
        nn.init.kaiming_uniform_(layer.codebook.embed)
        layer.codebook.embed_avg.copy_(layer.codebook.embed)
    return model


def _inner_config(config: EncodecConfig) -> Any:
    """The same as a `transformers.EncodecConfig`."""
    return _import_transformers().EncodecConfig(
        **_FIXED,
        audio_channels=config.channels,
        num_filters=config.width,
        upsampling_ratios=list(config.strides)[::-1],
        num_residual_layers=config.residual_layers,
        num_lstm_layers=config.lstm_layers,
        hidden_size=config.embedding_dim,
        codebook_size=config.codebook_size,
        target_bandwidths=list(config.bandwidths),
        chunk_length_s=config.chunk_seconds,
        overlap=config.overlap,
    )


@contextmanager
def _explaining(name: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # for what is not as it should be transformers has no common type of error
        raise PretrainedWeightsError(
            f"the weights {str(name)!r} cannot be read from this machine. {_HOW_TO_GET_THEM} ({error})"
        ) from error


def _config_of(inner: Any, name: str | Path) -> EncodecConfig:
    """A `transformers.EncodecConfig` as ours; PretrainedWeightsError if it has no equal here."""
    refusal = f"{str(name)!r} is not the 48 kHz EnCodec; allowed: {PRETRAINED_NAME} or a folder that holds it"
    try:
        config = EncodecConfig(
            channels=inner.audio_channels,
            width=inner.num_filters,
            strides=tuple(inner.upsampling_ratios)[::-1],
            residual_layers=inner.num_residual_layers,
            lstm_layers=inner.num_lstm_layers,
            embedding_dim=inner.hidden_size,
            codebook_size=inner.codebook_size,
            bandwidths=tuple(inner.target_bandwidths),
            chunk_seconds=inner.chunk_length_s,
            overlap=inner.overlap,
        )
    except (TypeError, ValueError) as error:
        raise PretrainedWeightsError(f"{refusal}. ({error})") from error
    _require_equal(inner, _inner_config(config), refusal)
    return config


def _require_equal(inner: Any, expected: Any, refusal: str) -> None:
    for key in type(expected).__annotations__:  # what EnCodec's configuration has beyond every model's
        given, allowed = (list(v) if isinstance(v := getattr(c, key), tuple) else v for c in (inner, expected))
        if given != allowed:
            raise PretrainedWeightsError(f"{refusal}. ({key} = {given}, not {allowed})")


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("EnCodec needs transformers; type: pip install 'spectrostream[baselines]'") from error
    return transformers
