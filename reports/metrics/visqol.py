"""ViSQOL in audio mode, on mono signals at 48 kHz, in separate processes (Hines et al. 2015, Chinen et al. 2020).

`visqol-python` is within 0.0002 of the C++ program. Used directly, it flattens stereo, only warns about 44.1 kHz, gives
silence 4.73, and deadlocks with its own `parallel=True`. This module prevents all four.

The workers load this module, so it imports nothing heavier than numpy. A script that uses it needs the guard
`if __name__ == "__main__":`, as for every spawned process.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reports.metrics.score import Score

SAMPLE_RATE = 48000  # Hz; audio mode was fitted at this rate
# Audio mode cuts 30-frame patches after the first 15 frames; a frame is 80 ms long and starts every 20 ms: 0.96 s.
SHORTEST = SAMPLE_RATE * (80 + 20 * (15 + 30 - 1)) // 1000  # samples
SILENCE_DBFS = -90.0  # RMS, as for the other metrics
SIDE_DBFS = -60.0  # RMS; a quieter side signal is not scored
PATIENCE_SECONDS = 600.0  # for one pair; a worker that needs longer is considered hung
# One thread per worker: the number of workers sets the number of cores, and visqol's own threads can abort.
_ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_WAITING_PER_WORKER = 4  # a submitted pair holds its audio, so more of them only fill the memory

SETTINGS: dict[str, Any] = {"mode": "audio", "side_dbfs": SIDE_DBFS, "silence_dbfs": SILENCE_DBFS}

Signal = NDArray[np.floating]


class VisqolWorkerError(RuntimeError):
    """A ViSQOL process died, hung or failed. The message names the process, its exit code and the pair."""


class StereoVisqol(NamedTuple):
    """Predicted mean opinion scores of a stereo pair, about 1 to 4.73."""

    lr: Score  # mean of the left and the right channel
    m: Score  # of the mid, (L + R) / 2
    s: Score  # of the side, (L - R) / 2; missing unless the reference's side is above SIDE_DBFS

    @classmethod
    def missing(cls, reason: str) -> StereoVisqol:
        """Return three missing scores with one `reason`."""
        return cls(*(Score.missing(reason),) * 3)


class PendingStereoVisqol(NamedTuple):
    """The scores of a stereo pair while the workers compute them."""

    left: Future[Score]
    right: Future[Score]
    mid: Future[Score]
    side: Future[Score]

    def result(self) -> StereoVisqol:
        """Wait for all four scores.

        Returns:
            The scores of the pair.

        Raises:
            VisqolWorkerError: If a worker was lost.
        """
        left, right = self.left.result(), self.right.result()
        reason = "; ".join(f"{name}: {one.reason}" for name, one in (("left", left), ("right", right)) if one.reason)
        lr = Score.missing(reason) if reason else Score((left.value + right.value) / 2)
        return StereoVisqol(lr, self.mid.result(), self.side.result())


class _Failure(NamedTuple):
    message: str


class _Worker(NamedTuple):
    process: SpawnProcess
    connection: Connection


class VisqolPool:
    """Processes that score pairs in parallel; a context manager.

        with VisqolPool(workers=4) as pool:
            score = pool.submit("chorus", reference, estimate).result()

    A worker needs about 0.6 GB and 1.5 s to start. The first start on a machine takes 10 s more, because numba
    compiles; it caches the result beside the installed package, or in NUMBA_CACHE_DIR.

    Args:
        workers: Number of processes.

    Raises:
        ValueError: If `workers` is less than 1.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; a pool needs at least 1")
        self._count = workers
        self._waiting = BoundedSemaphore(workers * _WAITING_PER_WORKER)

    def __enter__(self) -> VisqolPool:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        with _environment(_ONE_THREAD):
            self._workers = [_start(f"ViSQOL worker {number}") for number in range(1, self._count + 1)]
        for worker in self._workers:
            self._idle.put(worker)
        # Each thread only waits for its process, so that a lost process becomes an error instead of a hang.
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="visqol")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # nobody needs the scores that are still waiting
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers:
                worker.process.terminate()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.connection.close()  # the worker reads the end of its pipe and returns
            worker.process.join()

    def submit(self, label: str, reference: Signal, estimate: Signal, sample_rate: int = SAMPLE_RATE) -> Future[Score]:
        """Score one mono pair; blocks while too many pairs wait.

        Args:
            label: Names the pair in errors.
            reference: `[samples]` in [-1, 1].
            estimate: `[samples]` in [-1, 1], aligned with the reference.
            sample_rate: Hz; only 48 kHz is allowed.

        Returns:
            A future with the score, which is missing for signals that are too short or silent. The future raises
            VisqolWorkerError if its worker is lost.

        Raises:
            ValueError: If the signals are not two 1-D signals of one length at 48 kHz.
        """
        _check(reference, estimate, sample_rate)
        if reason := _unscorable(reference, estimate):
            return _done(Score.missing(reason))
        # float64 here, as visqol computes; copied, so that the caller may reuse the memory
        pair = np.array(reference, dtype=np.float64), np.array(estimate, dtype=np.float64)
        self._waiting.acquire()
        future = self._threads.submit(self._score, label, *pair)
        future.add_done_callback(lambda _: self._waiting.release())
        return future

    def submit_stereo(self, label: str, reference: Signal, estimate: Signal) -> PendingStereoVisqol:
        """Score the channels, the mid and the side of a stereo pair.

        Args:
            label: Names the pair in errors.
            reference: `[2, samples]` at 48 kHz.
            estimate: `[2, samples]`, aligned with the reference.

        Returns:
            The scores while the workers compute them.

        Raises:
            ValueError: If the signals have another shape.
        """
        if reference.ndim != 2 or reference.shape[0] != 2 or reference.shape != estimate.shape:
            raise ValueError(f"{label}: needs two [2, samples]; given {reference.shape} and {estimate.shape}")
        (xl, xr), (yl, yr) = reference, estimate
        if _level_dbfs((xl - xr) / 2) > SIDE_DBFS:
            side = self.submit(f"{label} side", (xl - xr) / 2, (yl - yr) / 2)
        else:
            side = _done(Score.missing(f"the side signal of the reference is below {SIDE_DBFS:g} dBFS"))
        return PendingStereoVisqol(
            left=self.submit(f"{label} left", xl, yl),
            right=self.submit(f"{label} right", xr, yr),
            mid=self.submit(f"{label} mid", (xl + xr) / 2, (yl + yr) / 2),
            side=side,
        )

    def _score(self, label: str, reference: Signal, estimate: Signal) -> Score:
        worker = self._idle.get()
        try:
            reply = _ask(worker, label, (reference, estimate))
        finally:
            self._idle.put(worker)
        if isinstance(reply, _Failure):
            raise VisqolWorkerError(f"{worker.process.name} could not score {label!r}: {reply.message}")
        return Score(reply) if math.isfinite(reply) else Score.missing("ViSQOL gave no finite score")


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check(reference: Signal, estimate: Signal, sample_rate: int) -> None:
    if sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"ViSQOL's audio mode needs {SAMPLE_RATE} Hz; given {sample_rate} Hz: resample both signals first"
        )
    if reference.ndim != 1 or reference.shape != estimate.shape:
        raise ValueError(
            f"ViSQOL compares two mono signals [samples] of one length; given {reference.shape} and {estimate.shape}:"
            " score each channel on its own (submit_stereo)"
        )


