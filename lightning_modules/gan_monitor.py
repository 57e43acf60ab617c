"""Warns when the GAN collapses: the discriminator always wins or always loses, or few codebook entries are used."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

logger = logging.getLogger(__name__)

PATIENCE = 20  # log entries in a row
VALIDATIONS = 2  # in a row; before the first one k-means may just have filled the codebooks
WON, LOST = 0.999, 0.5  # shares of right answers, for original and for decoded audio
LEAST_USED = 0.1


class CollapseWatch(Callback):
    """Warns once per run and kind of collapse; it does not change the training."""

    def __init__(self) -> None:
        self._in_a_row = {"won": 0, "lost": 0, "unused": 0}
        self._warned: set[str] = set()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: object, outputs: object, batch: object, batch_index: int
    ) -> None:
        """Check the discriminator's accuracies when they are logged: reading them waits for the device."""
        if not trainer._logger_connector.should_update_logs:
            return
        metrics = trainer.callback_metrics
        shares = [metrics.get(f"train/discriminator_accuracy_{kind}") for kind in ("real", "fake")]
        if None in shares:
            return
        right = [float(share) for share in shares if share is not None]
        self._count("won", min(right) >= WON)
        self._count("lost", max(right) <= LOST)
        if self._in_a_row["won"] == PATIENCE:
            self._warn(
                "the discriminator tells decoded audio from originals without fail: the codec learns nothing from it; "
                "try a lower training.discriminator.learning_rate, or training.discriminator_every=2"
            )
        if self._in_a_row["lost"] == PATIENCE:
            self._warn(
                "the discriminator is right in less than half of all cases: it tells the codec nothing; "
                "try a higher training.discriminator.learning_rate, or a later training.adversarial_start"
            )

    def _count(self, kind: str, holds: bool) -> None:
        self._in_a_row[kind] = self._in_a_row[kind] + 1 if holds else 0

    def on_validation_end(self, trainer: lightning.Trainer, module: object) -> None:
        """Check the use of the codebooks."""
        used = _value(trainer.callback_metrics, "validation/codebook_used")
        if used is None:
            return
        self._count("unused", used < LEAST_USED)
        if self._in_a_row["unused"] == VALIDATIONS:
            self._warn(
                f"only {used:.0%} of the codebooks' entries are used; "
                "try a higher model.quantizer.revival_threshold, or a lower training.generator.learning_rate"
            )

    def _warn(self, message: str) -> None:
        if message[:20] not in self._warned:
            self._warned.add(message[:20])
            logger.warning("%s", message)


def _value(metrics: Mapping[str, Tensor], name: str) -> float | None:
    value = metrics.get(name)
    return None if value is None else float(value)
