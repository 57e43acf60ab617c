"""Files measured in other processes: one that hangs is given up, one that brings its process down is reported."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from datamodules.audio.opening import AudioFileError
from datamodules.scanning.measuring import Measurement, measure, measure_header
from datamodules.workers.processes import outcomes, worker_processes

# Larger files may take longer than the timeout says, so that a day of radio is no slow disk.
_TIMEOUT_BYTES = 64 * 10**6
_LONGEST_BATCH = 64
_BATCH_BYTES = 16 * 10**6
_BATCHES_PER_WORKER = 8  # at least, so that all end at about the same time
_QUEUED_PER_WORKER = 3

# How reasons begin that may not lie in the file; `earlier` knows them again in a manifest.
TOOK_LONGER = "took longer than "
BROUGHT_DOWN = "brought the decoder down (exit code "
UNREADABLE = "cannot be read: "
UNMEASURED = "cannot be measured ("

Outcome = Measurement | str  # a string says why the track cannot be used


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
        WorkersError: the processes cannot even start, or end again and again.
    """
    waiting = deque(_batches(jobs, workers, headers_only))
    if not waiting:
        return
    with worker_processes(workers, __name__) as pool:

        def schedule(batch: Batch) -> Future[list[Outcome]]:
            return _scheduled(pool, batch, timeout_seconds, headers_only)

        for batch, future in outcomes(waiting, schedule, workers * _QUEUED_PER_WORKER):
            found = _outcomes(future, batch, timeout_seconds)
            if found is None:
                # One of them is to blame: each gets a turn of its own.
                waiting.extendleft((job,) for job in reversed(batch))
            else:
                yield list(zip(batch, found, strict=True))


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
        reason = f"{TOOK_LONGER}{limit:g} s; on a slow disk give more time, for instance --timeout {10 * timeout:g}"
    elif isinstance(error, ProcessExpired):
        reason = f"{BROUGHT_DOWN}{error.exitcode}); copy it again or remove it"
    else:
        raise error
    return [reason] if len(batch) == 1 else None


# ---- in the processes


def _outcomes_of(tracks: Sequence[tuple[Path, ...]], headers_only: bool) -> list[Outcome]:
    return [_outcome_of(paths, headers_only) for paths in tracks]


def _outcome_of(paths: tuple[Path, ...], headers_only: bool) -> Outcome:
    try:
        return measure_header(paths) if headers_only else measure(paths)
    except AudioFileError as error:
        return error.reason if len(paths) == 1 else str(error)
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"
    except Exception as error:  # one odd file among a hundred thousand must not end a scan of hours
        return f"{UNMEASURED}{type(error).__name__}: {error})"
