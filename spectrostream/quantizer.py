"""Residual vector quantizer with EMA codebooks (SoundStream section III.C; the official training fields)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spectrostream.codebook_learning import CodebookLearning, nearest_entries


@dataclass(frozen=True)
class QuantizerConfig:
    """Codebooks and how they learn.

    levels, codebook_size: 64 x 1024 entries in the released model (10 bits each).
    bypass_probability: share of examples whose decoder sees the unquantized embedding.
    decay: of the EMA codebooks.
    initial_vectors: how many embeddings are collected before k-means starts the codebooks; until then every example is
        bypassed. More than `codebook_size`, or duplicate centroids stay dead for ever.
    kmeans_iterations: of Lloyd's algorithm, at the start of each level.
    revival_threshold: an entry is revived when its EMA usage falls below this fraction of an equal share.
    """

    levels: int = 64
    codebook_size: int = 1024
    bypass_probability: float = 0.5
    decay: float = 0.99
    initial_vectors: int = 4096
    kmeans_iterations: int = 10
    revival_threshold: float = 0.1

    def __post_init__(self) -> None:
        _require(self.levels >= 1, "levels", self.levels, "1 or more")
        _require(self.codebook_size >= 2, "codebook_size", self.codebook_size, "2 or more")
        _require(0 <= self.bypass_probability <= 1, "bypass_probability", self.bypass_probability, "0 .. 1")
        _require(0 < self.decay < 1, "decay", self.decay, "above 0, below 1")
        _require(
            self.initial_vectors >= self.codebook_size,
            "initial_vectors",
            self.initial_vectors,
            f"at least model.quantizer.codebook_size = {self.codebook_size}",
        )
        _require(self.kmeans_iterations >= 0, "kmeans_iterations", self.kmeans_iterations, "0 or more")
        _require(0 <= self.revival_threshold < 1, "revival_threshold", self.revival_threshold, "0 or more, below 1")

    @property
    def bits_per_index(self) -> float:
        """log2 of the codebook size."""
        return math.log2(self.codebook_size)


def _require(condition: bool, key: str, given: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"model.quantizer.{key} = {given!r} is not possible; allowed: {allowed}")


class Quantized(NamedTuple):
    """embeddings: `[batch, embedding_dim, frames]`, straight-through; codes: int64 `[batch, levels, frames]`;
    commitment_loss: scalar; is_started: False while vectors are still collected for k-means.
    """

    embeddings: Tensor
    codes: Tensor
    commitment_loss: Tensor
    is_started: bool


def trainable_levels(levels: int) -> tuple[int, ...]:
    """Numbers of levels that training draws from: {1..16 step 1, 18..32 step 2, 36..64 step 4} up to `levels`.

    Uniform draws from this set favour low rates (official configuration). `levels` itself is always in it.
    """
    drawn = [*range(1, 17), *range(18, 33, 2), *range(36, max(64, levels) + 1, 4)]
    return tuple(sorted({*(n for n in drawn if n <= levels), levels}))


class ResidualVectorQuantizer(nn.Module):
    """Level by level the nearest entry is subtracted from what is left; fewer levels is a prefix of the codes.

    codebooks: buffer `[levels, codebook_size, embedding_dim]`, learnt by exponential moving averages, not by gradients.
    """

    codebooks: Tensor
    level_choices: Tensor

    def __init__(self, config: QuantizerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.config = config
        shape = (config.levels, config.codebook_size, embedding_dim)
        # Shrinking with the level as residuals do, so that even untrained codebooks quantize.
        scale = torch.full((config.levels, 1, 1), 0.9).pow(torch.arange(config.levels)[:, None, None])
        self.register_buffer("codebooks", torch.randn(shape) * scale)
        self.learning = CodebookLearning(
            shape,
            decay=config.decay,
            initial_vectors=config.initial_vectors,
            kmeans_iterations=config.kmeans_iterations,
            revival_threshold=config.revival_threshold,
        )
        self.register_buffer("level_choices", torch.tensor(trainable_levels(config.levels)), persistent=False)

    @torch.no_grad()
    def encode(self, embeddings: Tensor, levels: int) -> Tensor:
        """`[batch, embedding_dim, frames]` to int64 codes `[batch, levels, frames]`."""
        batch, dim, frames = embeddings.shape
        vectors = embeddings.float().transpose(1, 2).reshape(-1, dim)
        codes = torch.empty(levels, vectors.shape[0], dtype=torch.int64, device=vectors.device)
        for level, codebook in enumerate(self.codebooks[:levels]):
            codes[level] = nearest_entries(vectors, codebook)
            vectors = vectors - codebook[codes[level]]
        return codes.reshape(levels, batch, frames).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `[batch, levels, frames]` to their sum `[batch, embedding_dim, frames]`; no levels give zeros."""
        batch, levels, frames = codes.shape
        total = self.codebooks.new_zeros(batch, frames, self.codebooks.shape[-1])
        for level in range(levels):
            total = total + self.codebooks[level][codes[:, level]]
        return total.transpose(1, 2)

    def forward(self, embeddings: Tensor) -> Quantized:
        """One training pass: draws each example's levels and bypass, quantizes, and lets the codebooks learn.

        Every level learns from every example (a dropped level sees the residual it would have had), so high levels do
        not starve although low rates are drawn more often.
        """
        batch, _, frames = embeddings.shape
        flat = embeddings.float().transpose(1, 2)  # [batch, frames, dim]
        if not self.learning.is_started:
            with torch.no_grad():
                self.learning.collect(flat.flatten(0, 1), self.codebooks)
            codes = torch.zeros(batch, 0, frames, dtype=torch.int64, device=flat.device)
            return Quantized(embeddings, codes, embeddings.new_zeros(()), is_started=False)
        levels, is_bypassed = self._draw(batch, embeddings.device)
        codes, partial_sums = self._quantize_and_learn(flat)
        # [batch, frames, dim]: the sum of each example's own number of levels
        chosen = partial_sums[levels - 1, torch.arange(batch, device=levels.device)]
        straight_through = flat + (chosen - flat).detach()
        seen = torch.where(is_bypassed[:, None, None], flat, straight_through)
        loss = commitment_loss(flat, partial_sums, levels, ~is_bypassed)
        return Quantized(seen.transpose(1, 2).to(embeddings.dtype), codes, loss, is_started=True)

    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        levels = self.level_choices[torch.randint(len(self.level_choices), (batch,), device=device)]
        return levels, torch.rand(batch, device=device) < self.config.bypass_probability

    @torch.no_grad()
    def _quantize_and_learn(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        batch, frames, dim = flat.shape
        codes = self.encode(flat.transpose(1, 2), self.config.levels)
        indices = codes.transpose(0, 1).reshape(self.config.levels, -1)  # [levels, vectors]
        entries = self.codebooks.gather(1, indices[..., None].expand(-1, -1, dim))
        partial_sums = entries.cumsum(0)
        residuals = flat.reshape(1, -1, dim) - (partial_sums - entries)
        self.learning.update(self.codebooks, indices, residuals)
        return codes, partial_sums.reshape(-1, batch, frames, dim)


def commitment_loss(embeddings: Tensor, partial_sums: Tensor, levels: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance of an embedding from its quantization after 1, 2, .. levels, over the levels drawn.

    embeddings: `[batch, frames, dim]`; partial_sums: `[levels, batch, frames, dim]`, no gradient; levels: `[batch]`;
    counts: bool `[batch]`, examples that take part. Zero if none does.
    """
    distances = (embeddings - partial_sums.detach()).square().mean((2, 3))  # [levels, batch]
    index = torch.arange(1, partial_sums.shape[0] + 1, device=levels.device)[:, None]
    active = (index <= levels) & counts
    per_example = (distances * active).sum(0) / levels
    return per_example.sum() / counts.sum().clamp(min=1)
