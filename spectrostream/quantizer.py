"""Residual vector quantizer with EMA codebooks (SoundStream section III.C; the official training fields)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.codebook_learning import CodebookLearning, nearest_entries, own_share, process_count, summed
from spectrostream.convolution import join_groups, separate_groups

ABSENT = -1  # the code of a level that was dropped, or lost on the way: it adds nothing


@dataclass(frozen=True)
class QuantizerConfig:
    """Codebooks and how they learn.

    levels, codebook_size: 64 x 1024 entries in the released model (10 bits each). Where channels keep tokens of their
        own (`fusion: never`) the levels are shared out among them.
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

    token_groups: tokens that stand side by side in an embedding and share codebooks and bits. Their levels take turns:
    level l of the codes is level l // token_groups of token l % token_groups, so that a prefix serves all alike.
    codebooks: buffer `[ceil(levels / token_groups), codebook_size, embedding_dim]`, learnt by exponential moving
    averages, not by gradients.
    """

    codebooks: Tensor
    level_choices: Tensor

    def __init__(self, config: QuantizerConfig, embedding_dim: int, token_groups: int = 1) -> None:
        super().__init__()
        self.config = config
        self.token_groups = token_groups
        depth = -(-config.levels // token_groups)
        shape = (depth, config.codebook_size, embedding_dim)
        # Shrinking with the level as residuals do, so that even untrained codebooks quantize.
        scale = torch.full((depth, 1, 1), 0.9).pow(torch.arange(depth)[:, None, None])
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
    def encode(self, embeddings: Tensor, levels: int | Tensor, squared_norms: Tensor | None = None) -> Tensor:
        """`[batch, embedding_dim * token_groups, frames]` to int64 codes `[batch, levels, frames]`.

        levels: one number, or int64 `[batch]`, one for each example; there are then as many as the highest, and what an
        example does not have is `ABSENT`.
        squared_norms: `squared_norms()` of the codebooks if they are at hand, for many short calls.
        """
        most = levels if isinstance(levels, int) else int(levels.max())
        codes = self._nearest_codes(embeddings, -(-most // self.token_groups), squared_norms)[:, :most]
        if isinstance(levels, int):
            return codes
        is_absent = torch.arange(most, device=codes.device) >= levels.to(codes.device)[:, None]
        return codes.masked_fill(is_absent[..., None], ABSENT)

    def squared_norms(self) -> Tensor:
        """|c|^2 of every entry, `[ceil(levels / token_groups), codebook_size]`."""
        return self.codebooks.square().sum(-1)

    def _nearest_codes(self, embeddings: Tensor, depth: int, squared_norms: Tensor | None) -> Tensor:
        """Codes `[batch, depth * token_groups, frames]`."""
        norms = self.codebooks[:depth].square().sum(-1) if squared_norms is None else squared_norms
        vectors = self._token_rows(embeddings)
        rows, frames, dim = vectors.shape
        vectors = vectors.reshape(-1, dim)
        codes = [vectors.new_zeros(0, len(vectors), dtype=torch.int64)]
        for level, codebook in enumerate(self.codebooks[:depth]):
            nearest = nearest_entries(vectors, codebook, norms[level])
            vectors = vectors - codebook[nearest]
            codes.append(nearest.unsqueeze(0))
        return self._taking_turns(torch.cat(codes).reshape(depth, rows, frames))

    def _token_rows(self, embeddings: Tensor) -> Tensor:
        """`[batch, dim * token_groups, frames]` to float32 `[batch * token_groups, frames, dim]`."""
        return separate_groups(embeddings, self.token_groups).float().transpose(1, 2)

    def _taking_turns(self, codes: Tensor) -> Tensor:
        """`[depth, batch * token_groups, frames]` to `[batch, depth * token_groups, frames]`."""
        depth, rows, frames = codes.shape
        batch = rows // self.token_groups
        turns = codes.reshape(depth, batch, self.token_groups, frames).permute(1, 0, 2, 3)
        return turns.reshape(batch, depth * self.token_groups, frames)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes `[batch, levels, frames]` to sums of their entries, `[batch, embedding_dim * token_groups, frames]`.

        `ABSENT` codes and levels that are not there add nothing.
        """
        batch, levels, frames = codes.shape
        depth = -(-levels // self.token_groups)
        codes = F.pad(codes, (0, 0, 0, depth * self.token_groups - levels), value=ABSENT)
        # [batch * token_groups, frames, depth]
        turns = codes.reshape(batch, depth, self.token_groups, frames).permute(0, 2, 3, 1).flatten(0, 1)
        total = self.codebooks.new_zeros(*turns.shape[:2], self.codebooks.shape[-1])
        for level, codebook in enumerate(self.codebooks[:depth]):
            index = turns[..., level]
            total = total + codebook[index.clamp(min=0)] * (index >= 0)[..., None]
        return join_groups(total.transpose(1, 2), self.token_groups)

    def forward(self, embeddings: Tensor) -> Quantized:
        """One training pass: draws each example's levels and bypass, quantizes, and lets the codebooks learn.

        Every level learns from every example (a dropped level sees the residual it would have had), so high levels do
        not starve although low rates are drawn more often.
        """
        batch, _, frames = embeddings.shape
        flat = self._token_rows(embeddings)  # [batch * token_groups, frames, dim]
        if not self.learning.is_started:
            with torch.no_grad():
                self.learning.collect(flat.flatten(0, 1), self.codebooks)
            codes = torch.zeros(batch, 0, frames, dtype=torch.int64, device=flat.device)
            return Quantized(embeddings, codes, embeddings.new_zeros(()), is_started=False)
        levels, is_bypassed = self._draw(batch, embeddings.device)
        codes, partial_sums = self._quantize_and_learn(embeddings, flat)
        # [batch * token_groups, frames, dim]: the sum of each token's own number of levels, zero for none
        chosen = partial_sums[(levels - 1).clamp(min=0), torch.arange(len(levels), device=levels.device)]
        chosen = chosen * (levels > 0)[:, None, None]
        straight_through = flat + (chosen - flat).detach()
        seen = torch.where(is_bypassed[:, None, None], flat, straight_through)
        loss = commitment_loss(flat, partial_sums, levels, ~is_bypassed)
        seen = join_groups(seen.transpose(1, 2), self.token_groups)
        return Quantized(seen.to(embeddings.dtype), codes, loss, is_started=True)

    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels and bypass of every token, `[batch * token_groups]`; the tokens of an example share its draw.

        Processes with equal random states draw for all their examples what one process with these would draw.
        """
        everywhere = batch * process_count()
        levels = self.level_choices[own_share(torch.randint(len(self.level_choices), (everywhere,), device=device))]
        is_bypassed = own_share(torch.rand(everywhere, device=device)) < self.config.bypass_probability
        turn = torch.arange(self.token_groups, device=device)
        own_levels = (levels[:, None] - turn + self.token_groups - 1).div(self.token_groups, rounding_mode="floor")
        return own_levels.flatten(), is_bypassed.repeat_interleave(self.token_groups)

    @torch.no_grad()
    def _quantize_and_learn(self, embeddings: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[batch, levels, frames]`; the sums after each level, `[depth, batch * token_groups, frames, dim]`."""
        rows, frames, dim = flat.shape
        depth = len(self.codebooks)
        codes = self._nearest_codes(embeddings, depth, None)
        # [depth, batch * token_groups * frames]
        indices = codes.reshape(-1, depth, self.token_groups, frames).permute(1, 0, 2, 3).reshape(depth, -1)
        entries = self.codebooks.gather(1, indices[..., None].expand(-1, -1, dim))
        partial_sums = entries.cumsum(0)
        residuals = flat.reshape(1, -1, dim) - (partial_sums - entries)
        self.learning.update(self.codebooks, indices, residuals)
        return codes[:, : self.config.levels], partial_sums.reshape(depth, rows, frames, dim)


def commitment_loss(embeddings: Tensor, partial_sums: Tensor, levels: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance of an embedding from its quantization after 1, 2, .. levels, over the levels drawn.

    embeddings: `[batch, frames, dim]`; partial_sums: `[levels, batch, frames, dim]`, no gradient; levels: `[batch]`;
    counts: bool `[batch]`, examples that take part. Zero if none does, and for an example without levels. Between
    processes it is the average of theirs that is the loss of all examples: they share one count.
    """
    distances = (embeddings - partial_sums.detach()).square().mean((2, 3))  # [levels, batch]
    index = torch.arange(1, partial_sums.shape[0] + 1, device=levels.device)[:, None]
    active = (index <= levels) & counts
    per_example = (distances * active).sum(0) / levels.clamp(min=1)
    everywhere = counts.sum().float()
    summed(everywhere)
    return per_example.sum() * process_count() / everywhere.clamp(min=1)
