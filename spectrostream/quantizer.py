"""The residual vector quantizer, with codebooks that learn by moving averages (SoundStream, section III.C)."""

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
    """Levels of the residual quantizer, one codebook each. With `fusion: never` the groups divide the levels. Allowed:
    1 or more. Source: official implementation."""
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
    quantizer. With few embeddings, some centroids are duplicates and never used. Allowed: `codebook_size` or more."""
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
        """Bits of one code: log2 of the codebook size."""
        return math.log2(self.codebook_size)


class Quantized(NamedTuple):
    """The result of a training pass.

    Attributes:
        embeddings: `[batch, embedding_dim * token_groups, frames]`, with straight-through gradients.
        codes: `[batch, levels, frames]`, int64; no levels before the start.
        commitment_loss: A scalar.
        is_started: False while vectors are collected for k-means.
    """

    embeddings: Tensor
    codes: Tensor
    commitment_loss: Tensor
    is_started: bool


def trainable_levels(levels: int) -> tuple[int, ...]:
    """Return the numbers of levels from which training draws, in increasing order.

    They are 1..16, 18..32 in steps of 2, and from 36 on in steps of 4, up to `levels`; `levels` itself is always one of
    them. Uniform draws from them favour low rates (official configuration).
    """
    drawn = [*range(1, 17), *range(18, 33, 2), *range(36, max(64, levels) + 1, 4)]
    return tuple(sorted({*(n for n in drawn if n <= levels), levels}))


class ResidualVectorQuantizer(nn.Module):
    """Each level quantizes what the levels before it left: the residual. The codes of fewer levels are a prefix.

    Args:
        config: Codebooks and how they learn.
        embedding_dim: Features of a token.
        token_groups: Tokens in an embedding. They share codebooks and bits, and their levels alternate: level l of the
            codes is level l // token_groups of token l % token_groups, so that a prefix treats all tokens alike.

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
            Codes `[batch, levels, frames]`, int64. With a number for each example, `levels` is the highest number, and
            codes above an example's number are `ABSENT`.
        """
        most = levels if isinstance(levels, int) else int(levels.max())
        codes = self._nearest_codes(embeddings, -(-most // self.token_groups), squared_norms)[:, :most]
        if isinstance(levels, int):
            return codes
        is_absent = torch.arange(most, device=codes.device) >= levels.to(codes.device)[:, None]
        return codes.masked_fill(is_absent[..., None], ABSENT)

    def squared_norms(self) -> Tensor:
        """Return |c|^2 of every entry, `[ceil(levels / token_groups), codebook_size]`."""
        return self.codebooks.square().sum(-1)

    def _nearest_codes(self, embeddings: Tensor, depth: int, squared_norms: Tensor | None) -> Tensor:
        """Return codes `[batch, depth * token_groups, frames]`."""
        norms = self.codebooks[:depth].square().sum(-1) if squared_norms is None else squared_norms
        vectors = self._token_rows(embeddings)
        rows, frames, dim = vectors.shape
        vectors = vectors.reshape(-1, dim)
        codes = [vectors.new_zeros(0, len(vectors), dtype=torch.int64)]
        for level, codebook in enumerate(self.codebooks[:depth]):
            nearest = nearest_entries(vectors, codebook, norms[level])
            vectors = vectors - codebook[nearest]
            codes.append(nearest.unsqueeze(0))
        return self._interleaved(torch.cat(codes).reshape(depth, rows, frames))

    def _token_rows(self, embeddings: Tensor) -> Tensor:
        """Map `[batch, dim * token_groups, frames]` to float32 `[batch * token_groups, frames, dim]`."""
        return separate_groups(embeddings, self.token_groups).float().transpose(1, 2)

    def _interleaved(self, codes: Tensor) -> Tensor:
        """Map `[depth, batch * token_groups, frames]` to `[batch, depth * token_groups, frames]`."""
        depth, rows, frames = codes.shape
        batch = rows // self.token_groups
        by_token = codes.reshape(depth, batch, self.token_groups, frames).permute(1, 0, 2, 3)
        return by_token.reshape(batch, depth * self.token_groups, frames)

    def decode(self, codes: Tensor) -> Tensor:
        """Add up the entries that codes name.

        Args:
            codes: `[batch, levels, frames]`; `ABSENT` codes add nothing.

        Returns:
            Embeddings `[batch, embedding_dim * token_groups, frames]`.
        """
        batch, levels, frames = codes.shape
        depth = -(-levels // self.token_groups)
        codes = F.pad(codes, (0, 0, 0, depth * self.token_groups - levels), value=ABSENT)
        # [batch * token_groups, frames, depth]
        by_token = codes.reshape(batch, depth, self.token_groups, frames).permute(0, 2, 3, 1).flatten(0, 1)
        total = self.codebooks.new_zeros(*by_token.shape[:2], self.codebooks.shape[-1])
        for level, codebook in enumerate(self.codebooks[:depth]):
            index = by_token[..., level]
            total = total + codebook[index.clamp(min=0)] * (index >= 0)[..., None]
        return join_groups(total.transpose(1, 2), self.token_groups)

    def forward(self, embeddings: Tensor) -> Quantized:
        """Draw each example's levels and bypass, quantize, and update the codebooks: one training pass.

        Every level learns from every example, also from those that do not use it. So high levels learn enough although
        low rates are drawn more often.

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
        # [batch * token_groups, frames, dim]: the sum over each token's number of levels, zero for no levels
        chosen = partial_sums[(levels - 1).clamp(min=0), torch.arange(len(levels), device=levels.device)]
        chosen = chosen * (levels > 0)[:, None, None]
        straight_through = flat + (chosen - flat).detach()
        seen = torch.where(is_bypassed[:, None, None], flat, straight_through)
        loss = commitment_loss(flat, partial_sums, levels, ~is_bypassed)
        seen = join_groups(seen.transpose(1, 2), self.token_groups)
        return Quantized(seen.to(embeddings.dtype), codes, loss, is_started=True)

    def _draw(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw levels and bypass of every token, `[batch * token_groups]`; the tokens of an example share its draw.

        Each process draws for all, so that one process with all examples would draw the same.
        """
        examples = batch * process_count()
        levels = self.level_choices[own_share(torch.randint(len(self.level_choices), (examples,), device=device))]
        is_bypassed = own_share(torch.rand(examples, device=device)) < self.config.bypass_probability
        token = torch.arange(self.token_groups, device=device)
        own_levels = (levels[:, None] - token + self.token_groups - 1).div(self.token_groups, rounding_mode="floor")
        return own_levels.flatten(), is_bypassed.repeat_interleave(self.token_groups)

    @torch.no_grad()
    def _quantize_and_learn(self, embeddings: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize to all levels and update the codebooks.

        Returns:
            Codes `[batch, levels, frames]`; the sums after each level, `[depth, batch * token_groups, frames, dim]`.
        """
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
    """Compute the mean squared distance of an embedding from its quantization after each of the drawn levels.

    Each process divides by the examples of all processes, so that the average over the processes is the loss of all
    examples.

    Args:
        embeddings: `[batch, frames, dim]`.
        partial_sums: `[levels, batch, frames, dim]`; no gradient flows into it.
        levels: `[batch]`, the drawn levels.
        counts: `[batch]`, bool, True for examples that count.

    Returns:
        A scalar; 0 if no example counts. An example without levels adds 0.
    """
    distances = (embeddings - partial_sums.detach()).square().mean((2, 3))  # [levels, batch]
    index = torch.arange(1, partial_sums.shape[0] + 1, device=levels.device)[:, None]
    active = (index <= levels) & counts
    per_example = (distances * active).sum(0) / levels.clamp(min=1)
    examples = counts.sum().float()
    summed(examples)
    return per_example.sum() * process_count() / examples.clamp(min=1)
