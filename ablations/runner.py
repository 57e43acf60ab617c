"""The runs of a study, each in its process: what is done is not repeated, what fails does not stop the rest."""

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
from datamodules.workers.processes import fork_server, obey_signals

if TYPE_CHECKING:
    # Where processes can only be spawned, as on Windows, there are no such classes.
    from multiprocessing.context import ForkServerContext, ForkServerProcess

# Imported once in the server that the runs' processes are forked from: Lightning alone takes seconds.
_PRELOADED = ["ablations.run"]
# Exit code of a process that has written its reason.
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
    """What the runner tells while it works."""

    def started(self, task: Task) -> None:
        """A process begins with the run."""

    def progressed(self, task: Task, phase: str, step: int) -> None:
        """The run reports."""

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        """The run is done; `reason` says why it failed."""


@dataclass
class _Running:
    """connection: progress comes in; if it is closed at this end, the process ends itself. device: that it sees."""

    task: Task
    process: ForkServerProcess
    connection: Connection
    device: str | None
    started: float = field(default_factory=time.monotonic)


def run_tasks(tasks: Sequence[Task], *, jobs: int, display: RunsDisplay, devices: Sequence[str] = ()) -> dict[str, str]:
    """Runs every task that is not done, `jobs` at a time. Returns the reason of each failed run by its name.

    devices: CUDA devices as CUDA_VISIBLE_DEVICES names them; each run sees one, which no other has as long as
    there are as many as jobs. Empty: runs see what this process sees.
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
            heard = wait([one.connection for one in running])
            for one in [one for one in running if one.connection in heard]:
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
    """The first of the devices that the fewest use; None of none."""
    return min(devices, key=in_use.count, default=None)


def _start(context: ForkServerContext, task: Task, device: str | None) -> _Running:
    task.folder.mkdir(parents=True, exist_ok=True)
    # One pipe per run: a process that is killed in the middle of a message harms no other's.
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs, device), name=task.run.name)
    process.start()
    theirs.close()
    return _Running(task, process, ours, device)


def _relay(one: _Running, display: RunsDisplay) -> bool:
    """Passes one message on; False if the process has ended."""
    try:
        phase, step = one.connection.recv()
    except (EOFError, OSError):
        return False
    display.progressed(one.task, phase, step)
    return True


def _conclude(ended: _Running) -> str | None:
    """Why the process failed, None if it did not; also written into the run's folder."""
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
    """In the run's process."""
    # On SIGTERM or SIGUSR1 a run saves itself.
    obey_signals()
    if device is not None:
        # Before anything asks CUDA what there is; the server that this process is forked from never does.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # Ctrl-C reaches every process of the terminal; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()

    def tell(phase: str, step: int, _metrics: Mapping[str, float]) -> None:
        try:
            connection.send((phase, step))
        except OSError:
            os._exit(1)

    try:
        train_and_evaluate(task.run, task.folder, report=tell)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        write_json({"reason": reason, "traceback": traceback.format_exc()}, task.files.failed)
        raise SystemExit(_EXPLAINED) from None


def _die_with_parent(connection: Connection) -> None:
    # A killed parent closes its end; nobody else would stop this process then.
    try:
        connection.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
