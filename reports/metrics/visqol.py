"""ViSQOL in audio mode, on mono signals at 48 kHz, in processes of their own.

Hines et al. 2015, Chinen et al. 2020; `visqol-python` is within 0.0002 of the C++ program. Left alone it
flattens stereo, only warns about 44.1 kHz, gives silence 4.73 and deadlocks when it runs in parallel on its own: all of
that is closed here.

Its workers load this module, so it imports nothing heavier than numpy; in a script, guard the entry point with
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
PATIENCE_SECONDS = 600.0  # for one pair; a worker that needs longer hangs
# One thread per worker: the number of workers decides how many cores are used, and visqol's own threads can abort.
_ONE_THREAD = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_WAITING_PER_WORKER = 4  # submitted pairs hold their audio; more of them only fill the memory

SETTINGS: dict[str, Any] = {"mode": "audio", "side_dbfs": SIDE_DBFS, "silence_dbfs": SILENCE_DBFS}

Signal = NDArray[np.floating]


class VisqolWorkerError(RuntimeError):
    """A ViSQOL process died, hung or failed; the message names it, its exit code and the pair it was scoring."""


class StereoVisqol(NamedTuple):
    """Mean opinion scores predicted for music, about 1 to 4.73.

    lr: mean of the left and the right channel. m: of (L + R) / 2. s: of (L - R) / 2, if it is above SIDE_DBFS.
    """

    lr: Score
    m: Score
    s: Score


class PendingStereoVisqol(NamedTuple):
    """The scores of a stereo pair while the workers compute them."""

    left: Future[Score]
    right: Future[Score]
    mid: Future[Score]
    side: Future[Score]

    def result(self) -> StereoVisqol:
        """Wait for all four. VisqolWorkerError if a worker was lost."""
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
    """Processes that score pairs side by side; a context manager.

        with VisqolPool(workers=4) as pool:
            score = pool.submit("chorus", reference, estimate).result()

    Each worker holds about 0.6 GB and takes about 1.5 s to start, once per machine 10 s more: numba compiles, and keeps
    the result beside the installed package (or where NUMBA_CACHE_DIR says).
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
        # Threads only wait for their process; they are what makes a lost process an error instead of a hang.
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="visqol")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:  # nobody will ask for the scores still waiting
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in self._workers:
                worker.process.terminate()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.connection.close()  # the worker reads the end of its pipe and returns
            worker.process.join()

    def submit(self, label: str, reference: Signal, estimate: Signal, sample_rate: int = SAMPLE_RATE) -> Future[Score]:
        """Score one mono pair, `[samples]` in [-1, 1] each; blocks while too many pairs wait.

        Raises ValueError for anything but two 1-D signals of one length at 48 kHz. Signals that are too short or silent
        are missing scores. The future raises VisqolWorkerError, with `label`, if its worker is lost.
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
        """Score the channels, the mid and the side of `[2, samples]` at 48 kHz. ValueError for any other shape."""
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


# ---- what has a score -----------------------------------------------------------------------------------------------


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
    """Processes started inside inherit `values`: numba reads its own when it is imported, so later is too late."""
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
    theirs.close()  # the worker's end lives in the worker alone, so its death closes the pipe
    return _Worker(process, ours)


def _ask(worker: _Worker, label: str, pair: tuple[Signal, Signal]) -> float | _Failure:
    with suppress(OSError):  # a worker that is gone may have left its reason in the pipe
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
    """The life of a worker: one visqol object, one pair after the other, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its workers
    try:
        from visqol import VisqolApi

        # It warns of each patch that it cannot place in a badly degraded signal, and leaves it out as the C++ program
        # does.
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
        except Exception as error:  # the pair's own failure: the worker lives on
            connection.send(_Failure(repr(error)))
