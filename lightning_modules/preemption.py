"""A run told to make room, or stopped by Ctrl-C, saves itself, ends with a code of its own, and can go on later."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from lightning_modules.checkpoints import RunCheckpoint
from spectrostream.errors import UserError

# SIGUSR1 is what SLURM is asked for with --signal=USR1@90; SIGTERM comes from everybody else.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# A launcher that passes on a signal which the whole process group has got sends it twice within moments.
_SAME_REQUEST_SECONDS = 2.0
# Less for Ctrl-C: a person who types it again means it.
_SAME_INTERRUPT_SECONDS = 1.0


class PreemptedError(UserError):
    """The run was asked to make room: it is saved and goes on when it is started again.

    The exit code is 75 (EX_TEMPFAIL, "try again later"), and 0 in the other processes of a distributed run: the first
    one speaks for all.
    """

    exit_code = 75

    def __init__(self, step: int, max_steps: int, *, is_first: bool = True) -> None:
        super().__init__(
            f"asked to make room at step {step} of {max_steps}; all is saved, type the same command again to go on"
        )
        if not is_first:
            self.exit_code = 0


class TrainingInterruptedError(KeyboardInterrupt):
    """Ctrl-C stopped the run, which is saved and goes on when it is started again; the exit code is 130.

    The first process of a distributed run raises it; the others end without words, see `PreemptedError`.
    """

    def __init__(self, step: int, max_steps: int) -> None:
        super().__init__(f"stopped at step {step} of {max_steps}; all is saved, type the same command again to go on")


class Preemption(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C (SIGINT) to any process: finish the update, save, stop all.

    A second SIGTERM ends at once, and so does a second Ctrl-C, as a KeyboardInterrupt. A process that ignores Ctrl-C
    goes on ignoring it: the cell of a study, whose parent decides, or a shell's background job.

    It comes after `checkpoint` and all callbacks whose state is saved. After training `raise_if_preempted` says so.
    Python delivers signals to the main thread alone; elsewhere this installs nothing and merely follows the others.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._requested_at: float | None = None
        self._interrupted_at: float | None = None
        self._stopped: PreemptedError | TrainingInterruptedError | None = None
        self._is_first = True
        self._asked_step = 0
        self._former: dict[signal.Signals, Any] = {}

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """From here on signals wait for the end of an update."""
        # Lightning's own handlers talk to the other processes within the handler, where one of them may be in the midst
        # of something else: the run then hangs.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._is_first = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._request) for number in SIGNALS}
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._former[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """A resumed run has done the update it stands at."""
        self._asked_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """After each update the processes agree whether one of them was asked."""
        step = trainer.global_step
        if step == self._asked_step or step >= trainer.max_steps:
            return
        self._asked_step = step
        if trainer.strategy.reduce_boolean_decision(self._requested_at is not None, all=False):
            self._checkpoint.save(trainer, required=True)
            if self._interrupted_at is not None and self._is_first:
                self._stopped = TrainingInterruptedError(step, trainer.max_steps)
            else:
                self._stopped = PreemptedError(step, trainer.max_steps, is_first=self._is_first)
            # Lightning would validate first; what is owed is made up for by the run that goes on.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """The handlers from before."""
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """The handlers from before."""
        self._restore()

    def raise_if_preempted(self) -> None:
        """PreemptedError or TrainingInterruptedError, if that is why training ended."""
        if self._stopped is not None:
            raise self._stopped

    def _request(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        elif number == signal.SIGTERM and now - self._requested_at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self._requested_at = self._requested_at or now
            if self._is_first:
                # In a thread: this one may be in the midst of writing, or hold what `threading` starts threads with.
                _thread.start_new_thread(_promise_to_save, ())
        elif now - self._interrupted_at > _SAME_INTERRUPT_SECONDS:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def _promise_to_save() -> None:
    # As it is now: a progress bar may have put itself in between.
    with suppress(OSError):  # nobody reads it any more
        sys.stderr.write("\nfinishing the update and saving; Ctrl-C once more ends at once, without saving\n")
        sys.stderr.flush()
