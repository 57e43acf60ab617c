"""Processes that read audio for this one, because damaged files can crash C code and reads may never return.

Neither a thread nor an exception helps against those; a process can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, TypeVar

import torch
from pebble import ProcessPool

from spectrostream.errors import UserError

if TYPE_CHECKING:
    # Windows, where processes can only be spawned, does not have the first.
    from multiprocessing.context import ForkServerContext, SpawnContext

J = TypeVar("J")
R = TypeVar("R")


class WorkersError(UserError):
    """The processes cannot start, or end again and again."""


@contextmanager
def worker_processes(workers: int, module: str) -> Iterator[ProcessPool]:
    """Start a pool of processes, which end with the context and with this process, however it ends.

    Args:
        workers: Number of processes.
        module: Imported once for all of them, if the system allows it.

    Raises:
        WorkersError: They end before they begin.
    """
    context = worker_context(module)
    _wait_for_imports(context)
    lifeline = Lifeline(context)
    pool = ProcessPool(max_workers=workers, initializer=_begin, initargs=[lifeline.end], context=context)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkersError(
            f"The worker processes end before they begin ({error}); is there enough memory? "
            "What is done is kept: type the same again, with fewer --workers"
        ) from error
    finally:
        pool.stop()
        pool.join()
        lifeline.let_go()


def outcomes(jobs: deque[J], schedule: Callable[[J], Future[R]], most_running: int) -> Iterator[tuple[J, Future[R]]]:
    """Run the jobs, some at a time, and yield each with its finished future, in the order in which they end.

    Args:
        jobs: Emptied from the left; the caller may put a job back.
        schedule: Starts a job.
        most_running: Number of jobs that are scheduled at a time.
    """
    running: dict[Future[R], J] = {}
    while jobs or running:
        while jobs and len(running) < most_running:
            job = jobs.popleft()
            running[schedule(job)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def worker_context(module: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes start in milliseconds, from a server that has imported `module`.

    Without a fork server they are spawned. They are never forked from this process, because its threads and locks may
    be in any state.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    return fork_server([module])


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """Return a context that forks processes from a server that has imported `modules`.

    Signals to a whole job do not end them: Ctrl-C reaches neither the server nor them, and SIGTERM and SIGUSR1 reach
    only those that call `accept_signals`. So they need another way to end with this process, see `Lifeline`. A server
    that runs already is used as it is, with its own imports and signals.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    # A batch system signals every process of a job. Without the server its processes seem to have ended, and without
    # the resource tracker their semaphores are unknown. A started process inherits the blocked signals.
    with _blocked(signal.SIGUSR1):
        # The tracker ignores the other two itself. Its start also unblocks them in this process, so it comes first.
        resource_tracker.ensure_running()
    # Ctrl-C during the server's imports, which take seconds, would also print a traceback.
    with _blocked(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        forkserver.ensure_running()
    return context


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block these signals until the end of the context, and for ever in a process that is started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def accept_signals() -> None:
    """Unblock SIGTERM and SIGUSR1 in a process of `fork_server`, also those that wait; call it before threads start."""
    if hasattr(signal, "pthread_sigmask"):  # spawned processes on Windows block nothing
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})


def _wait_for_imports(context: ForkServerContext | SpawnContext) -> None:
    """Wait until the server, if there is one, has started a process, so its imports are done."""
    if context.get_start_method() == "forkserver":
        # It does nothing, so it also ends quietly if this process is interrupted meanwhile.
        first = context.Process()
        first.start()
        first.join()


class Lifeline:
    """A pipe that ends other processes together with this one: they watch its `end`, see `end_with`.

    This process closes it before it waits for its remaining processes, and a kill closes it too. The system does not
    tell the processes of a fork server that this process has ended, because their parent is the server.
    """

    def __init__(self, context: BaseContext) -> None:
        self.end, ours = context.Pipe(duplex=False)
        # A priority makes multiprocessing call it before it waits for its processes.
        self.let_go = util.Finalize(self, ours.close, exitpriority=0)


def end_with(lifeline: Connection) -> None:
    """End this process when the lifeline is closed, whatever it is doing then."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _begin(lifeline: Connection) -> None:
    # SIGTERM is how the pool ends a process.
    accept_signals()
    # Ctrl-C goes to all processes of a terminal; the main process ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # The MP3 decoder writes notes about damaged files to stderr, into the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end_with(lifeline)
