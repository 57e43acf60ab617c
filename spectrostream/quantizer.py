"""Residual vector quantizer with EMA codebooks (SoundStream section III.C; the official training fields)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrostream.codebook_learning import CodebookLearning, nearest_entries
from spectrostream.collectives import own_share, process_count, summed
from spectrostream.convolution import join_groups, separate_groups
from spectrostream.errors import require

ABSENT = -1  # the code of a level that was dropped or lost in transmission; it adds nothing


@dataclass(frozen=True)
class QuantizerConfig:
    """Codebooks and how they learn."""

    levels: int = 64
    """Levels of the residual quantizer, one codebook each. With `fusion: never` the groups share them out. Allowed: 1
    or more. Source: official implementation."""
    codebook_size: int = 1024
    """Entries of a codebook; 1024 are 10 bits per code. Allowed: 2 or more. Source: official implementation."""
    bypass_probability: float = 0.5
    """Share of training examples whose decoder sees the unquantized embedding. Allowed: 0 to 1. Source: official
    implementation."""
    decay: float = 0.99
    """Decay per update of the codebooks' moving averages. Allowed: above 0, below 1. Source: public re-implementation.
    """
    initial_vectors: int = 4096
    """Embeddings that are collected before k-means starts the codebooks; until then every example bypasses the
    quantizer. With few of them, duplicate centroids are never used. Allowed: `codebook_size` or more."""
    kmeans_iterations: int = 10
    """Iterations of Lloyd's algorithm at the start of each level. Allowed: 0 or more."""
    revival_threshold: float = 0.1
    """An entry is replaced when its average usage falls below this fraction of an equal share; 0 turns this off.
    Allowed: 0 or more, below 1."""

    def __post_init__(self) -> None:
        enough = f"at least model.quantizer.codebook_size = {self.codebook_size}"
        for key, is_possible, allowed in (
            ("levels", self.levels >= 1, "1 or more"),
            ("codebook_size", self.codebook_size >= 2, "2 or more"),
            ("bypass_probability", 0 <= self.bypass_probability <= 1, "0 .. 1"),
            ("decay", 0 < self.decay < 1, "above 0, below 1"),
            ("initial_vectors", self.initial_vectors >= self.codebook_size, enough),
            ("kmeans_iterations", self.kmeans_iterations >= 0, "0 or more"),
            ("revival_threshold", 0 <= self.revival_threshold < 1, "0 or more, below 1"),
        ):
            require(is_possible, f"model.quantizer.{key} = {getattr(self, key)!r} is not possible", allowed)

    @property
    def bits_per_index(self) -> float:
        """log2 of the codebook size."""
        return math.log2(self.codebook_size)


class Quantized(NamedTuple):
    """The result of a training pass.

    Attributes:
        embeddings: `[batch, embedding_dim * token_groups, frames]`, straight-through.
        codes: `[batch, levels, frames]`, int64.
        commitment_loss: Scalar.
        is_started: False while vectors are still collected for k-means.
    """

    embeddings: Tensor
    codes: Tensor
    commitment_loss: Tensor
    is_started: bool


def trainable_levels(levels: int) -> tuple[int, ...]:
    """The numbers of levels from which training draws: {1..16 step 1, 18..32 step 2, 36..64 step 4} up to `levels`.

    Uniform draws from this set favour low rates (official configuration). It always contains `levels` itself.
    """
    drawn = [*range(1, 17), *range(18, 33, 2), *range(36, max(64, levels) + 1, 4)]
    return tuple(sorted({*(n for n in drawn if n <= levels), levels}))


class ResidualVectorQuantizer(nn.Module):
    """Subtracts the nearest entry from the residual, level by level; the codes of fewer levels are a prefix.

    Args:
        config: Codebooks and how they learn.
        embedding_dim: Features of a token.
        token_groups: Tokens side by side in an embedding, which share codebooks and bits. Their levels alternate: level
            l of the codes is level l // token_groups of token l % token_groups, so that a prefix serves all alike.

    Attributes:
        codebooks: Buffer `[ceil(levels / token_groups), codebook_size, embedding_dim]`; it learns by exponential moving
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
        # Entries shrink with the level as residuals do, so that even untrained codebooks quantize.
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
        """Quantize embeddings.

        Args:
            embeddings: `[batch, embedding_dim * token_groups, frames]`.
            levels: One number, or int64 `[batch]`, one for each example.
            squared_norms: The result of `squared_norms()`, to save time in many short calls.

        Returns:
            Codes `[batch, levels, frames]`, int64. With a number for each example there are as many levels as the
            highest one, and the levels that an example does not have are `ABSENT`.
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
        """Add up the entries of codes.

        Args:
            codes: `[batch, levels, frames]`; `ABSENT` codes add nothing.

        Returns:
            Embeddings `[batch, embedding_dim * token_groups, frames]`.
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
        """Draw each example's levels and bypass, quantize, and update the codebooks: one training pass.

        Every level learns from every example: a dropped level gets the residual that it would have had. So high levels
        learn enough although low rates are drawn more often.

        Args:
            embeddings: `[batch, embedding_dim * token_groups, frames]`.
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
        """Draw levels and bypass of every token, `[batch * token_groups]`; the tokens of an example share its draw.

        Processes with equal random states together draw what a single process with all their examples would draw.
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

    All processes divide by the number of all their examples, so that the average of their losses is the loss of all
    examples.

    Args:
        embeddings: `[batch, frames, dim]`.
        partial_sums: `[levels, batch, frames, dim]`; no gradient flows into it.
        levels: `[batch]`, the levels drawn.
        counts: `[batch]`, bool, the examples that take part.

    Returns:
        A scalar; 0 if no example takes part. An example without levels adds 0.
    """
    distances = (embeddings - partial_sums.detach()).square().mean((2, 3))  # [levels, batch]
    index = torch.arange(1, partial_sums.shape[0] + 1, device=levels.device)[:, None]
    active = (index <= levels) & counts
    per_example = (distances * active).sum(0) / levels.clamp(min=1)
    everywhere = counts.sum().float()
    summed(everywhere)
    return per_example.sum() * process_count() / everywhere.clamp(min=1)
