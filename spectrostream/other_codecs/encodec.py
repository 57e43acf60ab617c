"""EnCodec (arXiv:2210.13438), 48 kHz stereo, through `transformers.EncodecModel`, behind the interface of our codec.

EnCodec cuts the audio into chunks of one second; a chunk starts every 0.99 s. Each chunk is divided by its loudness and
coded alone; decoded chunks are cross-faded. EnCodec is here for evaluation, not for training.

The networks and codebooks are those of transformers. The chunks are cut and joined here, because transformers (5.23)
fails at most lengths whose last chunk is a single frame. At other lengths, codes and audio equal its own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectrostream.errors import UserError
from spectrostream.interface import Reconstruction
from spectrostream.other_codecs.encodec_config import SAMPLE_RATE, EncodecConfig
from spectrostream.other_codecs.encodec_weights import PRETRAINED_NAME, pretrained_model, random_model

SCALE_BITS = 32  # EnCodec's own files store a chunk's scale as a 32-bit float
_SILENCE = 1e-8  # is added to every scale, so that a silent chunk is not divided by zero


class EvaluationOnlyError(UserError):
    """EnCodec cannot be trained; the message lists the codecs that can."""


class UntrainedLevelsError(UserError, ValueError):
    """The number of levels is none of the model's rates; the message lists those."""


class EncodecCodes(NamedTuple):
    """The codes of a batch.

    Attributes:
        indices: int64 `[batch, levels, frames]`, the frames of all chunks in order, without padding.
        scales: float32 `[batch, chunks]`, the divisor of each chunk: the root mean square of its channels' mean.
    """

    indices: Tensor
    scales: Tensor

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.indices.device

    @property
    def is_cuda(self) -> bool:
        """True on a GPU, as for a tensor; time measurements read it."""
        return self.indices.is_cuda


