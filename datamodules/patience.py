"""Calls that are given up when they take too long, because a hanging disk or server must not stop what can go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import soundfile

T = TypeVar("T")
_Job = tuple[Callable[[], Any], "Future[Any]"]


class _Helper:
    """A thread that does one job after the other; it ends with the process even when a job never does."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, name="patient-reader", daemon=True).start()

    def do(self, job: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def dismiss(self) -> None:
        """Lets the thread end after its job."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, future = work
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


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
    if seconds is None:
        return job()
    helper = getattr(_helpers, "helper", None)
    if helper is None:
        helper = _helpers.helper = _Helper()
    try:
        return helper.do(job).result(timeout=seconds)
    except TimeoutError:
        helper.dismiss()
        _helpers.helper = None
        # soundfile opens one file at a time, under a lock that a hanging open keeps: without a new one, every file of
        # this process would hang from now on.
        soundfile.SoundFile._sf_error_lock = threading.Lock()
        raise
