"""Compares the results of two implementations: arrays relative to their peak, codes within float32's rounding."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.integer[Any]]

UNIT_ROUNDOFF = 2.0**-24  # float32
# An inner product of n float32 numbers is off by more than 4 sqrt(n) roundoffs of |x||y| with a probability below 1e-3
# (N. J. Higham, T. Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019).
LIKELY_ROUNDOFFS = 4.0


class ShapeDisagreementError(ValueError):
    """The two arrays have different shapes; nothing is trimmed."""


@dataclass(frozen=True)
class ArrayParity:
    """The comparison of two arrays; errors are relative to the largest magnitude of the expected array."""

    name: str
    max_error: float
    rms_error: float
    limit: float
    """The largest `max_error` that passes; NaN never passes."""

    @property
    def passes(self) -> bool:
        """True if the limit is kept."""
        return self.max_error <= self.limit

    def cells(self) -> tuple[str, str, str]:
        """Return the table's cells: name, result, limit."""
        return (self.name, f"max {self.max_error:.1e}, rms {self.rms_error:.1e} of the peak", f"{self.limit:.0e}")

    def record(self) -> dict[str, Any]:
        """Return the entry of the JSON file."""
        return asdict(self) | {"passes": self.passes}


@dataclass(frozen=True)
class CodeParity:
    """The comparison of codes.

    Only a token's first disagreement counts as a tie or a split: later levels quantize different residuals.
    """

    name: str
    equal: int
    """Codes that agree."""
    compared: int
    """All codes."""
    ties: int
    """Tokens whose first disagreement can come from float32's rounding."""
    splits: int
    """Tokens whose first disagreement cannot."""
    gap_to_bound: float
    """The largest result of `gap_to_bound`; 0 without disagreements."""

    @property
    def passes(self) -> bool:
        """True if every disagreement is a tie."""
        return self.splits == 0

    def cells(self) -> tuple[str, str, str]:
        """Return the table's cells: name, result, limit."""
        share = f"{self.equal} of {self.compared} identical"
        if self.ties or self.splits:
            share += f"; first disagreements: {self.ties} ties, {self.splits} not"
            share += f" (gap up to {self.gap_to_bound:.2g} of what rounding explains)"
        return (self.name, share, "ties only")

    def record(self) -> dict[str, Any]:
        """Return the entry of the JSON file."""
        return asdict(self) | {"passes": self.passes}


Parity = ArrayParity | CodeParity


def compare_arrays(name: str, actual: Floats, expected: Floats, limit: float) -> ArrayParity:
    """Compare two arrays relative to the peak of `expected`.

    Raises:
        ShapeDisagreementError: The shapes differ.
    """
    _require_shape(name, actual, expected)
    peak = float(np.abs(expected).max()) or 1.0
    difference = np.subtract(actual, expected, dtype=np.float64)
    return ArrayParity(
        name,
        max_error=float(np.abs(difference).max()) / peak,
        rms_error=math.sqrt(float(np.square(difference).mean())) / peak,
        limit=limit,
    )


def compare_codes(
    name: str, actual: Codes, expected: Codes, *, embeddings: Floats, embedding_error: Floats, codebooks: Floats
) -> CodeParity:
    """Compare codes `[tokens, levels]` with the expected ones.

    Args:
        embeddings: `[tokens, dim]`, from which `expected` was computed.
        embedding_error: `[tokens]`, distance between these and the embeddings of `actual`.
        codebooks: `[levels, entries, dim]`.

    Raises:
        ShapeDisagreementError: The shapes differ.
    """
    _require_shape(name, actual, expected)
    differs = actual != expected
    ratios = []
    for token in np.flatnonzero(differs.any(axis=1)):
        level = int(differs[token].argmax())
        residual, spent = _residual(embeddings[token], codebooks, expected[token, :level])
        candidates = codebooks[level][[actual[token, level], expected[token, level]]].astype(np.float64)
        ratios.append(gap_to_bound(residual, candidates, float(embedding_error[token]) + spent))
    ties = sum(ratio <= 1 for ratio in ratios)
    return CodeParity(
        name,
        equal=int((~differs).sum()),
        compared=differs.size,
        ties=ties,
        splits=len(ratios) - ties,
        gap_to_bound=max(ratios, default=0.0),
    )


def gap_to_bound(residual: Floats, candidates: Floats, residual_error: float) -> float:
    """Return the difference of two candidates' distances, relative to what rounding can explain; at most 1 is a tie.

    The quantizer compares D(c) = |c|^2 - 2 x.c. In float32 each D has an error of about 4 sqrt(dim) u (|c|^2 +
    2 |x||c|). An error e of x changes the difference of two D by at most 2 e |c1 - c2|.

    Args:
        residual: x, `[dim]`.
        candidates: c1 and c2, `[2, dim]`.
        residual_error: e.
    """
    distances = np.square(candidates).sum(axis=1) - 2 * candidates @ residual
    norms = np.linalg.norm(candidates, axis=1)
    sizes = norms**2 + 2 * np.linalg.norm(residual) * norms
    rounding = LIKELY_ROUNDOFFS * math.sqrt(len(residual)) * UNIT_ROUNDOFF * float(sizes.sum())
    moved = 2 * residual_error * float(np.linalg.norm(candidates[0] - candidates[1]))
    return float(abs(distances[0] - distances[1])) / (rounding + moved)


def _residual(embedding: Floats, codebooks: Floats, prefix: Codes) -> tuple[Floats, float]:
    """Return the residual after the entries of `prefix`, and the largest error of its float32 subtractions."""
    residual = embedding.astype(np.float64)
    error = 0.0
    for level, code in enumerate(prefix):
        residual = residual - codebooks[level, code]
        error += UNIT_ROUNDOFF * float(np.linalg.norm(residual))
    return residual, 2 * error  # both sides round


def _require_shape(name: str, actual: NDArray[Any], expected: NDArray[Any]) -> None:
    if actual.shape != expected.shape:
        raise ShapeDisagreementError(f"{name}: ours is {actual.shape}, the official one {expected.shape}")
