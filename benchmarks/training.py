"""Measures speed and memory of whole training steps: data, both turns, both updates; also DAC with its own recipe.

    python -m benchmarks.training
    python -m benchmarks.training --configs tiny --devices 1,2 --strategy averaging,find_unused

The music is the demo corpus, decoded beforehand. The discriminator trains from the first update, and the codebooks are
initialised. Every row uses the same seconds of music per step, in crops about as long as its configuration has them.
Each round measures all rows, each in its own process with a warm-up. Ratios are taken within a round; the table shows
their median. The quantizer's share (from hooks that wait for the device) and the operations of a step are measured in
one more process per row. "processors" are those that the first process used on average: if they are fewer than
--threads, other programs ran too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ablations.compose import load_experiment
from ablations.provenance import write_json
from benchmarks.matmul_peak import RUNS, SIZE, matmul_peaks
from benchmarks.training_case import STRATEGIES, TrainingCase
from benchmarks.training_table import Numbers, TrainingRow, title, training_table
from benchmarks.training_watch import now
from lightning_modules.trainer_config import PRECISIONS
from spectrostream.errors import UserError

_PRODUCTS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class TrainingBenchmarkError(UserError):
    """Options that are not possible on this machine."""


def main() -> int:
    """Print Markdown; return the exit code."""
    arguments = _parser().parse_args()
    try:
        rows = [TrainingRow(case, _kind(case.config)) for case in cases(arguments)]
        take_turns(rows, arguments.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_heading(arguments, rows))
    print(training_table(rows))
    write_json(report(rows), arguments.out)
    print(f"All numbers of all rounds: {arguments.out}")
    return 0 if all(turn is not None for row in rows for turn in row.turns) else 1


def cases(arguments: argparse.Namespace) -> list[TrainingCase]:
    """Return a case for each configuration, compilation switch, number of processes and strategy.

    Raises:
        UserError: A case is not possible.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else None
    if available is not None and max(arguments.devices) > available:
        given = f"--devices {','.join(map(str, arguments.devices))}"
        raise TrainingBenchmarkError(f"{given} is not possible here; allowed: 1..{available}")
    found = []
    for config, compiled, devices in itertools.product(arguments.configs, arguments.compile, arguments.devices):
        for strategy in arguments.strategy if devices > 1 else STRATEGIES[:1]:
            case = TrainingCase(
                config=config,
                batch_seconds=arguments.batch_seconds,
                precision=arguments.precision,
                compile=compiled,
                channels_last=arguments.channels_last,
                devices=devices,
                strategy=strategy,
                threads=arguments.threads,
                workers=arguments.workers,
                warm_up=arguments.warm_up,
                steps=arguments.steps,
            )
            case.experiment()  # a mistake is an error before the first measurement
            found.append(case)
    return found


def _kind(config: str) -> str:
    return load_experiment(config).model.kind


def take_turns(rows: Sequence[TrainingRow], rounds: int) -> None:
    """Measure every row; a failed measurement is reported and missing."""
    peaks: dict[tuple[str, int], float] = {}
    for round_ in range(rounds):
        for execution in {(row.case.precision, row.case.threads) for row in rows}:
            peaks[execution] = max(matrix_rate(*execution), peaks.get(execution, 0.0))
        for row in rows:
            row.peak = peaks[row.case.precision, row.case.threads]
            _say(f"round {round_ + 1} of {rounds}: {title(row.case)}")
            row.turns.append(turn("speed", row.case))
    profiles: dict[TrainingCase, Numbers | None] = {}
    for row in rows:
        # These change neither operations nor shares.
        case = dataclasses.replace(row.case, compile=False, devices=1, strategy=STRATEGIES[0])
        if case not in profiles:
            _say(f"quantizer and operations: {title(case)}")
            profiles[case] = turn("profile", case)
        row.profile = profiles[case]