def _unscorable(reference: Signal, estimate: Signal) -> str:
    if reference.shape[0] < SHORTEST:
        return f"shorter than {SHORTEST / SAMPLE_RATE:g} s, the least that ViSQOL can score"
    if not np.isfinite(estimate).all():
        return "the output is not finite"
    if _level_dbfs(reference) <= SILENCE_DBFS:
        return "the reference is silent"
    if _level_dbfs(estimate) <= SILENCE_DBFS:
        return "the estimate is silent"
    return ""


def _level_dbfs(signal: Signal) -> float:
    power = float(np.mean(np.square(signal, dtype=np.float64)))
    return 10 * math.log10(power) if power > 0 else -math.inf


def _done(score: Score) -> Future[Score]:
    future: Future[Score] = Future()
    future.set_result(score)
    return future


# ---- the processes --------------------------------------------------------------------------------------------------


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start inside: numba reads its own when it is imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start(name: str) -> _Worker:
    # spawn, not fork: a forked child inherits the locks of torch's and numba's threads and can wait for them forever.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), name=name, daemon=True)
    process.start()
    theirs.close()  # only the worker keeps this end open, so the pipe closes when the worker dies
    return _Worker(process, ours)


def _ask(worker: _Worker, label: str, pair: tuple[Signal, Signal]) -> float | _Failure:
    with suppress(OSError):  # a worker that has ended may have left its reason in the pipe
        worker.connection.send(pair)
    try:
        if worker.connection.poll(PATIENCE_SECONDS):
            return worker.connection.recv()
        worker.process.kill()
        ending = f"gave no answer within {PATIENCE_SECONDS:g} s"
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        ending = f"ended with exit code {worker.process.exitcode}"
    raise VisqolWorkerError(
        f"{worker.process.name} (process {worker.process.pid}) {ending} while scoring {label!r}."
        " A worker needs about 0.6 GB; with less memory use fewer workers."
    )


def _serve(connection: Connection) -> None:
    """Run a worker: one visqol object scores one pair after the other until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C and ends its workers
    try:
        from visqol import VisqolApi

        # In a badly degraded signal it warns of each patch that it cannot align. It leaves the patch out, as the C++
        # program does.
        logging.getLogger("visqol").setLevel(logging.ERROR)
        api = VisqolApi()
        api.create(mode="audio")
    except Exception as error:
        connection.send(_Failure(f"it could not start: {error!r}"))
        return
    while True:
        try:
            reference, estimate = connection.recv()
        except EOFError:
            return
        try:
            connection.send(float(api.measure_from_arrays(reference, estimate, SAMPLE_RATE).moslqo))
        except Exception as error:  # this pair failed; the worker continues
            connection.send(_Failure(repr(error)))
