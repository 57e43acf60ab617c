"""Measures a run: seconds of training and of audio over all attempts, and the current speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

ReportStep = Callable[[int, dict[str, float]], None]
"""Gets the number of generator updates after every batch, and after every `log_every`-th update its logged values."""


class DataWait(Callback):
    """Measures the seconds that training waits for its next batch; must be the last callback."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start waiting for the first batch."""
        self._since = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: object, batch_index: int
    ) -> None:
        """Stop waiting: the batch has arrived."""
        self.seconds += time.monotonic() - self._since

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: object, batch: object, batch_index: int
    ) -> None:
        """Start waiting for the next batch."""
        self._since = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start again: a validation between two batches does not count as waiting."""
        self._since = time.monotonic()


@dataclass(frozen=True)
class _Mark:
    """The counts at the time the speed was last logged."""

    step: int
    seconds: float
    waited: float
    audio_seconds: float


class TrainingClock(Callback):
    """Counts seconds of training and of audio, and logs the speed every `log_every` updates; the first callback.

    Attributes:
        seconds: Time spent waiting for data and training on it, over all attempts (it is in the checkpoint).
            Validation, samples and checkpoints do not count.
        audio_seconds: Audio that all processes trained on, over all attempts.
        data_wait: Measures the waiting; must be the last callback.
    """

    def __init__(self, report: ReportStep | None, log_every: int) -> None:
        self.seconds = 0.0
        self.audio_seconds = 0.0
        self.data_wait = DataWait()
        self._report = report
        self._log_every = log_every
        self._started = time.monotonic()
        self._waited = 0.0  # of `data_wait`, as far as it is counted in `seconds`
        self._mark = _Mark(0, 0.0, 0.0, 0.0)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Measure speed from the first batch of this attempt."""
        self._mark = self._now(trainer)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: object, batch_index: int
    ) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: object, batch: torch.Tensor, batch_index: int
    ) -> None:
        """Add this batch of every process, log the speed and report the step."""
        self.seconds += time.monotonic() - self._started + self.data_wait.seconds - self._waited
        self._waited = self.data_wait.seconds
        self.audio_seconds += trainer.world_size * batch.shape[0] * batch.shape[-1] / module.codec.sample_rate
        # Once per update, also where it takes several batches. Reading a loss waits for the device.
        step = trainer.global_step
        is_logged = step % self._log_every == 0 and step > self._mark.step
        if is_logged:
            module.log_dict(self._speed(trainer))
        if self._report is not None and trainer.is_global_zero:
            metrics = trainer.callback_metrics if is_logged else {}
            self._report(step, {name: float(value) for name, value in metrics.items() if name != "step"})

    def _speed(self, trainer: lightning.Trainer) -> dict[str, float]:
        """Since the last mark."""
        before, self._mark = self._mark, self._now(trainer)
        seconds = max(self._mark.seconds - before.seconds, 1e-9)
        return {
            "train/steps_per_second": (self._mark.step - before.step) / seconds,
            "train/audio_seconds_per_second": (self._mark.audio_seconds - before.audio_seconds) / seconds,
            "train/data_wait_share": (self._mark.waited - before.waited) / seconds,
        }

    def _now(self, trainer: lightning.Trainer) -> _Mark:
        return _Mark(trainer.global_step, self.seconds, self._waited, self.audio_seconds)

    def state_dict(self) -> dict[str, float]:
        """Kept in the checkpoint."""
        return {"seconds": self.seconds, "audio_seconds": self.audio_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From the checkpoint."""
        self.seconds, self.audio_seconds = state["seconds"], state["audio_seconds"]
