"""Speed of full-size codecs with random weights against the official JAX implementation, side by side in one run.

    python -m benchmarks.codec_speed --seconds 10 --rounds 3

The input is one example of stereo noise. Everything is compiled and warmed up first. Each round times every operation
on one codec after the other, on the same processors with the same number of threads. Ratios are taken within a round;
the table shows their median. The official code runs in its own environment (`make bench-official` makes it); without
it the official rows are missing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.codec_rows import CODEC_ROWS, COMPILED, RELEASED
from benchmarks.matmul_peak import matmul_peaks
from benchmarks.official.client import OfficialWorker, OfficialWorkerError
from benchmarks.speed_table import Measured, step_table, throughput_table
from benchmarks.timed_codecs import OPERATIONS, LocalCodec, OfficialCodec, TimedCodec
from spectrostream.errors import UserError

OFFICIAL = "official (JAX)"
SEED = 0


def main() -> int:
    """Print Markdown; return the exit code."""
    arguments = _arguments()
    try:
        _share_processors(arguments.threads)
        with ExitStack() as stack:
            codecs = build_codecs(arguments, stack)
            peaks, times = take_turns(codecs, arguments.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_report(codecs, peaks, times, arguments))
    return 0


def build_codecs(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, TimedCodec]:
    """Return the chosen codecs by name, the official one first; print a note for each that cannot be built."""
    torch.manual_seed(SEED)
    audio = 0.1 * torch.randn(1, 2, round(arguments.seconds * 48000))
    codecs: dict[str, TimedCodec] = {}
    try:
        codecs[OFFICIAL] = _official(arguments.threads, audio, stack)
    except OfficialWorkerError as error:
        if arguments.require_official:
            raise
        print(f"The official rows are missing: {error}\n")
    for name in arguments.codecs:
        row = CODEC_ROWS[name]
        try:
            codecs[name] = LocalCodec(row.build(), audio, counts=row.arithmetic_of is None)
        except (UserError, ImportError) as error:
            print(f"{name} is missing: {error}\n")
    return codecs


def _official(threads: int, audio: Tensor, stack: ExitStack) -> TimedCodec:
    worker = stack.enter_context(OfficialWorker.start(threads=threads))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return OfficialCodec(worker, audio, folder, seed=SEED)


Times = dict[str, dict[str, list[float]]]


def take_turns(codecs: Mapping[str, TimedCodec], rounds: int) -> tuple[dict[str, float], Times]:
    """Time all codecs in turn.

    Returns:
        Precision -> the machine's best peak of all rounds, and codec -> operation -> seconds of each round.
    """
    times: Times = {name: {} for name in codecs}
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for precision, peak in matmul_peaks().items():
            peaks[precision] = max(peak, peaks.get(precision, 0.0))
        for operation in OPERATIONS:
            for name, codec in codecs.items():
                if operation in codec.operations:
                    times[name].setdefault(operation, []).append(codec.seconds(operation))
    return peaks, times


def _report(
    codecs: Mapping[str, TimedCodec], peaks: Mapping[str, float], times: Times, arguments: argparse.Namespace
) -> str:
    rows = {name: _measured(name, codecs, peaks, times) for name in codecs}
    reference = OFFICIAL if OFFICIAL in rows else next(iter(rows))
    giga = ", ".join(f"{precision} {peak / 1e9:.0f}" for precision, peak in peaks.items())
    return "\n".join(
        (
            f"torch {torch.__version__}, {arguments.threads} threads, {arguments.seconds:g} s stereo, "
            f"median of {arguments.rounds} rounds; peak of a 2048 matrix product, GFLOP/s: {giga}\n",
            throughput_table(rows, reference, arguments.seconds),
            step_table(rows, reference, arguments.seconds),
        )
    )


def _measured(name: str, codecs: Mapping[str, TimedCodec], peaks: Mapping[str, float], times: Times) -> Measured:
    row = CODEC_ROWS.get(name)  # None for the official codec: float32, the released layout
    counted_on = RELEASED if row is None else row.arithmetic_of or name
    return Measured(
        parameters=codecs[name].parameters,
        macs=codecs[counted_on].macs if counted_on in codecs else {},
        peak=peaks["float32" if row is None else row.precision],
        seconds=times[name],
    )


def _share_processors(threads: int) -> None:
    """Give this process and its worker as many processors as threads, where the system allows it."""
    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(threads)
        return
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise UserError(f"--threads {threads} is not possible here; allowed: 1..{len(allowed)}")
    os.sched_setaffinity(0, allowed[:threads])
    torch.set_num_threads(threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=_positive, default=10.0, help="of audio in each call")
    parser.add_argument("--rounds", type=_count, default=3, help="times that each codec is timed")
    parser.add_argument("--threads", type=_count, default=min(2, os.cpu_count() or 1), help="of each implementation")
    parser.add_argument(
        "--codecs",
        nargs="+",
        choices=CODEC_ROWS,
        default=[name for name in CODEC_ROWS if name != COMPILED],
        help="the codecs beside the official one",
    )
    parser.add_argument("--require-official", action="store_true", help="fail without the official environment")
    return parser.parse_args()


def _positive(text: str) -> float:
    value = float(text)
    if not 0.2 <= value <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: 0.2..600")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
