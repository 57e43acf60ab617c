"""Measures the machine's peak in each precision: square matrix products, two operations per multiply-accumulate."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

SIZE = 2048
RUNS = 3
PRECISIONS = ("float32", "bfloat16", "int8")


def matmul_peaks(size: int = SIZE, runs: int = RUNS) -> dict[str, float]:
    """Return precision -> operations per second of `[size, size] @ [size, size]`, the best of `runs`."""
    return {precision: 2 * size**3 / _best_seconds(_product(precision, size), runs) for precision in PRECISIONS}


def _product(precision: str, size: int) -> Callable[[], Tensor]:
    left, right = torch.randn(2, size, size, generator=torch.Generator().manual_seed(0))
    if precision == "int8":
        left8, right8 = (left * 20).to(torch.int8), (right * 20).to(torch.int8)
        return lambda: torch._int_mm(left8, right8)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = left.to(dtype), right.to(dtype)
    return lambda: left @ right


def _best_seconds(product: Callable[[], Tensor], runs: int) -> float:
    product()  # the first call chooses a kernel
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return best
