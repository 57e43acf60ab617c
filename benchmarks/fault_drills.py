"""Tests real faults on small trainings: `python -m benchmarks.fault_drills` or `make drills`.

Each drill causes one fault, resumes the training, and compares its last checkpoint with that of an undisturbed run:
weights, optimizers and counters, bit for bit. The exit code is 1 if one differs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.drilled_run import CHECKPOINT_EVERY, STEPS
from lightning_modules.checkpoint_files import latest_valid_checkpoint, numbered_checkpoints, numbered_path
from lightning_modules.preemption import PreemptedError

COMPARED = ("state_dict", "optimizer_states", "global_step", "loops")
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """The exit code; -9 after SIGKILL."""
    said: str
    """The standard error."""
    seconds: float
    """Time from start to end."""


class DrillError(Exception):
    """A drill did not end as required."""


class Drills:
    """Runs drills in folders below `place`; an undisturbed run is made once for each number of processes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._undisturbed: dict[int, dict[str, Any]] = {}

    def kill(self, step: int) -> str:
        """Send SIGKILL in the middle of update `step`."""
        folder = self.place / f"kill-{step}"
        ended = start(folder, "--signal=KILL", f"--step={step}")
        _require(ended.code == -9, f"ended with {ended.code} instead of being killed: {ended.said}")
        found = latest_valid_checkpoint(folder / "checkpoints")
        return self._finish(folder, f"resumed from {found.name if found else 'the start'}")

    def terminate(self, signal_name: str, moment: str, devices: int) -> str:
        """Send SIGTERM or SIGUSR1 to the first process; require a checkpoint, exit code 75 and no process left."""
        folder = self.place / f"{signal_name}-{moment}-{devices}"
        step = 5 if moment == "update" else 3
        words = [f"--signal={signal_name}", f"--step={step}", f"--moment={moment}", f"--devices={devices}"]
        ended = start(folder, *words)
        _require(ended.code == PreemptedError.exit_code, f"ended with {ended.code}: {ended.said}")
        saved = numbered_checkpoints(folder / "checkpoints")[-1][0]
        expected = step if moment == "update" else step + 1
        _require(saved == expected, f"saved step {saved} instead of {expected}")
        _require(f"step {saved} of {STEPS}" in ended.said, f"did not say where it stopped: {ended.said}")
        _require(ended.said.count("error:") == 1, f"not exactly one process reported: {ended.said}")
        return self._finish(folder, f"exit code 75 at step {saved}", devices=devices)

    def lose_rank(self, rank: int) -> str:
        """Send SIGKILL to one of two processes; require that the other ends with an error."""
        folder = self.place / f"rank-{rank}"
        ended = start(folder, "--signal=KILL", "--step=5", f"--rank={rank}", "--devices=2")
        _require(ended.code != 0, "the run ended without an error")
        return self._finish(folder, f"all ended, code {ended.code}", devices=2)

    def damage(self, how: Callable[[Path], None]) -> str:
        """Damage the newest checkpoint of a killed run; require that it resumes from the one before."""
        folder = self.place / how.__name__
        start(folder, "--signal=KILL", "--step=7")
        how(numbered_path(folder / "checkpoints", 6))
        return self._finish(folder, "resumed from step 4", said="is damaged")

    def fill_disk(self) -> str:
        """Train on a disk with space for two checkpoints, then enlarge it and resume."""
        self.undisturbed(1)
        size = numbered_path(self.place / "undisturbed-1" / "checkpoints", STEPS).stat().st_size
        folder = self.place / "disk"
        with small_disk(folder / "checkpoints", int(2.5 * size)) as (limits, what, grow):
            ended = start(folder, limits=limits)
            _require(ended.code == 1, f"ended with {ended.code}: {ended.said}")
            _require("training goes on" in ended.said, f"no warning during the training: {ended.said}")
            _require("make room" in ended.said, f"no remedy: {ended.said}")
            left = [path.name for path in (folder / "checkpoints").iterdir() if "partial" in path.name]
            _require(not left, f"unfinished files are left: {left}")
            grow()
            return self._finish(folder, what)

    def undisturbed(self, devices: int) -> dict[str, Any]:
        """Return the final state of an undisturbed run with this number of processes."""
        if devices not in self._undisturbed:
            folder = self.place / f"undisturbed-{devices}"
            ended = start(folder, f"--devices={devices}")
            _require(ended.code == 0, f"the undisturbed run failed: {ended.said}")
            self._undisturbed[devices] = final_state(folder)
        return self._undisturbed[devices]

    def _finish(self, folder: Path, outcome: str, *, devices: int = 1, said: str = "") -> str:
        """Resume in `folder` to the end; require the state of the undisturbed run, and the message `said`."""
        ended = start(folder, f"--devices={devices}")
        _require(ended.code == 0, f"could not resume: {ended.said}")
        _require(said in ended.said, f"did not say {said!r}: {ended.said}")
        difference = first_difference(final_state(folder), self.undisturbed(devices))
        _require(difference is None, f"{difference} differs from the undisturbed run")
        return outcome


