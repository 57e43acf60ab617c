"""The codec that the options ask for, ready to encode and decode."""

from __future__ import annotations

import argparse
import math
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from spectrostream.errors import UserError

if TYPE_CHECKING:
    from spectrostream.codec import SpectroStream

_COMPILERS = ("g++", "clang++", "c++", "cl")


class LoadedCodec(NamedTuple):
    """codec: for inference only. fingerprint: of the codec as it was trained. weights: what the user typed."""

    codec: SpectroStream
    fingerprint: bytes
    weights: str


def load_codec(arguments: argparse.Namespace) -> LoadedCodec:
    """From `--weights`, `--precision` and `--compile`. Raises UserError."""
    if arguments.compile:
        _require_compiler()
    from spectrostream.weights import codec_fingerprint, load_pretrained

    trained = load_pretrained(arguments.weights)
    # The layers of a codec for inference have other names, so it would have another fingerprint.
    fingerprint = codec_fingerprint(trained)
    fast = trained.for_inference(precision=arguments.precision, compile=arguments.compile)
    return LoadedCodec(fast, fingerprint, arguments.weights)


def chosen_levels(codec: SpectroStream, arguments: argparse.Namespace) -> int:
    """What `--kbps` or `--levels` means for this codec; UserError if it has not so many, or that is none."""
    return levels_of(arguments, kbps_per_level=codec.kbps(1), most=codec.levels, holder="this codec")


def levels_of(arguments: argparse.Namespace, *, kbps_per_level: float, most: int, holder: str) -> int:
    """`--levels`, or as many as stay within `--kbps`, or `most`. Raises UserError outside 1..most."""
    kbps, levels = arguments.kbps, arguments.levels
    if kbps is not None:
        # Never above the rate asked for; what is no number chooses none.
        levels = int(kbps / kbps_per_level + 1e-9) if math.isfinite(kbps) else 0
    chosen = most if levels is None else int(levels)
    if not 1 <= chosen <= most:
        given = f"--kbps {kbps:g}" if kbps is not None else f"--levels {levels}"
        raise UserError(
            f"{given} is not possible with {holder}; "
            f"allowed: --levels 1..{most} or --kbps {kbps_per_level:g}..{kbps_per_level * most:g}"
        )
    return chosen


def precision_note(arguments: argparse.Namespace, what: str) -> str:
    """A word about a precision that changes results; nothing about the usual one."""
    return "" if arguments.precision == "float32" else f"; {what} in {arguments.precision}"


def _require_compiler() -> None:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in names):
        raise UserError(f"--compile needs a C++ compiler ({', '.join(names)}); install one, or leave --compile out")
