"""Calls that are given up when they take too long, because a hanging disk or server must not stop what can go on."""

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

# glibc takes no more than 32 MB into account.
_LARGEST_KEPT_BLOCK = 2**25 - 2**16

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class _Helper:
    """A thread that does one job after the other; it ends with the process even when a job never does."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # When the last job began, on the monotonic clock.
        self._began = 0.0
        _keep_freed_memory()
        threading.Thread(target=self._work, name="patient-reader", daemon=True).start()

    def do(self, jobs: Sequence[Callable[[], T]]) -> list[Future[T]]:
        self._began = time.monotonic()
        futures: list[Future[T]] = [Future() for _ in jobs]
        for job, future in zip(jobs, futures, strict=True):
            self._jobs.put((job, future))
        return futures

    def wait(self, last: Future[Any], seconds: float) -> None:
        """Until the last of the jobs is done or one took longer than `seconds`."""
        while True:
            began = self._began
            try:
                last.exception(timeout=max(began + seconds - time.monotonic(), 0))
            except TimeoutError:
                if self._began != began:
                    continue
            return

    def dismiss(self) -> None:
        """Lets the thread end after its job."""
        self._jobs.put(None)

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
    """Lets glibc keep up to 64 MB that was freed, for which it needs to see a large block go once.

    Before that it returns what a batch of crops took to the kernel, above all in threads, and to get it anew costs as
    much as a fifth of reading the crops.
    """
    np.empty(_LARGEST_KEPT_BLOCK, np.uint8)


# One for each thread that waits.
_helpers = threading.local()


def _forget() -> None:
    _helpers.helper = None


if hasattr(os, "register_at_fork"):
    # The threads of the parent process are not there in a forked one.
    os.register_at_fork(after_in_child=_forget)


def within(seconds: float | None, job: Callable[[], T]) -> T:
    """What the job returns or raises; TimeoutError when that takes longer. None does the job here and waits for ever.

    The job that is given up goes on in the background, since nothing can stop a read; the next one gets a new thread.
    """
    return next(each_within(seconds, [job])).result()


def each_within(seconds: float | None, jobs: Sequence[Callable[[], T]]) -> Iterator[Future[T]]:
    """Like `within` for one job after the other: the outcomes in order, each of them there.

    A thread does all jobs and wakes this one once, because that costs a tenth of a millisecond. Where one hangs, those
    after it begin when its outcome was taken.
    """
    begun = 0
    while begun < len(jobs):
        for outcome in _until_one_hangs(seconds, jobs[begun:]):
            begun += 1
            yield outcome


def _until_one_hangs(seconds: float | None, jobs: Sequence[Callable[[], T]]) -> Iterator[Future[T]]:
    """Outcomes of the jobs, up to the first that takes longer than `seconds`."""
    if seconds is None:
        for job in jobs:
            future: Future[T] = Future()
            _do(job, future)
            yield future
        return
    helper = getattr(_helpers, "helper", None)
    if helper is None:
        helper = _helpers.helper = _Helper()
    futures = helper.do(jobs)
    try:
        helper.wait(futures[-1], seconds)
    except BaseException:  # Ctrl-C: nobody will take what is left, and the next job must not wait for it
        _left_running(futures)
        _give_up(helper)
        raise
    running = _left_running(futures)
    if running:
        _give_up(helper)
    yield from itertools.takewhile(lambda future: future not in running and not future.cancelled(), futures)
    if running:
        hanging: Future[T] = Future()
        hanging.set_exception(TimeoutError(f"took longer than {seconds:g} s"))
        yield hanging


def _left_running(futures: Sequence[Future[T]]) -> list[Future[T]]:
    """Cancels what was not begun, which is to blame for nothing; the job that runs, if one does."""
    # From the last on, so that none begins meanwhile.
    return [future for future in reversed(futures) if not (future.done() or future.cancel())]


def _give_up(helper: _Helper) -> None:
    """Leaves a thread that hangs to itself."""
    helper.dismiss()
    _helpers.helper = None
    # soundfile opens one file at a time, under a lock that a hanging open keeps: without a new one, every file of
    # this process would hang from now on.
    soundfile.SoundFile._sf_error_lock = threading.Lock()
