"""Processes that read audio for this one: C code that meets damaged files, and reads that may never return.

Neither a thread nor an exception helps against those; a process can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext

import torch
from pebble import ProcessPool

from spectrostream.errors import UserError


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


def worker_context(module: str) -> BaseContext:
    """Processes that start in milliseconds, from one that has imported `module`, where there is such a thing.

    None is a copy of this process, whose threads and locks a copy would find in any state.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    return fork_server([module])


def fork_server(modules: Sequence[str]) -> ForkServerContext:
    """Processes that are forked from one that has imported `modules`; Ctrl-C reaches neither it nor them.

    They must end with this process by other means. A server that runs already has imported what it was started with.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    # The imports take seconds, and Ctrl-C in the midst of them would be a traceback. A started process inherits which
    # signals are held back; the tracker of resources, which lets them through, must therefore be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _wait_for_imports(context: BaseContext) -> None:
    """Until the server, if there is one, has started a process, and so has imported what it was told to."""
    if isinstance(context, ForkServerContext):
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
    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # The MP3 decoder writes notes about damaged files there, through the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end_with(lifeline)
