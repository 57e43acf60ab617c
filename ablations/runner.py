"""Runs the runs of a study, each in its own process. Finished runs are skipped; a failed run does not stop the rest."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ablations.provenance import read_json, write_json
from ablations.run import is_done, train_and_evaluate
from ablations.run_folder import RunFolder
from ablations.study import Run
from datamodules.workers.processes import accept_signals, fork_server

if TYPE_CHECKING:
    # Windows has no such classes: processes can only be spawned there.
    from multiprocessing.context import ForkServerContext, ForkServerProcess

# The fork server imports it once for all runs: Lightning alone takes seconds.
_PRELOADED = ["ablations.run"]
# Exit code of a process that has written the reason of its failure.
_EXPLAINED = 3


@dataclass(frozen=True)
class Task:
    """A run and its folder."""

    run: Run
    folder: Path

    @property
    def files(self) -> RunFolder:
        """The files in the folder."""
        return RunFolder(self.folder)


class RunsDisplay(Protocol):
    """Shows the progress of the runs; the runner calls its methods."""

    def started(self, task: Task) -> None:
        """Show that a process starts the run."""

    def progressed(self, task: Task, phase: str, step: int) -> None:
        """Show the phase and the step of the run."""

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        """Show that the run has ended; `reason` says why it failed, None if it did not."""


@dataclass
class _Running:
    """A run and its process."""

    task: Task
    process: ForkServerProcess
    connection: Connection  # receives the progress; if this end is closed, the process ends itself
    device: str | None  # the CUDA device that the process sees
    started: float = field(default_factory=time.monotonic)


def run_tasks(tasks: Sequence[Task], *, jobs: int, display: RunsDisplay, devices: Sequence[str] = ()) -> dict[str, str]:
    """Run every task that is not done.

    Args:
        jobs: Runs at a time.
        devices: CUDA devices as CUDA_VISIBLE_DEVICES names them. Each run sees one; runs share a device only if there
            are more jobs than devices. If empty, runs see all devices of this process.

    Returns:
        Name of each failed run -> the reason.
    """
    waiting = [task for task in tasks if not is_done(task.folder, task.run)]
    context = fork_server(_PRELOADED)
    running: list[_Running] = []
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                device = least_used(devices, [one.device for one in running])
                running.append(_start(context, waiting.pop(0), device))
                display.started(running[-1].task)
            ready = wait([one.connection for one in running])
            for one in [one for one in running if one.connection in ready]:
                if _relay(one, display):
                    continue
                running.remove(one)
                reason = _conclude(one)
                if reason is not None:
                    failures[one.task.run.name] = reason
                display.ended(one.task, reason, time.monotonic() - one.started)
    finally:
        for left in running:
            left.connection.close()
            left.process.join()
    return failures


def least_used(devices: Sequence[str], in_use: Sequence[str | None]) -> str | None:
    """Return the first of the devices with the fewest runs; None if there are no devices."""
    return min(devices, key=in_use.count, default=None)


def _start(context: ForkServerContext, task: Task, device: str | None) -> _Running:
    task.folder.mkdir(parents=True, exist_ok=True)
    # One pipe per run: a process that is killed in the middle of a message breaks only its own pipe.
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs, device), name=task.run.name)
    process.start()
    theirs.close()
    return _Running(task, process, ours, device)


def _relay(one: _Running, display: RunsDisplay) -> bool:
    """Pass one message on; return False if the process has ended."""
    try:
        phase, step = one.connection.recv()
    except (EOFError, OSError):
        return False
    display.progressed(one.task, phase, step)
    return True


def _conclude(ended: _Running) -> str | None:
    """Return why the process failed, None if it did not; also write the reason into the run's folder."""
    ended.process.join()
    ended.connection.close()
    if is_done(ended.task.folder, ended.task.run):
        return None
    path = ended.task.files.failed
    code = ended.process.exitcode
    failed = read_json(path)
    if failed is None or code != _EXPLAINED:
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"ended early with exit code {code}"
        failed = {"reason": reason, "traceback": ""}
        write_json(failed, path)
    return str(failed["reason"])


def _work(task: Task, connection: Connection, device: str | None) -> None:
    """Train and evaluate in the run's process."""
    # On SIGTERM or SIGUSR1 the training saves a checkpoint and ends.
    accept_signals()
    if device is not None:
        # CUDA reads this variable at its first use. The fork server never uses CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # Ctrl-C reaches every process of the terminal; the parent ends the runs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()

    def send(phase: str, step: int, _metrics: Mapping[str, float]) -> None:
        try:
            connection.send((phase, step))
        except OSError:
            os._exit(1)

    try:
        train_and_evaluate(task.run, task.folder, report=send)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        write_json({"reason": reason, "traceback": traceback.format_exc()}, task.files.failed)
        raise SystemExit(_EXPLAINED) from None


def _end_with_parent(connection: Connection) -> None:
    # A killed parent closes its end of the pipe and cannot stop this process otherwise.
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
