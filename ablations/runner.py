"""Runs the cells of a study in processes of their own: what is done is not repeated, what fails does not stop the rest."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Protocol

from ablations.cell import is_done, run_cell
from ablations.provenance import read_json, write_json
from ablations.study import Cell

# Imported once in the server that the cells' processes are forked from: Lightning alone takes seconds.
_PRELOADED = ["ablations.cell"]
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """A cell and its folder."""

    cell: Cell
    folder: Path


class Display(Protocol):
    """What the runner tells while it works."""

    def started(self, task: Task) -> None:
        """A process begins with the cell."""

    def progressed(self, task: Task, phase: str, step: int) -> None:
        """The cell reports."""

    def ended(self, task: Task, reason: str | None, seconds: float) -> None:
        """The cell is done; `reason` says why it failed."""


@dataclass
class _Running:
    task: Task
    process: ForkServerProcess
    lifeline: Connection
    started: float = field(default_factory=time.monotonic)


def run_tasks(tasks: Sequence[Task], *, jobs: int, compared_at: int, display: Display) -> dict[str, str]:
    """Runs every task that is not done, `jobs` at a time. Returns the reason of each failed cell by its name."""
    waiting = [task for task in tasks if not is_done(task.folder, task.cell)]
    if not waiting:
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    messages: Any = context.Queue()
    running: list[_Running] = []
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                running.append(_start(context, task, compared_at, messages))
                display.started(task)
            _relay(messages, tasks, display)
            for ended in [one for one in running if not one.process.is_alive()]:
                running.remove(ended)
                reason = _conclude(ended)
                if reason is not None:
                    failures[ended.task.cell.name] = reason
                display.ended(ended.task, reason, time.monotonic() - ended.started)
    finally:
        for left in running:
            left.process.terminate()
            left.process.join()
    return failures


def _start(context: ForkServerContext, task: Task, compared_at: int, messages: Any) -> _Running:
    task.folder.mkdir(parents=True, exist_ok=True)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, compared_at, messages, reader), name=task.cell.name)
    process.start()
    reader.close()
    return _Running(task, process, writer)


def _relay(messages: Any, tasks: Sequence[Task], display: Display) -> None:
    by_name = {task.cell.name: task for task in tasks}
    try:
        name, phase, step = messages.get(timeout=_POLL_SECONDS)
        while True:
            display.progressed(by_name[name], phase, step)
            name, phase, step = messages.get_nowait()
    except queue.Empty:
        return


def _conclude(ended: _Running) -> str | None:
    """Why the process failed, None if it did not; also written into the cell's folder."""
    ended.process.join()
    ended.lifeline.close()
    if ended.process.exitcode == 0:
        return None
    path = ended.task.folder / "failed.json"
    failed = read_json(path)
    if failed is None:
        code = ended.process.exitcode
        reason = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        write_json({"reason": reason, "traceback": ""}, path)
        return reason
    return str(failed["reason"])


def _work(task: Task, compared_at: int, messages: Any, lifeline: Connection) -> None:
    """In the cell's process."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    tell: Callable[[str, int], None] = lambda phase, step: messages.put((task.cell.name, phase, step))  # noqa: E731
    try:
        run_cell(task.cell, task.folder, compared_at=compared_at, report=tell)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        write_json({"reason": reason, "traceback": traceback.format_exc()}, task.folder / "failed.json")
        messages.close()
        messages.join_thread()
        raise SystemExit(1) from None


def _die_with_parent(lifeline: Connection) -> None:
    # A killed parent closes its end; nobody else would stop this process then.
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
