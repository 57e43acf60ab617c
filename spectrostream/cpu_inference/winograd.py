"""Winograd's minimal filtering along time: four output frames of a three-tap convolution from six products, not twelve.

One token of the STFT codec is four frames, so a token is one tile, and a stream needs no other alignment. Frequency is
left alone: a second transform there would save more products but costs as much in memory traffic and ten times the
rounding error. (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308; the matrices by
the construction of Toom and Cook.)
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

TILE = 4
TAPS = 3
POINTS = TILE + TAPS - 1
# Five finite points and infinity. These keep the rounding error near that of a direct sum: 1.2e-6 of the peak with 128
# features, where the textbook's 0, 1, -1, 2, -2 give twice as much.
_INTERPOLATION = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))
# The point at 1 goes into all four outputs with the factor 1: a bias is added there once.
BIAS_POINT = _INTERPOLATION.index(Fraction(1))


def input_matrix() -> Tensor:
    """`[6, 6]`, float64: six input frames to six points."""
    rows = [_product_of([q for q in _INTERPOLATION if q != p]) for p in _INTERPOLATION]
    rows.append(_product_of(_INTERPOLATION))
    return _tensor([[*row, *[Fraction(0)] * (POINTS - len(row))] for row in rows])


def filter_matrix() -> Tensor:
    """`[6, 3]`, float64: three taps, oldest first, to six points."""
    rows = []
    for p in _INTERPOLATION:
        scale = Fraction(1)
        for q in _INTERPOLATION:
            scale *= p - q if q != p else 1
        rows.append([p**tap / scale for tap in range(TAPS)])
    return _tensor([*rows, _at_infinity(TAPS)])


def output_matrix() -> Tensor:
    """`[4, 6]`, float64: six points to four output frames."""
    return _tensor([*([p**frame for frame in range(TILE)] for p in _INTERPOLATION), _at_infinity(TILE)]).T.contiguous()


def _at_infinity(length: int) -> list[Fraction]:
    return [Fraction(0)] * (length - 1) + [Fraction(1)]


def _product_of(roots: list[Fraction] | tuple[Fraction, ...]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _tensor(rows: list[list[Fraction]]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
