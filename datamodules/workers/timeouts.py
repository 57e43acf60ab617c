"""Calls that are given up when they take too long, so that a hanging disk or server does not stop a training."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import soundfile

# glibc counts no more than 32 MB.
_LARGEST_KEPT_BLOCK = 2**25 - 2**16

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class _Helper:
    """A thread that does one job after the other; it ends with the process even if a job never does."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # When the last job began, on the monotonic clock.
        self._began = 0.0
        _keep_freed_memory()
        threading.Thread(target=self._work, name="patient-reader", daemon=True).start()

    def add(self, jobs: Sequence[Callable[[], T]]) -> list[Future[T]]:
        self._began = time.monotonic()
        futures: list[Future[T]] = [Future() for _ in jobs]
        for work in zip(jobs, futures, strict=True):
            self._jobs.put(work)
        return futures

    def wait(self, last: Future[Any], seconds: float) -> None:
        """Wait until the last job is done, or until a job takes longer than `seconds`."""
        while True:
            began = self._began
            try:
                last.exception(timeout=max(began + seconds - time.monotonic(), 0))
            except TimeoutError:
                if self._began != began:
                    continue
            return

    def give_up(self) -> None:
        """Leave the thread to the job that hangs; it ends after that."""
        self._jobs.put(None)
        _forget()
        # soundfile opens one file at a time, under a lock that a hanging open keeps. Without a new one, every file of
        # this process would hang from now on.
        soundfile.SoundFile._sf_error_lock = threading.Lock()

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, future = work
            self._began = time.monotonic()
            if future.set_running_or_notify_cancel():
                _do(job, future)


def _do(job: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)


def _keep_freed_memory() -> None:
    """Let glibc keep up to 64 MB of freed memory; it does so after a large block was freed once.

    Otherwise it returns the memory of each batch to the kernel, above all in threads. To get it again costs up to a
    fifth of the time that reading the crops takes.
    """
    np.empty(_LARGEST_KEPT_BLOCK, np.uint8)


# One for each thread that waits.
_helpers = threading.local()


def _forget() -> None:
    _helpers.helper = None


if hasattr(os, "register_at_fork"):
    # A forked process does not have the threads of its parent.
    os.register_at_fork(after_in_child=_forget)


def within(seconds: float | None, job: Callable[[], T]) -> T:
    """Return what the job returns, or raise what it raises.

    A job that is given up continues in the background, because nothing can stop a read. The next job gets a new thread.

    Args:
        seconds: How long to wait; None does the job in this thread and waits for ever.
        job: Does the work.

    Raises:
        TimeoutError: It takes longer.
    """
    return next(each_within(seconds, [job])).result()


def each_within(seconds: float | None, jobs: Sequence[Callable[[], T]]) -> Iterator[Future[T]]:
    """Do one job after the other like `within`, and yield the finished outcomes in order.

    A thread does all jobs and wakes this thread once, because waking costs a tenth of a millisecond. If a job
    hangs, the next ones begin when its outcome was taken.
    """
    begun = 0
    while begun < len(jobs):
        for outcome in _until_one_hangs(seconds, jobs[begun:]):
            begun += 1
            yield outcome


def _until_one_hangs(seconds: float | None, jobs: Sequence[Callable[[], T]]) -> Iterator[Future[T]]:
    """Yield the outcomes of the jobs, up to the first that takes longer than `seconds`."""
    if seconds is None:
        for job in jobs:
            future: Future[T] = Future()
            _do(job, future)
            yield future
        return
    helper = getattr(_helpers, "helper", None)
    if helper is None:
        helper = _helpers.helper = _Helper()
    futures = helper.add(jobs)
    try:
        helper.wait(futures[-1], seconds)
    finally:  # also after Ctrl-C: the next job must not wait for these
        # From the last on, so that no job begins meanwhile. Jobs that were not begun are tried again.
        running = [future for future in reversed(futures) if not (future.done() or future.cancel())]
        if running:
            helper.give_up()
    yield from itertools.takewhile(lambda future: future not in running and not future.cancelled(), futures)
    if running:
        hanging: Future[T] = Future()
        hanging.set_exception(TimeoutError(f"took longer than {seconds:g} s"))
        yield hanging
