"""Files that hang when they are opened, as on a disk that does not answer."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def hanging(*paths: Path) -> Iterator[None]:
    """Whoever opens one of the files waits: until the end, or 45 s.

    A write lease: the kernel asks its holder for leave before it lets others in, and this one gives none.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with ExitStack() as held:
            for path in paths:
                file = held.enter_context(path.open("r+b"))
                _lease(file)
                held.callback(fcntl.fcntl, file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            yield
    finally:
        signal.signal(signal.SIGIO, before)


def _lease(file: BinaryIO) -> None:
    """Takes the lease, which is refused while a reader at work has the file open."""
    deadline = time.monotonic() + 10
    while True:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
