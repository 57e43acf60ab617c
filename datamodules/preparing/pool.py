"""Run jobs in worker processes. A file that crashes its process, or hangs, is a problem of that track alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path

from pebble import ProcessExpired

from datamodules.preparing.jobs import Job, Made, do_job
from datamodules.preparing.log import PrepareError
from datamodules.workers.processes import outcomes, worker_processes

# The time for a job, besides the length of its music; reading needs a few hundredths of that.
_PATIENCE_SECONDS = 600.0
# Scheduled jobs for each worker: enough that none is idle, few enough for the memory.
_WAITING = 2


def run_jobs(jobs: Sequence[Job], out: Path, workers: int) -> Iterator[tuple[Job, Made]]:
    """Do the jobs, in any order.

    Yields:
        Each job and its result.

    Raises:
        PrepareError: A worker ended for an unknown reason.
        WorkersError: The workers cannot start.
        OSError: No room in `out`, or no permission.
    """
    if not jobs:
        return
    waiting = deque(jobs)
    problems: dict[str, dict[str, str]] = {job.name: {} for job in jobs}
    with worker_processes(workers, "datamodules.preparing.jobs") as pool:

        def schedule(job: Job) -> Future[Made]:
            arguments = [job, out, problems[job.name], _note(out, job)]
            future: Future[Made] = pool.schedule(do_job, arguments, timeout=_PATIENCE_SECONDS + job.seconds)
            return future

        for job, future in outcomes(waiting, schedule, workers * _WAITING):
            try:
                made = future.result()
            except (ProcessExpired, FutureTimeout) as error:
                problems[job.name][_culprit(out, job, error)] = _reason(job, error)
                waiting.appendleft(job)
            else:
                yield job, made


def _note(out: Path, job: Job) -> Path:
    return out / f".reading-{job.identity()[:16]}"


def _culprit(out: Path, job: Job, error: Exception) -> str:
    """Return the track that the process was reading when it ended."""
    note = _note(out, job)
    with suppress(OSError):
        name = note.read_text(encoding="utf-8")
        note.unlink()
        if any(track.name == name for track in job.tracks):
            return name
    raise PrepareError(f"A worker process ended ({error}); is there enough memory? Type the same again to go on")


def _reason(job: Job, error: Exception) -> str:
    if isinstance(error, ProcessExpired):
        return f"ended the process that read it (exit code {error.exitcode}); copy it again or remove it"
    return f"takes longer than {_PATIENCE_SECONDS + job.seconds:.0f} s to read; copy it to a faster disk"
