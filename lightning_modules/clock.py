"""Seconds trained and music heard, over all attempts of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

ReportStep = Callable[[int, dict[str, float]], None]


class TrainingClock(Callback):
    """Seconds trained and heard, over all attempts: its state is in the checkpoint."""

    def __init__(self, report: ReportStep | None, log_every: int) -> None:
        self.seconds = 0.0
        self.audio_seconds = 0.0
        self._report = report
        self._log_every = log_every
        self._last = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """The clock starts with the first batch, not with imports."""
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: object, batch: torch.Tensor, batch_index: int
    ) -> None:
        """Adds this batch, of every process, and reports the step."""
        now = time.monotonic()
        self.seconds += now - self._last
        self._last = now
        self.audio_seconds += trainer.world_size * batch.shape[0] * batch.shape[-1] / module.codec.sample_rate
        if self._report is not None and trainer.is_global_zero:
            # Reading a loss waits for the device: only as often as they are logged.
            is_logged = trainer.global_step % self._log_every == 0
            metrics = trainer.callback_metrics if is_logged else {}
            self._report(trainer.global_step, {name: float(value) for name, value in metrics.items() if name != "step"})

    def state_dict(self) -> dict[str, float]:
        """Kept in the checkpoint."""
        return {"seconds": self.seconds, "audio_seconds": self.audio_seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From the checkpoint."""
        self.seconds, self.audio_seconds = state["seconds"], state["audio_seconds"]
