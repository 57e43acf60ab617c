"""Batches out of worker processes, also when a file brings one of these down."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.workers.crash_markers import Marks, note_in, refuse, refused
from datamodules.workers.processes import Lifeline, WorkersError, end_with

logger = logging.getLogger(__name__)

# What C code that meets a damaged file ends with. Not SIGBUS, which is what a full shared memory gives.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
# Each costs some seconds. So many damaged files are a corpus to look at, or it is not the files.
_MOST_CRASHES = 100
# Until a process that has let go of its connections is seen to be dead.
_SECONDS_TO_DIE = 2.0
_GO_ON = "type the same command again to go on from the last checkpoint"


class _Position:
    """The next batch; apart from the loader, which would else hold itself, and its processes when nobody else does."""

    batch_index = 0

    def __call__(self) -> int:
        return self.batch_index


class LastingLoader(Iterable[Tensor]):
    """Endless batches of a loader with worker processes, which is made anew where a file brought one of them down.

    That file is then as unreadable, in this process and in its workers, as one that is cut short, and the batches go
    on where they stopped. A later start of the run tries it again.

    Args:
        made: the loader whose first batch has the index that the function gives whenever an iteration begins; its
            `worker_init_fn` is the given one, its processes are persistent.
        first_batch: the index of the first batch, asked for whenever an iteration begins.
        context: that the loader starts its processes in.
        workers: how many, 1 or more.

    Raises:
        WorkersError: while iterating; a process was killed, or 100 files crashed.
    """

    def __init__(
        self,
        made: Callable[[Callable[[], int], WorkerStart], DataLoader[Tensor]],
        first_batch: Callable[[], int],
        *,
        context: BaseContext,
        workers: int,
    ) -> None:
        self._made = made
        self._first_batch = first_batch
        self._context = context
        self._workers = workers
        self._crashes = 0
        self._position = _Position()
        self._running: tuple[DataLoader[Tensor], WorkerStart] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        self._position.batch_index = self._first_batch()
        while True:
            if self._running is None:
                start = WorkerStart(self._context, self._workers)
                self._running = self._made(self._position, start), start
            loader, start = self._running
            batches: Any = iter(loader)
            try:
                for batch in batches:
                    self._position.batch_index += 1
                    yield batch
            # What comes from a dead process may also be a connection that breaks, or a half of a message.
            except (RuntimeError, OSError, EOFError) as error:
                ended_by = _signals(batches._workers)
                if not ended_by:
                    raise
                self.close()
                # Two may have read the same one.
                for path, number in {start.marks.path_of(worker): ended_by[worker] for worker in ended_by}.items():
                    self._go_on_without(path, number, error)

    def close(self) -> None:
        """Ends the processes; another iteration would start new ones."""
        if self._running is None:
            return
        loader, start = self._running
        self._running = None
        if loader._iterator is not None:
            cast(Any, loader._iterator)._shutdown_workers()
        # Those that hang.
        start.lifeline.let_go()

    def _go_on_without(self, path: Path | None, number: signal.Signals, error: Exception) -> None:
        """Refuses the file that a process was reading; WorkersError where that was not what it died of."""
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
        if number == signal.SIGKILL:
            return f"{given}, as where memory is short: {fewer} and {_GO_ON}"
        if number == signal.SIGBUS:
            return f"{given}, as where /dev/shm is full: enlarge it (docker run --shm-size=8g) or {fewer}, and {_GO_ON}"
        return f"{given}, but not by a file that it read; {_GO_ON}"


def _signals(workers: list[Any]) -> dict[int, signal.Signals]:
    """Of those among the workers, by number, that a signal ended."""
    wait([worker.sentinel for worker in workers], timeout=_SECONDS_TO_DIE)
    codes = [worker.exitcode or 0 for worker in workers]
    return {number: signal.Signals(-code) for number, code in enumerate(codes) if code < 0}


class WorkerStart:
    """What a loader's worker does first. The loader has it, and with it the lifeline; a worker gets the other end."""

    def __init__(self, context: BaseContext, workers: int) -> None:
        self.lifeline = Lifeline(context)
        self.marks = Marks(context, workers)
        self._end: Connection = self.lifeline.end
        self._refused = refused()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lifeline"}

    def __call__(self, worker: int) -> None:
        """In the worker of this number."""
        end_with(self._end)
        # A batch system tells every process of a job to make room, as a terminal does on Ctrl-C; a worker that obeyed
        # would be missed by the trainer, which still has an update to finish.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        refuse(self._refused)
        note_in(self.marks, worker)
