"""Saves a run that is asked to stop by a signal or Ctrl-C; it ends with its own exit code and can be resumed."""

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

# SLURM sends SIGUSR1 with --signal=USR1@90; everybody else sends SIGTERM.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# If a launcher forwards a signal that the whole process group gets, it arrives twice within moments.
_SAME_REQUEST_SECONDS = 2.0
# Less for Ctrl-C: a person who types it again wants to stop at once.
_SAME_INTERRUPT_SECONDS = 1.0


class PreemptedError(UserError):
    """The run was asked to stop; it is saved, and resumes when it is started again.

    The exit code is 75 (EX_TEMPFAIL, "try again later"). In a distributed run only the first process has it; the others
    end with 0.
    """

    exit_code = 75

    def __init__(self, step: int, max_steps: int, *, is_first: bool = True) -> None:
        super().__init__(
            f"asked to make room at step {step} of {max_steps}; all is saved, run the same command again to resume"
        )
        if not is_first:
            self.exit_code = 0


class TrainingInterruptedError(KeyboardInterrupt):
    """Ctrl-C stopped the run; it is saved, and resumes when it is started again. The exit code is 130.

    Only the first process of a distributed run raises it; the others end silently, see `PreemptedError`.
    """

    def __init__(self, step: int, max_steps: int) -> None:
        super().__init__(f"stopped at step {step} of {max_steps}; all is saved, run the same command again to resume")


class Preemption(Callback):
    """After SIGTERM, SIGUSR1 or Ctrl-C (SIGINT) to any process, finishes the update, saves and stops all processes.

    A second SIGTERM ends at once, and so does a second Ctrl-C, as a KeyboardInterrupt. A process that ignores Ctrl-C
    keeps ignoring it: a run of a study, whose parent decides, or a shell's background job.

    Python delivers signals to the main thread alone; in another thread this installs no handlers and only follows the
    other processes.

    Args:
        checkpoint: Saves the run. This callback must come after it and after all callbacks whose state is saved.
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
        """Install the handlers: from here on signals wait for the end of an update."""
        # Lightning's own handlers communicate with the other processes, which may be in another exchange: the run then
        # hangs.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._is_first = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._request) for number in SIGNALS}
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                self._former[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Note the step that a resumed run starts from: its update is done."""
        self._asked_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """After each update, stop all processes if one of them was asked to."""
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
            # Lightning would validate first; the resumed run makes up for a validation that is due.
            trainer.limit_val_batches = 0
            trainer.should_stop = True

    def teardown(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Restore the earlier handlers."""
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Restore the earlier handlers."""
        self._restore()

    def raise_if_preempted(self) -> None:
        """Raise the reason if training was asked to stop.

        Raises:
            PreemptedError: A signal asked for it.
            TrainingInterruptedError: Ctrl-C asked for it.
        """
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
                # In a thread, because this one may be writing; not with `threading`, whose locks it may hold.
                _thread.start_new_thread(_promise_to_save, ())
        elif now - self._interrupted_at > _SAME_INTERRUPT_SECONDS:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def _promise_to_save() -> None:
    # The current `sys.stderr`: a progress bar may have replaced it.
    with suppress(OSError):  # nobody reads the output any more
        sys.stderr.write("\nfinishing the update and saving; Ctrl-C once more ends at once, without saving\n")
        sys.stderr.flush()
