"""Finds the bfloat16 convolutions that this processor computes wrongly: compares many small shapes with float32.

Run `python -m benchmarks.bfloat16_convolutions` on any machine. On a processor with AMX it shows the faults of oneDNN
(docs/bfloat16.md); with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 the same processor shows none.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from spectrostream.precision_check import TOLERANCE

FRAMES = 16


@dataclass(frozen=True)
class Shape:
    """A two-dimensional convolution and the size of its input; pairs are (time, frequency)."""

    features: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    bins: int
    frames: int = FRAMES

    def __str__(self) -> str:
        kernel, stride = (f"{pair[0]}x{pair[1]}" for pair in (self.kernel, self.stride))
        return f"{self.features} | {self.outputs} | {kernel} | {stride} | {self.padding[1]} | {self.frames}x{self.bins}"


def few_features(shape: Shape) -> bool:
    """Return True for the first fault: an even number of 2 to 14 features that fills tile rows with the kernel."""
    row = shape.features * shape.kernel[1]
    return shape.features < 16 and shape.features % 2 == 0 and row % 32 == 0 and row >= 64


def single_bin(shape: Shape) -> bool:
    """Return True for the second fault: a stride along frequency, and an output one bin wide.

    The exception is an even kernel on an unpadded input of its own width.
    """
    outputs = (shape.bins + 2 * shape.padding[1] - shape.kernel[1]) // shape.stride[1] + 1
    is_exact = shape.padding[1] == 0 and shape.bins == shape.kernel[1] and shape.kernel[1] % 2 == 0
    return shape.stride[1] > 1 and outputs == 1 and not is_exact


def few_positions(shape: Shape) -> bool:
    """Return True for the third fault: a 1x1 kernel on 2 to 4 positions."""
    return shape.kernel == (1, 1) and 2 <= shape.frames * shape.bins <= 4


KINDS = {"few features": few_features, "single bin": single_bin, "few positions": few_positions}


def kind_of(shape: Shape) -> str:
    """Return the name of the known fault of this shape; "" for none."""
    return next((name for name, is_of in KINDS.items() if is_of(shape)), "")


def swept() -> Iterator[Shape]:
    """Yield shapes around all known faults: few features with wide kernels, narrow inputs, few positions."""
    for features, width in itertools.product(
        (1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (1, 3, 4, 7, 8, 9, 12, 16, 20, 24, 32)
    ):
        yield Shape(features, 1, (1, width), (1, 1), (0, 0), width)
        yield Shape(features, 16, (3, width), (1, 1), (0, 0), width + 5)
    points = itertools.product((2, 4, 8, 16, 64, 256), (1, 16, 32), (1, 2, 3, 4, 5, 8), (1, 2))
    for features, outputs, frames, bins in points:
        yield Shape(features, outputs, (1, 1), (1, 1), (0, 0), bins, frames)
    narrow = itertools.product((8, 32, 128), ((4, 4), (3, 4), (3, 3), (3, 9)), (1, 2), (0, 1), (1, 2, 3, 4, 5))
    for features, kernel, stride, is_padded, bins in narrow:
        padding = (kernel[0] // 2, kernel[1] // 2 if kernel[1] % 2 else 1) if is_padded else (0, 0)
        if bins + 2 * padding[1] >= kernel[1]:
            yield Shape(features, features, kernel, (1, stride), padding, bins)
            yield Shape(features, features, kernel, (2, stride), padding, bins)


def relative_error(shape: Shape, repetitions: int = 3) -> float:
    """Return the largest relative error of bfloat16 against float32; infinity if a result is not finite."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, shape.features, shape.frames, shape.bins, generator=generator).bfloat16()
    weight = torch.randn(shape.outputs, shape.features, *shape.kernel, generator=generator).bfloat16()
    exact = F.conv2d(x.float(), weight.float(), None, shape.stride, shape.padding)
    errors = []
    for _ in range(repetitions):
        short = F.conv2d(x, weight, None, shape.stride, shape.padding).float()
        errors.append(float((short - exact).norm() / exact.norm()))
    return max(error if math.isfinite(error) else math.inf for error in errors)


def processor() -> str:
    """Return the processor, its units for bfloat16, oneDNN's limit and torch's version, in words."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "none")
    name = facts.get("model name", platform.processor())
    return f"{name} ({', '.join(units) or 'no units known'}), ONEDNN_MAX_CPU_ISA {limit}, torch {torch.__version__}"


def main(words: list[str] | None = None) -> None:
    """Run the command with these words, or with those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print the correct shapes too")
    arguments = parser.parse_args(words)
    print(processor())
    print("| features | outputs | kernel | stride | padding | input | relative error | known as |\n" + "|---" * 8 + "|")
    shapes = list(swept())
    wrong = 0
    for shape in shapes:
        error = relative_error(shape)
        is_wrong = error > TOLERANCE
        wrong += is_wrong
        if is_wrong or arguments.all:
            print(f"| {shape} | {error:.2g} | {kind_of(shape)} |")
    expected = sum(bool(kind_of(shape)) for shape in shapes)
    print(f"{wrong} of {len(shapes)} shapes are wrong; {expected} are of the kinds known from processors with AMX")


if __name__ == "__main__":
    main()