def turn(what: str, case: TrainingCase) -> Numbers | None:
    """Run `benchmarks.training_turn` in a new process; if it fails, print the reason and return None."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [what, json.dumps(dataclasses.asdict(case)), str(result)]
        command = [sys.executable, "-m", "benchmarks.training_turn", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            measured: dict[str, float] = json.loads(result.read_text())
            return measured
    said = ended.stderr.strip().splitlines()
    _say(f"{title(case)} is missing ({what}): code {ended.returncode}, {said[-1] if said else 'no message'}")
    return None


def matrix_rate(precision: str, threads: int) -> float:
    """Return the operations per second of a square matrix product, on the GPU if there is one; the best of a few."""
    if threads:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return matmul_peaks()["float32" if precision == "32-true" else "bfloat16"]
    left, right = torch.randn(2, SIZE, SIZE, device="cuda", dtype=_PRODUCTS[precision])
    return 2 * SIZE**3 / min(_seconds(lambda: left @ right) for _ in range(10 * RUNS))


def _seconds(product: Callable[[], object], calls: int = 20) -> float:
    """Return the mean time of many calls; on a GPU, one call takes less time than its launch."""
    product()
    start = now()
    for _ in range(calls):
        product()
    return (now() - start) / calls


def report(rows: Iterable[TrainingRow]) -> dict[str, object]:
    """Return all measurements for the JSON file."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "rows": [{**dataclasses.asdict(row), "title": title(row.case), "medians": row.numbers()} for row in rows],
    }


def _heading(arguments: argparse.Namespace, rows: Sequence[TrainingRow]) -> str:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {arguments.threads} threads"
    peak = max(row.peak for row in rows) / 1e9
    return (
        f"torch {torch.__version__}, {where}; {arguments.batch_seconds:g} s of stereo per step and process; median of "
        f"{arguments.rounds} rounds of {arguments.steps} steps after {arguments.warm_up}; a {SIZE} matrix product "
        f"in this precision: {peak:.0f} GFLOP/s\n"
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--configs", type=_words, default=["tiny", "small", "paper", "dac"], help="shipped names or paths")
    add("--batch-seconds", type=_seconds_of_music, default=40.96 if has_gpu else 1.28, help="per step and process")
    add("--precision", choices=PRECISIONS, default="bf16-mixed" if has_gpu else "32-true")
    add("--compile", type=_switches, default=[False, True] if has_gpu else [False], help="off, on, or off,on")
    add("--channels-last", action="store_true")
    add("--devices", type=_counts, default=[1], help="numbers of processes, for instance 1,2")
    add("--strategy", type=_strategies, default=[STRATEGIES[0]], help=f"of several processes: {','.join(STRATEGIES)}")
    add("--steps", type=_count, default=20 if has_gpu else 2, help="timed steps of each turn")
    add("--warm-up", type=_count, default=10 if has_gpu else 1, help="steps before the timed ones")
    add("--rounds", type=_count, default=3, help="times that every row is measured")
    add("--threads", type=_count, default=min(2, os.cpu_count() or 1), help="of each process")
    add("--workers", type=int, default=4 if has_gpu else 0, help="processes that read music, of each process")
    add("--out", type=Path, default=Path("runs/benchmarks/training.json"), help="every number of every round")
    return parser


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: 1 or more")
    return value


def _counts(text: str) -> list[int]:
    return [_count(word) for word in _words(text)]


def _seconds_of_music(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: 0.1..600")
    return value


def _switches(text: str) -> list[bool]:
    switches = {"off": False, "on": True}
    if not _words(text) or not set(_words(text)) <= switches.keys():
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: off, on, or off,on")
    return [switches[word] for word in _words(text)]


def _strategies(text: str) -> list[str]:
    if not _words(text) or not set(_words(text)) <= set(STRATEGIES):
        raise argparse.ArgumentTypeError(f"{text} is not possible; allowed: {','.join(STRATEGIES)}")
    return _words(text)


if __name__ == "__main__":
    sys.exit(main())
