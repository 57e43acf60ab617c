"""Codebook usage of a codec: used entries, perplexity, entropy and bitrate efficiency."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reports.metrics.score import Score

# Per level. With fewer tokens, the entropy over 1024 entries describes the sample more than the codec.
FEWEST_TOKENS = 5000


class LevelUsage(NamedTuple):
    """Usage of one quantizer level."""

    used_entries: int
    entropy: Score  # bits per token, with the Miller-Madow correction
    perplexity: Score  # 2 ** entropy


class CodebookUsage(NamedTuple):
    """Usage of all levels of a codec."""

    tokens: int  # per level
    codebook_size: int
    levels: tuple[LevelUsage, ...]  # lowest first
    bitrate_efficiency: Score  # sum of entropies / (levels x log2 codebook_size), in [0, 1]


def codebook_usage(codes: Tensor, codebook_size: int) -> CodebookUsage:
    """Measure how each level uses its codebook.

    Args:
        codes: int64 `[..., levels, frames]` with values in [0, codebook_size).
        codebook_size: Entries of each codebook.

    Returns:
        Usage of each level. With fewer than FEWEST_TOKENS tokens per level, the entropies are missing; the used entries
        are counted in any case.

    Raises:
        ValueError: If the codes have another type, shape or range.
    """
    _check(codes, codebook_size)
    # [..., levels, frames] -> [levels, tokens]
    tokens = codes.movedim(-2, 0).flatten(1)
    levels = tuple(_level_usage(level, codebook_size) for level in tokens)
    return CodebookUsage(tokens.shape[1], codebook_size, levels, _efficiency(levels, codebook_size))


def _check(codes: Tensor, codebook_size: int) -> None:
    if codes.dtype != torch.int64 or codes.ndim < 2:
        raise ValueError(f"codes are int64 [..., levels, frames]; given {codes.dtype} {list(codes.shape)}")
    if codebook_size < 2:
        raise ValueError(f"codebook_size is {codebook_size}; a codebook has at least 2 entries")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ValueError(f"codes lie in [0, {codebook_size}); given {int(codes.min())} .. {int(codes.max())}")


def _level_usage(tokens: Tensor, codebook_size: int) -> LevelUsage:
    counts = torch.bincount(tokens, minlength=codebook_size)
    used = int((counts > 0).sum())
    if tokens.numel() < FEWEST_TOKENS:
        refused = Score.missing(f"{tokens.numel()} tokens; at least {FEWEST_TOKENS} are needed")
        return LevelUsage(used, refused, refused)
    entropy = _miller_madow_bits(counts[counts > 0].double(), codebook_size)
    return LevelUsage(used, Score(entropy), Score(2**entropy))


def _miller_madow_bits(counts: Tensor, codebook_size: int) -> float:
    # H = -sum p log2 p + (m - 1) / (2 N ln 2) for m used entries and N tokens (Miller 1955). The second term corrects
    # the bias of the first. No entropy exceeds log2 of the codebook's size.
    total = float(counts.sum())
    p = counts / total
    plain = float(-(p * p.log2()).sum())
    return min(plain + (counts.numel() - 1) / (2 * total * math.log(2)), math.log2(codebook_size))


def _efficiency(levels: tuple[LevelUsage, ...], codebook_size: int) -> Score:
    if not levels:
        return Score.missing("no levels")
    if reason := levels[0].entropy.reason:
        return Score.missing(reason)
    return Score(sum(level.entropy.value for level in levels) / (len(levels) * math.log2(codebook_size)))
