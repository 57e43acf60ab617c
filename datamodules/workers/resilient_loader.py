"""Batches from worker processes, even when a file crashes one of them."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.workers.crash_markers import Marks, note_in, refuse, refused
from datamodules.workers.processes import Lifeline, WorkersError, end_with, worker_context

logger = logging.getLogger(__name__)

# Signals that end C code which reads a damaged file. Not SIGBUS, which also means that the shared memory is full.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
# Each crash costs some seconds. After this many the corpus needs a look, or the files are not the cause.
_MOST_CRASHES = 100
# A process closes its connections shortly before it is seen to be dead.
_SECONDS_TO_DIE = 2.0


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Endless batches of keys `(batch index, slot)`, a function of batch index, rank and world size.

    The ranks share one global batch of `batch_size * world_size` slots.

    Args:
        batch_size: Crops per rank.
        rank: Of this process.
        world_size: Number of processes.
        start_batch: Index of the first batch of an iteration; may be set between iterations.
    """

    def __init__(self, batch_size: int, *, rank: int = 0, world_size: int = 1, start_batch: int = 0) -> None:
        if not (batch_size >= 1 and 0 <= rank < world_size):
            raise ValueError(
                f"{batch_size=}, {rank=}, {world_size=}: needed are batch_size >= 1 and 0 <= rank < world_size"
            )
        self._slots = range(rank * batch_size, (rank + 1) * batch_size)
        self.start_batch = start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch_index in itertools.count(self.start_batch):
            yield [(batch_index, slot) for slot in self._slots]


class ResilientLoader(Iterable[Tensor]):
    """Endless batches, read here or in worker processes that are started again when a file crashes one of them.

    Such a file is unreadable from then on, in this process and in its workers. The batches continue where they
    stopped. The next start of the run tries the file again.

    Args:
        dataset: The crops by key.
        sampler: The keys of each batch; its `start_batch` is set here.
        first_batch: Returns the index of the first batch; called whenever an iteration begins.
        workers: Number of processes; they serve all iterations. 0 reads in this process.

    Raises:
        WorkersError: While iterating; a process was killed, or 100 files crashed.
    """

    def __init__(
        self, dataset: Dataset[Tensor], sampler: StepSampler, first_batch: Callable[[], int], *, workers: int
    ) -> None:
        self._dataset = dataset
        self._sampler = sampler
        self._first_batch = first_batch
        self._workers = workers
        self._crashes = 0
        self._loader: DataLoader[Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        batch_index = self._first_batch()
        while True:
            self._sampler.start_batch = batch_index
            if self._loader is None:
                self._loader = self._start()
            batches: Any = iter(self._loader)
            try:
                for batch in batches:
                    batch_index += 1
                    yield batch
            # A dead process may also show as a connection that breaks, or as half a message.
            except (RuntimeError, OSError, EOFError) as error:
                ended_by = _signals(batches._workers) if self._workers else {}
                if not ended_by:
                    raise
                self.close()
                # Two processes may have read the same file.
                for path, number in {self._marks.path_of(worker): ended_by[worker] for worker in ended_by}.items():
                    self._leave_out(path, number, error)

    def close(self) -> None:
        """End the processes; another iteration starts new ones."""
        loader: Any = self._loader
        self._loader = None
        if loader is None or not self._workers:
            return
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
        # Ends processes that hang.
        self._lifeline.let_go()

    def _start(self) -> DataLoader[Tensor]:
        options: dict[str, Any] = {}
        if self._workers:
            context = worker_context("datamodules.crop_dataset")
            self._lifeline, self._marks = Lifeline(context), Marks(context, self._workers)
            options = {
                "num_workers": self._workers,
                "persistent_workers": True,
                "multiprocessing_context": context,
                "worker_init_fn": WorkerStart(self._lifeline.end, self._marks, refused()),
            }
        return DataLoader(
            self._dataset,
            batch_sampler=self._sampler,
            pin_memory=torch.cuda.is_available(),
            # Without one, the loader would draw from the global generator, which the training uses.
            generator=torch.Generator(),
            **options,
        )

    def _leave_out(self, path: Path | None, number: signal.Signals, error: Exception) -> None:
        """Refuse the file that a process was reading; WorkersError if the process ended for another reason."""
        if path is None or number not in _CRASHES:
            raise WorkersError(self._death(number)) from error
        self._crashes += 1
        scan = "`spectrostream data scan FOLDER --out music.parquet` finds all files that do so"
        if self._crashes > _MOST_CRASHES:
            given = f"{self._crashes} files brought processes down that read them, the last {str(path)!r}"
            raise WorkersError(f"{given} ({number.name}); {scan}, then type data=music.parquet") from error
        refuse({path: f"brought the decoder down (signal {number:d}, {number.name}); copy it again or remove it"})
        logger.warning("%r brought down a process that read it (%s); it is left out. %s", str(path), number.name, scan)

    def _death(self, number: signal.Signals) -> str:
        given = f"a process that reads music ended by signal {number:d} ({number.name})"
        fewer = f"lower data.num_workers={self._workers}"
        resume = "run the same command again to resume from the last checkpoint"
        if number == signal.SIGKILL:
            return f"{given}, as where memory is short: {fewer} and {resume}"
        if number == signal.SIGBUS:
            return f"{given}, as where /dev/shm is full: enlarge it (docker run --shm-size=8g) or {fewer}, and {resume}"
        return f"{given}, but not by a file that it read; {resume}"


def _signals(workers: list[Any]) -> dict[int, signal.Signals]:
    """Return the signals that ended workers, by the number of the worker."""
    wait([worker.sentinel for worker in workers], timeout=_SECONDS_TO_DIE)
    codes = [worker.exitcode or 0 for worker in workers]
    return {number: signal.Signals(-code) for number, code in enumerate(codes) if code < 0}


@dataclass(frozen=True)
class WorkerStart:
    """What a worker does first.

    Attributes:
        lifeline: The worker's end; the loader has the other one.
        marks: Where the worker notes what it reads.
        refused: Files that crashed earlier workers, and why they are not read.
    """

    lifeline: Connection
    marks: Marks
    refused: Mapping[Path, str]

    def __call__(self, worker: int) -> None:
        """Prepare the worker of this number."""
        end_with(self.lifeline)
        # Batch systems send these to every process of a job, and a terminal sends Ctrl-C to all. The trainer still has
        # an update to finish and needs its workers for that.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        refuse(self.refused)
        note_in(self.marks, worker)
