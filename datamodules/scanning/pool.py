"""Measure files in other processes; a file that hangs or crashes the decoder gets a reason and harms no other."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired

from datamodules.audio.opening import AudioFileError
from datamodules.scanning.measuring import Measurement, measure, measure_header
from datamodules.workers.processes import outcomes, worker_processes

# The timeout is for a file of this size; larger files get more time.
_TIMEOUT_BYTES = 64 * 10**6
_LONGEST_BATCH = 64
_BATCH_BYTES = 16 * 10**6
_BATCHES_PER_WORKER = 8  # at least, so that all workers end at about the same time
_QUEUED_PER_WORKER = 3

# Starts of reasons that may not be due to the file; `earlier` finds them in a manifest.
TOOK_LONGER = "took longer than "
BROUGHT_DOWN = "brought the decoder down (exit code "
UNREADABLE = "cannot be read: "
UNMEASURED = "cannot be measured ("

Outcome = Measurement | str  # a string is the reason why the track cannot be used


@dataclass(frozen=True, slots=True)
class Job:
    """A track to measure: the sum of the files at `paths`, which have `size_bytes` together."""

    number: int
    paths: tuple[Path, ...]
    size_bytes: int


Batch = tuple[Job, ...]


def measured(
    jobs: Sequence[Job], *, workers: int, timeout_seconds: float, headers_only: bool
) -> Generator[list[tuple[Job, Outcome]], None, None]:
    """Measure all jobs.

    Args:
        jobs: Small neighbours share a message between the processes.
        workers: Number of processes.
        timeout_seconds: For a track of up to 64 MB; larger ones get this time for each 64 MB.
        headers_only: Decode only the header and the last sample.

    Yields:
        The outcomes of a few jobs, as soon as they are ready.

    Raises:
        WorkersError: The processes cannot start, or end again and again.
    """
    waiting = deque(_batches(jobs, workers, headers_only))
    if not waiting:
        return
    with worker_processes(workers, __name__) as pool:

        def schedule(batch: Batch) -> Future[list[Outcome]]:
            arguments = ([job.paths for job in batch], headers_only)
            future: Future[list[Outcome]] = pool.schedule(
                _outcomes_of, arguments, timeout=_limit(batch, timeout_seconds)
            )
            return future

        for batch, future in outcomes(waiting, schedule, workers * _QUEUED_PER_WORKER):
            found = _outcomes(future, batch, timeout_seconds)
            if found is None:
                # One job caused it; a second turn, each job alone, finds out which.
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


def _limit(batch: Batch, timeout: float) -> float:
    return timeout * max(1.0, max(job.size_bytes for job in batch) / _TIMEOUT_BYTES)


def _outcomes(future: Future[list[Outcome]], batch: Batch, timeout: float) -> list[Outcome] | None:
    """Return the outcomes of a batch; None if its process ended and it has several jobs."""
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


# ---- in the worker processes


def _outcomes_of(tracks: Sequence[tuple[Path, ...]], headers_only: bool) -> list[Outcome]:
    return [_outcome_of(paths, headers_only) for paths in tracks]


def _outcome_of(paths: tuple[Path, ...], headers_only: bool) -> Outcome:
    try:
        return measure_header(paths) if headers_only else measure(paths)
    except AudioFileError as error:
        return error.reason if len(paths) == 1 else str(error)
    except OSError as error:
        return f"{UNREADABLE}{error.strerror or error}"
    except Exception as error:  # one odd file must not end a scan of hours
        return f"{UNMEASURED}{type(error).__name__}: {error})"
