"""Loads the codec that the options choose, ready to encode and decode."""

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
    """A codec for inference."""

    codec: SpectroStream
    fingerprint: bytes
    """The fingerprint of the trained codec, before its layers were converted for inference."""
    weights: str
    """The value of `--weights`."""


def load_codec(arguments: argparse.Namespace) -> LoadedCodec:
    """Load the codec of `--weights`, `--precision` and `--compile`.

    Raises:
        UserError: The weights cannot be loaded, or there is no compiler.
    """
    if arguments.compile:
        _require_compiler()
    from spectrostream.weights import codec_fingerprint, load_pretrained

    trained = load_pretrained(arguments.weights)
    # The layers for inference have other names, which would give another fingerprint.
    fingerprint = codec_fingerprint(trained)
    fast = trained.for_inference(precision=arguments.precision, compile=arguments.compile)
    return LoadedCodec(fast, fingerprint, arguments.weights)


def chosen_levels(codec: SpectroStream, arguments: argparse.Namespace) -> int:
    """Return the levels that `--kbps` or `--levels` means for this codec; see `levels_of`."""
    return levels_of(arguments, kbps_per_level=codec.kbps(1), most=codec.levels, holder="this codec")


def levels_of(arguments: argparse.Namespace, *, kbps_per_level: float, most: int, holder: str) -> int:
    """Return `--levels`, or the most levels within `--kbps`, or `most` if neither is given.

    Args:
        arguments: With `kbps` and `levels`.
        kbps_per_level: Rate of one level.
        most: The largest number of levels.
        holder: What has these levels, for the message.

    Raises:
        UserError: The number is not in 1..most.
    """
    kbps, levels = arguments.kbps, arguments.levels
    if kbps is not None:
        # Round down, so that the rate is never exceeded. Infinity and NaN choose 0, which is an error.
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
    """Return a note about a precision that changes results; "" for float32."""
    return "" if arguments.precision == "float32" else f"; {what} in {arguments.precision}"


def _require_compiler() -> None:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if not any(shutil.which(name) for name in names):
        raise UserError(f"--compile needs a C++ compiler ({', '.join(names)}); install one, or leave --compile out")
