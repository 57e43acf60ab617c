"""Processes that read audio for this one: C code that meets damaged files, and reads that may never return.

Neither a thread nor an exception helps against those; a process can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext

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
    pool = ProcessPool(max_workers=workers, initializer=_begin, context=worker_context(module))
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


def worker_context(module: str) -> BaseContext:
    """Processes that start in milliseconds, from one that has imported `module`, where there is such a thing.

    None is a copy of this process, whose threads and locks a copy would find in any state.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _begin() -> None:
    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # The MP3 decoder writes notes about damaged files there, through the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    end_with_parent()


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does.

    A process that was killed cannot end its helpers: one that hangs in a read or waits for its next job would stay for
    ever. Those of a fork server cannot see it by themselves, since their parent in the system's eyes is the server.
    """
    threading.Thread(target=_wait_for_parent, name="end-with-parent", daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