class Encodec(nn.Module):
    """EnCodec for audio `[batch, channels, samples]` at 48 kHz; a `spectrostream.interface.AudioCodec`.

    Its codes are `EncodecCodes`. `decode` computes the frames of each chunk from the number of samples.

    Args:
        config: The architecture.
        model: A `transformers.EncodecModel` with weights; by default one with random weights.
    """

    sample_rate = SAMPLE_RATE
    is_causal = False
    latency_samples = None

    model: Any  # a transformers.EncodecModel; transformers is imported only where it is used

    def __init__(self, config: EncodecConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = random_model(config) if model is None else model

    @classmethod
    def from_pretrained(cls, name: str | Path = PRETRAINED_NAME) -> Encodec:
        """Load Meta's weights, or others of the same model. Nothing is downloaded or unpickled.

        Args:
            name: A local folder, or a name in the local Hugging Face cache.

        Raises:
            PretrainedWeightsError: The weights are missing, incomplete, or not those of a 48 kHz EnCodec; the message
                says what to type.
        """
        config, model = pretrained_model(name)
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
        """Numbers in all codebooks; these are buffers, not `parameters()`."""
        return self.levels * self.codebook_size * self.config.embedding_dim

    def kbps(self, levels: int) -> float:
        """Return the nominal rate of all channels together: 1.5 kbps per level for the released model.

        The real rate is one or two per cent higher, because chunks overlap and each has a scale. `bits` counts both:
        3.06 kbps for the nominal 3, 24.27 for 24.
        """
        return levels * self.config.level_kbps

    def bits(self, codes: EncodecCodes) -> int:
        """Return the bits of one example: all indices, those of overlaps twice, and 32 for each chunk's scale.

        EnCodec's own files without entropy coding have the same bits, plus a header and the unused bits of each chunk's
        last byte.
        """
        index_bits = self.codebook_size.bit_length() - 1  # a power of two
        return codes.indices[0].numel() * index_bits + codes.scales.shape[1] * SCALE_BITS

    @torch.no_grad()
    def encode(self, audio: Tensor, *, levels: int | None = None) -> EncodecCodes:
        """Encode audio.

        Args:
            audio: `[batch, channels, samples]` at 48 kHz.
            levels: One of `config.trained_levels`; the highest by default.

        Raises:
            ValueError: The audio has another shape.
            UntrainedLevelsError: The model has no rate with these levels.
        """
        bandwidth = self._bandwidth(self.levels if levels is None else levels)
        self._require_audio(audio)
        chunks = [self._encode_chunk(chunk, bandwidth) for chunk in self._chunks(audio.float())]
        indices, scales = zip(*chunks, strict=True)
        return EncodecCodes(torch.cat(indices, dim=-1), torch.cat(scales, dim=-1))

    @torch.no_grad()
    def decode(self, codes: EncodecCodes, *, length: int) -> Tensor:
        """Decode codes.

        Args:
            codes: What `encode` returned.
            length: The number of samples that were encoded.

        Returns:
            float32 `[batch, channels, length]` at 48 kHz.

        Raises:
            ValueError: The codes have another shape than those of `length` samples.
        """
        frames = self.chunk_frames(length)
        self._require_codes(codes, frames, length)
        indices = codes.indices.split(frames, dim=-1)
        chunks = [self._decode_chunk(*chunk) for chunk in zip(indices, codes.scales.unbind(1), strict=True)]
        return self._cross_fade(chunks, length)

    def forward(self, audio: Tensor) -> Reconstruction:
        """Raise EvaluationOnlyError: this codec has nothing to be trained with."""
        raise EvaluationOnlyError(
            "model.kind = encodec is for evaluation only: transformers' EnCodec has no commitment loss and no "
            "codebooks that learn. Allowed for training: model.kind = spectrostream or dac. "
            "For trained weights use Encodec.from_pretrained(folder)."
        )

    def chunk_frames(self, samples: int) -> list[int]:
        """Return the number of frames of each chunk, for audio of `samples` samples."""
        hop = self.config.hop_length
        return [-(-length // hop) for length in self._chunk_lengths(samples)]

    def _chunk_lengths(self, samples: int) -> list[int]:
        longest, stride = self.config.chunk_length, self.config.chunk_stride
        return [min(longest, samples - start) for start in range(0, samples, stride)]

    def _chunks(self, audio: Tensor) -> list[Tensor]:
        lengths = self._chunk_lengths(audio.shape[-1])
        return [audio.narrow(-1, i * self.config.chunk_stride, length) for i, length in enumerate(lengths)]

    def _encode_chunk(self, audio: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """Encode `[batch, channels, samples]` to indices `[batch, levels, frames]` and scales `[batch, 1]`."""
        # Not `mean`: transformers divides the sum, and another rounding would change codes.
        middle = audio.sum(1, keepdim=True) / self.channels
        scale = middle.square().mean(-1, keepdim=True).sqrt() + _SILENCE
        embeddings = self.model.encoder(audio / scale)
        indices = self.model.quantizer.encode(embeddings, bandwidth)  # [levels, batch, frames]
        return indices.transpose(0, 1), scale.flatten(1)

    def _decode_chunk(self, indices: Tensor, scale: Tensor) -> Tensor:
        """Decode indices `[batch, levels, frames]` and scales `[batch]` to `[batch, channels, frames * hop]`."""
        embeddings = self.model.quantizer.decode(indices.transpose(0, 1))
        return self.model.decoder(embeddings) * scale[:, None, None]

    def _cross_fade(self, chunks: Sequence[Tensor], length: int) -> Tensor:
        """Join overlapping chunks `[batch, channels, samples]` to `[batch, channels, length]`."""
        # A triangle weights every chunk, 0 at its ends: y = sum_i w_i x_i / sum_i w_i. This is the chunk itself where
        # there is only one, and a linear cross-fade where two overlap.
        first = chunks[0]
        position = torch.linspace(0, 1, first.shape[-1] + 2, device=first.device)[1:-1]
        triangle = 0.5 - (position - 0.5).abs()
        weights = first.new_zeros(length)
        audio = first.new_zeros(*first.shape[:-1], length)
        for start, chunk in zip(range(0, length, self.config.chunk_stride), chunks, strict=True):
            size = min(chunk.shape[-1], length - start)  # a chunk's last frame may end after the audio
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
