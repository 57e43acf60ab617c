"""Files measured in processes of their own: one that hangs is given up, one that brings its process down is reported.

libsndfile is C code that meets damaged files here, and a read from a network disk may never return. Neither a thread
nor an exception helps against those; a process can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from pebble import ProcessExpired, ProcessPool

from datamodules.audio_opening import AudioFileError
from datamodules.scanning.measuring import Measurement, measure, measure_header
from spectrostream.errors import UserError

# Larger files may take longer than the timeout says, so that a day of radio is no slow disk.
_TIMEOUT_BYTES = 64 * 10**6
_LONGEST_BATCH = 64
_BATCH_BYTES = 16 * 10**6
_BATCHES_PER_WORKER = 8  # at least, so that all end at about the same time
_QUEUED_PER_WORKER = 3

Outcome = Measurement | str  # a string says why the track cannot be used


class ScanError(UserError):
    """A scan that cannot start or cannot go on; the message says what to type."""


@dataclass(frozen=True, slots=True)
class Job:
    """A track to measure: the sum of the files at `paths`, which have `size_bytes` together; `number` names it."""

    number: int
    paths: tuple[Path, ...]
    size_bytes: int


Batch = tuple[Job, ...]


def measured(
    jobs: Sequence[Job], *, workers: int, timeout_seconds: float, headers_only: bool
) -> Generator[list[tuple[Job, Outcome]], None, None]:
    """The outcomes of all jobs, some at a time, in the order in which they are ready.

    Args:
        jobs: small ones that follow each other share a message between the processes.
        workers: number of processes.
        timeout_seconds: for a track of up to 64 MB; larger ones get so much for each 64 MB.
        headers_only: nothing but the header and the last sample is decoded.

    Raises:
        ScanError: the processes cannot even start, or end again and again.
    """
    waiting = deque(_batches(jobs, workers, headers_only))
    running: dict[Future[list[Outcome]], Batch] = {}
    pool = ProcessPool(max_workers=workers, initializer=_start_worker, context=_context())
    try:
        while waiting or running:
            while waiting and len(running) < workers * _QUEUED_PER_WORKER:
                batch = waiting.popleft()
                running[_scheduled(pool, batch, timeout_seconds, headers_only)] = batch
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                batch = running.pop(future)
                outcomes = _outcomes(future, batch, timeout_seconds)
                if outcomes is None:
                    # One of them is to blame: each gets a turn of its own.
                    waiting.extendleft((job,) for job in reversed(batch))
                else:
                    yield list(zip(batch, outcomes, strict=True))
    except BrokenProcessPool as error:
        raise ScanError(
            f"The processes that measure end before they begin ({error}); is there enough memory? "
            "What was measured is kept: type the same again, with fewer --workers"
        ) from error
    finally:
        pool.stop()
        pool.join()


def _batches(jobs: Sequence[Job], workers: int, headers_only: bool) -> Iterator[Batch]:
    longest = max(1, min(_LONGEST_BATCH, len(jobs) // (workers * _BATCHES_PER_WORKER)))
    batch: list[Job] = []
    size = 0
    for job in jobs:
        weight = 0 if headers_only else job.size_bytes
        if batch and (len(batch) == longest or size + weight > _BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(job)
        size += weight
    if batch:
        yield tuple(batch)


def _scheduled(pool: ProcessPool, batch: Batch, timeout: float, headers_only: bool) -> Future[list[Outcome]]:
    paths = [job.paths for job in batch]
    future: Future[list[Outcome]] = pool.schedule(
        _outcomes_of, args=(paths, headers_only), timeout=_limit(batch, timeout)
    )
    return future


def _limit(batch: Batch, timeout: float) -> float:
    return timeout * max(1.0, max(job.size_bytes for job in batch) / _TIMEOUT_BYTES)


def _outcomes(future: Future[list[Outcome]], batch: Batch, timeout: float) -> list[Outcome] | None:
    """Of one batch; None if several tracks ended together in one process that was killed."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, TimeoutError):
        limit = _limit(batch, timeout)
        reason = f"took longer than {limit:g} s; on a slow disk give more time, for instance --timeout {10 * timeout:g}"
    elif isinstance(error, ProcessExpired):
        reason = f"brought the decoder down (exit code {error.exitcode}); copy it again or remove it"
    else:
        raise error
    return [reason] if len(batch) == 1 else None


# ---- in the processes


def _context() -> BaseContext:
    """Processes that start in milliseconds, from one that has imported everything, where there is such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker() -> None:
    # Ctrl-C goes to all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # The MP3 decoder writes notes about damaged files there, through the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that was killed cannot end its helpers; one that hangs in a read would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _outcomes_of(tracks: Sequence[tuple[Path, ...]], headers_only: bool) -> list[Outcome]:
    return [_outcome_of(paths, headers_only) for paths in tracks]


def _outcome_of(paths: tuple[Path, ...], headers_only: bool) -> Outcome:
    try:
        return measure_header(paths) if headers_only else measure(paths)
    except AudioFileError as error:
        return error.reason if len(paths) == 1 else str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception as error:  # one odd file among a hundred thousand must not end a scan of hours
        return f"cannot be measured ({type(error).__name__}: {error})"
