"""Winograd's minimal filtering along time: six products, not twelve, for four output frames of a three-tap convolution.

One token of the STFT codec has four frames, so a token is one tile, and a stream needs no other alignment. There is no
transform along frequency: it would save more products, but cost as much in memory traffic and ten times the rounding
error. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. The matrices are
those of Toom and Cook.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

TILE = 4
TAPS = 3
POINTS = TILE + TAPS - 1
# The finite points; the sixth is infinity. Their rounding error is near that of a direct sum: 1.2e-6 of the peak with
# 128 features. The usual points 0, 1, -1, 2, -2 have twice that error.
_INTERPOLATION = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))
# The point 1 is in all four outputs with the factor 1, so a bias is added there once.
BIAS_POINT = _INTERPOLATION.index(Fraction(1))


def input_matrix() -> Tensor:
    """Return the matrix from six input frames to six points, float64 `[6, 6]`."""
    rows = [_product_of([q for q in _INTERPOLATION if q != p]) for p in _INTERPOLATION]
    rows.append(_product_of(_INTERPOLATION))
    return _tensor([[*row, *[Fraction(0)] * (POINTS - len(row))] for row in rows])


def filter_matrix() -> Tensor:
    """Return the matrix from three taps, oldest first, to six points, float64 `[6, 3]`."""
    rows = []
    for p in _INTERPOLATION:
        scale = Fraction(1)
        for q in _INTERPOLATION:
            scale *= p - q if q != p else 1
        rows.append([p**tap / scale for tap in range(TAPS)])
    return _tensor([*rows, _at_infinity(TAPS)])


def output_matrix() -> Tensor:
    """Return the matrix from six points to four output frames, float64 `[4, 6]`."""
    return _tensor([*([p**frame for frame in range(TILE)] for p in _INTERPOLATION), _at_infinity(TILE)]).T.contiguous()


def _at_infinity(length: int) -> list[Fraction]:
    return [Fraction(0)] * (length - 1) + [Fraction(1)]


def _product_of(roots: list[Fraction] | tuple[Fraction, ...]) -> list[Fraction]:
    """Return the coefficients of the polynomial with these roots, constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _tensor(rows: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
