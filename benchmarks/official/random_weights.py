"""Seeded random weights for the official parameter tree, scaled so that signals live and codes mean something.

The official default initialisation of the codebooks is degenerate: every level would choose among equals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BIAS_STD = 0.05
# A spectrum of music has magnitudes of tens (an unscaled FFT of 960); the first convolution brings them to about one.
FIRST_GAIN = 0.1
# Keeps the variance through an ELU; the two branches of a residual block share it.
GAIN = 1.0


def draw_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """Kernels (HWIO) with a variance of gain^2 / inputs, small biases; path -> array, the same for the same seed.

    Every path has a generator of its own, so that a parameter does not depend on which others there are.
    """
    return {path: _draw(path, shape, seed) for path, shape in shapes.items()}


def _draw(path: str, shape: tuple[int, ...], seed: int) -> Array:
    generator = np.random.default_rng([seed, *path.encode()])
    noise = generator.standard_normal(shape, dtype=np.float32)
    if path.endswith("/bias"):
        return noise * np.float32(BIAS_STD)
    gain = FIRST_GAIN if "base_conv_first" in path else GAIN
    return noise * np.float32(gain / math.sqrt(_inputs(path, shape)))


def _inputs(path: str, shape: tuple[int, ...]) -> float:
    """How many products an output value sums. A transposed kernel of 2s (or 3, s = 1) meets each output k/s times."""
    height, width, inputs, _ = shape
    if "conv2dtranspose" in path:
        strides = [max(1, size // 2) if size > 3 else 1 for size in (height, width)]
        return height * width * inputs / math.prod(strides)
    return height * width * inputs


def draw_codebooks(shape: tuple[int, int, int], embeddings: Array, seed: int) -> Array:
    """Gaussian codebooks `[levels, entries, dim]` for `embeddings` `[tokens, dim]` in the encoder's scale.

    The best of n random directions has an inner product with a residual of m standard deviations, m the expected
    maximum of n normal variables. So an entry of that norm (against the residual's sqrt(dim)) is best, and takes
    m^2 / dim of its energy: the next level's entries are smaller by sqrt(1 - m^2 / dim). The first level is centred on
    the mean embedding.
    """
    levels, entries, dim = shape
    gain = min(expected_maximum(entries) ** 2 / dim, 0.9)
    scale = math.sqrt(gain) * (1 - gain) ** (np.arange(levels, dtype=np.float64) / 2)
    noise = np.random.default_rng([seed, levels]).standard_normal(shape, dtype=np.float32)
    mean, spread = embeddings.mean(axis=0), embeddings.std(axis=0)
    codebooks = noise * spread * scale[:, None, None].astype(np.float32)
    codebooks[0] += mean
    return codebooks.astype(np.float32)


def expected_maximum(n: int) -> float:
    """Of n >= 2 standard normal variables, asymptotically (the Gumbel limit of extreme value theory)."""
    scale = math.sqrt(2 * math.log(n))
    return scale - (math.log(math.log(n)) + math.log(4 * math.pi)) / (2 * scale) + np.euler_gamma / scale
