"""When a run is saved: after a number of updates, after a new best validation and at its end, by all processes."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.checkpoint_files import (
    best_checkpoints,
    best_path,
    is_intact,
    latest_valid_checkpoint,
    numbered_checkpoints,
    numbered_path,
    remove_checkpoints,
    write_checkpoint,
)
from spectrostream.errors import UserError

__all__ = ["CheckpointError", "RunCheckpoint", "is_intact", "latest_valid_checkpoint"]

logger = logging.getLogger(__name__)

BEST_METRIC = "validation/mel_loss"


class CheckpointError(UserError):
    """A required checkpoint could not be written."""


class RunCheckpoint(Callback):
    """Saves the run during training and at its end.

    A save that fails during training gives a warning; the last one must succeed.

    Args:
        folder: Where the checkpoints are.
        every: Generator updates between two checkpoints.
        keep: Newest checkpoints that stay.
        keep_best: Whether to save after a validation with the lowest `validation/mel_loss` so far, and keep that one.
    """

    def __init__(self, folder: Path, *, every: int, keep: int = 2, keep_best: bool = False) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.keep_best = keep_best
        self.best_loss = math.inf
        self.best_step = 0
        self._validated_step = 0
        self._saved_step = 0
        self._last_good: Path | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint, also for subclasses."""
        return RunCheckpoint.__name__

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Note the step that a resumed run starts from: it is saved already."""
        self._saved_step = trainer.global_step
        self._last_good = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        if self._owes_validation(trainer):
            _validate(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """Save if it is time; a batch that completes no update does not change the step and saves nothing."""
        if trainer.global_step % self.every == 0:
            self.save(trainer, required=False)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Save if this validation is the best so far."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._validated_step = trainer.global_step
        loss = trainer.callback_metrics.get(BEST_METRIC)
        if self.keep_best and loss is not None:
            # Rank 0's exact number, so that all processes save or none.
            self._save_if_best(trainer, trainer.strategy.broadcast(float(loss)))

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Save the last state, unless it is saved already."""
        self.save(trainer, required=True)

    def state_dict(self) -> dict[str, Any]:
        """Kept in the checkpoint."""
        return {"best_loss": self.best_loss, "best_step": self.best_step, "validated_step": self._validated_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint: the best result before it; later ones do not count."""
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]
        self._validated_step = state["validated_step"]

    def save(self, trainer: lightning.Trainer, *, required: bool) -> None:
        """Write a checkpoint of this step, unless there is one; every process must call this.

        Args:
            trainer: Lightning's trainer.
            required: Whether a failure is an error; otherwise the first process gives a warning.

        Raises:
            CheckpointError: In every process, if a required checkpoint cannot be written.
        """
        step = trainer.global_step
        if step == self._saved_step:
            return
        path = numbered_path(self.folder, step)
        reason = _write(trainer, path)
        if reason is not None:
            self._explain_failure(trainer, reason, required=required)
            return
        self._saved_step, self._last_good = step, path
        if trainer.is_global_zero:
            # Newer ones are damaged or of a continuation that was given up: they do not count.
            older = [path for number, path in numbered_checkpoints(self.folder) if number <= step]
            remove_checkpoints(older[: -self.keep])

    def _save_if_best(self, trainer: lightning.Trainer, loss: float) -> None:
        if not loss < self.best_loss:
            return
        before = self.best_loss, self.best_step
        self.best_loss, self.best_step = loss, trainer.global_step
        path = best_path(self.folder, self.best_step)
        reason = _write(trainer, path)
        if reason is not None:
            self.best_loss, self.best_step = before
            self._explain_failure(trainer, reason, required=False)
        elif trainer.is_global_zero:
            remove_checkpoints(other for _, other in best_checkpoints(self.folder) if other != path)

    def _owes_validation(self, trainer: lightning.Trainer) -> bool:
        # If a process ended between an update's checkpoint and its validation, Lightning would skip that validation.
        if not trainer.global_step or not trainer.enable_validation or not sum(trainer.num_val_batches):
            return False
        every = trainer.val_check_batch
        is_due = every is not None and (trainer.fit_loop.total_batch_idx + 1) % every == 0
        return is_due and self._validated_step != trainer.global_step

    def _explain_failure(self, trainer: lightning.Trainer, reason: str, *, required: bool) -> None:
        what = f"no checkpoint of step {trainer.global_step} could be written to {self.folder}: {reason}"
        good = f"the last good one is {self._last_good.name}" if self._last_good else "there is no earlier one"
        if required:
            remedy = (
                "make room there, or allow writing, and run the same command again to resume from the last good one"
            )
            raise CheckpointError(f"{what} ({_free_space(self.folder)}); {good}; {remedy}")
        if trainer.is_global_zero:
            logger.warning("%s (%s); %s; training goes on", what, _free_space(self.folder), good)


class _Writer(TorchCheckpointIO):
    """Keeps an error instead of raising it: the other processes would wait for the writing one forever."""

    failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.failure = error.strerror or str(error)
        except RuntimeError as error:
            self.failure = str(error)


def _write(trainer: lightning.Trainer, path: Path) -> str | None:
    """Write a checkpoint in the first process; every process calls this and gets the reason of a failure."""
    with _writing(trainer) as writer:
        trainer.save_checkpoint(path, weights_only=False)
    return trainer.strategy.broadcast(writer.failure)


@contextmanager
def _writing(trainer: lightning.Trainer) -> Iterator[_Writer]:
    writer, before = _Writer(), trainer.strategy.checkpoint_io
    trainer.strategy.checkpoint_io = writer
    try:
        yield writer
    finally:
        trainer.strategy.checkpoint_io = before


def _validate(trainer: lightning.Trainer) -> None:
    """Validate as after an update, and restore Lightning's counters: it counts this validation itself later."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    counted = loop.batch_progress.state_dict()
    was_restarting, loop.restarting = loop.restarting, False
    trainer.validating = True
    loop.run()
    trainer.training = True
    loop.batch_progress.load_state_dict(counted)
    loop.batch_progress.current.reset()
    loop.restarting = was_restarting


def _free_space(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free"