def truncate(path: Path) -> None:
    """Remove the last byte of a file."""
    os.truncate(path, path.stat().st_size - 1)


def flip_bits(path: Path) -> None:
    """Flip bits of one byte in the middle; torch would load such a file without an error."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x41
    path.write_bytes(content)


def start(folder: Path, *words: str, limits: Callable[[], None] | None = None) -> Ended:
    """Run the small training to its end.

    Args:
        folder: The run's folder.
        words: Options of `benchmarks.drilled_run`.
        limits: Called in the new process before it starts.

    Raises:
        DrillError: The training hangs, or leaves processes behind.
    """
    command = [sys.executable, "-m", "benchmarks.drilled_run", str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_LIMIT_SECONDS,
            preexec_fn=limits,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DrillError(f"hung for {_LIMIT_SECONDS} s: {' '.join(words)}") from error
    _require(not survivors(folder), f"processes outlived the run: {survivors(folder)}")
    return Ended(done.returncode, done.stderr, time.monotonic() - began)


def survivors(folder: Path, *, within_seconds: float = 5.0) -> list[int]:
    """Return the ids of processes that still train in `folder` after a while; reads /proc."""
    deadline = time.monotonic() + within_seconds
    while (found := _training_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _training_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"benchmarks.drilled_run" in words and str(folder).encode() in words:
            found.append(int(entry.parent.name))
    return found


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[Callable[[], None] | None, str, Callable[[], None]]]:
    """Mount a disk of `size` bytes at `folder`; without the right to mount, limit the size of files instead.

    Yields:
        A function that limits a new process (or None), the name of the disk, and a function that frees space.
    """
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            grow = ["mount", "-o", "remount,size=64m", str(folder)]
            yield None, "full tmpfs, then grown", lambda: subprocess.run(grow, check=True) and None
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        limits = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 5, resource.RLIM_INFINITY))  # noqa: E731
        yield limits, "file size limit (no tmpfs could be mounted)", lambda: None


def final_state(folder: Path) -> dict[str, Any]:
    """Return the compared parts of the last checkpoint."""
    content = torch.load(numbered_path(folder / "checkpoints", STEPS), weights_only=True)
    return {key: content[key] for key in COMPARED}


def first_difference(one: Any, other: Any, name: str = "") -> str | None:
    """Return the place of the first differing bit of two states; None if they are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else name
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(one[key], other[key], f"{name}.{key}") for key in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(a, b, f"{name}[{index}]") for index, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if type(one) is type(other) and one == other else name
    return next((found for pair in pairs if (found := first_difference(*pair)) is not None), None)


def all_drills(drills: Drills) -> list[tuple[str, Callable[[], str]]]:
    """Return the name and the function of every drill."""
    listed: list[tuple[str, Callable[[], str]]] = []
    for step in (1, CHECKPOINT_EVERY, CHECKPOINT_EVERY + 1, 5, STEPS):
        listed.append((f"kill -9 in update {step}", lambda step=step: drills.kill(step)))
    listed += [
        ("SIGTERM in an update", lambda: drills.terminate("TERM", "update", 1)),
        ("SIGUSR1 in an update", lambda: drills.terminate("USR1", "update", 1)),
        ("SIGTERM in a validation", lambda: drills.terminate("TERM", "validation", 1)),
        ("SIGTERM to the first of two processes", lambda: drills.terminate("TERM", "update", 2)),
        ("kill -9 of the first of two processes", lambda: drills.lose_rank(0)),
        ("kill -9 of the second of two processes", lambda: drills.lose_rank(1)),
        ("newest checkpoint truncated", lambda: drills.damage(truncate)),
        ("newest checkpoint with flipped bits", lambda: drills.damage(flip_bits)),
        ("full disk", drills.fill_disk),
    ]
    return listed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each drill; return 0 if all ended as required."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="the drills whose names contain these words")
    given = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="fault-drills-") as place:
        for name, drill in all_drills(Drills(Path(place))):
            if given.only not in name:
                continue
            began = time.monotonic()
            try:
                verdict = f"same bits; {drill()}"
            except DrillError as error:
                verdict, failed = f"FAILED: {error}", failed + 1
            print(f"{name:40s} {time.monotonic() - began:5.0f} s  {verdict}", flush=True)
    return min(failed, 1)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise DrillError(problem)


if __name__ == "__main__":
    sys.exit(main())
