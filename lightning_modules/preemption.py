"""A run that is told to make room saves itself, ends with a code of its own, and goes on when it is started again."""

from __future__ import annotations

import os
import signal
import threading
import time
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


class Preemption(Callback):
    """On SIGTERM or SIGUSR1 to any process: finish the update, save, stop all. A second SIGTERM ends at once.

    It comes after `checkpoint` and all callbacks whose state is saved. After training `raise_if_preempted` says so.
    Python delivers signals to the main thread alone; elsewhere this installs nothing and merely follows the others.
    """

    def __init__(self, checkpoint: RunCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._requested_at: float | None = None
        self._stopped: PreemptedError | None = None
        self._asked_step = 0
        self._former: dict[signal.Signals, Any] = {}

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """From here on signals wait for the end of an update."""
        # Lightning's own handlers talk to the other processes within the handler, where one of them may be in the midst
        # of something else: the run then hangs.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._request) for number in SIGNALS}

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
            self._stopped = PreemptedError(step, trainer.max_steps, is_first=trainer.is_global_zero)
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
        """PreemptedError, if that is why training ended."""
        if self._stopped is not None:
            raise self._stopped

    def _request(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        elif number == signal.SIGTERM and now - self._requested_at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
