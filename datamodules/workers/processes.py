"""Processes that read audio for this one: C code that meets damaged files, and reads that may never return.

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
    # Where processes can only be spawned, as on Windows, the first is not there.
    from multiprocessing.context import ForkServerContext, SpawnContext


J = TypeVar("J")
R = TypeVar("R")


class WorkersError(UserError):
    """Processes that cannot even start, or end again and again."""


@contextmanager
def worker_processes(workers: int, module: str) -> Iterator[ProcessPool]:
    """So many processes, which end with the context and with this process, however that ends.

    module: imported once for all of them, where the system allows it.

    Raises:
        WorkersError: they end before they begin.
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
    """Schedules the jobs, some at a time, and gives each with its finished future, in the order of their ends.

    Args:
        jobs: emptied from the left; whoever takes an outcome may put a job back.
        schedule: starts a job.
        most_running: how many are scheduled at a time.
    """
    running: dict[Future[R], J] = {}
    while jobs or running:
        while jobs and len(running) < most_running:
            job = jobs.popleft()
            running[schedule(job)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future


def worker_context(module: str) -> ForkServerContext | SpawnContext:
    """Processes that start in milliseconds, from one that has imported `module`, where there is such a thing.

    None is a copy of this process, whose threads and locks a copy would find in any state.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    return fork_server([module])


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """Processes that are forked from one that has imported `modules`, and that signals to a whole job do not end.

    Ctrl-C reaches neither the server nor them; SIGTERM and SIGUSR1 reach those of them that call `obey_signals`. They
    must end with this process by other means. A server that runs already goes on as whoever started it did so: with
    those imports, and if that was not this function, open to those signals.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    # A batch system tells every process of a job to make room. Without the server its processes seem to have ended,
    # and without the tracker of resources their semaphores are unknown. A started process inherits what is held back.
    with _held_back(signal.SIGUSR1):
        # It ignores the other two by itself. It also lets them through in this process: it must be there before.
        resource_tracker.ensure_running()
    # Ctrl-C in the midst of the imports, which take seconds, would moreover be a traceback.
    with _held_back(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        forkserver.ensure_running()
    return context


@contextmanager
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """These signals wait until the end of the context; for good in a process that is started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_signals() -> None:
    """In a process of `fork_server`, before it starts threads: SIGTERM and SIGUSR1 come in, also those that waited."""
    if hasattr(signal, "pthread_sigmask"):  # a spawned process elsewhere holds nothing back
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})


def _wait_for_imports(context: ForkServerContext | SpawnContext) -> None:
    """Until the server, if there is one, has started a process, and so has imported what it was told to."""
    if context.get_start_method() == "forkserver":
        # One that is given nothing: should this process be interrupted meanwhile, it misses nothing and ends quietly.
        first = context.Process(target=_nothing)
        first.start()
        first.join()


def _nothing() -> None:
    pass


class Lifeline:
    """As long as this process has it, those may live that hold its other `end`: see `end_with`.

    It is let go of before the processes that are left at this one's end are waited for, and by a kill as well. The
    system itself tells none of those that a fork server started: their parent, to it, is the server.
    """

    def __init__(self, context: BaseContext) -> None:
        self.end, ours = context.Pipe(duplex=False)
        # multiprocessing's own: what is registered with a priority comes before it waits for its processes.
        self.let_go = util.Finalize(self, ours.close, exitpriority=0)


def end_with(lifeline: Connection) -> None:
    """From now on this process ends when the lifeline does, whatever it is doing."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _begin(lifeline: Connection) -> None:
    # SIGTERM is how the pool ends a process.
    obey_signals()
    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # The MP3 decoder writes notes about damaged files there, through the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end_with(lifeline)
