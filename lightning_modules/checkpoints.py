"""Checkpoints that survive: written beside, synced, renamed, with a SHA-256 beside; we find the newest valid one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)\.ckpt")


class RunCheckpoint(Callback):
    """Saves every `every` generator updates and at the end of training; keeps the last `keep`."""

    def __init__(self, folder: Path, *, every: int, keep: int = 2) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self._saved_step = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """A resumed run stands at a saved step, also during the batches of its first update."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_index: int,
    ) -> None:
        """A batch that completed no update leaves the step as it was and saves nothing."""
        if trainer.global_step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """The last state, unless it is saved already."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step:
            return
        self._saved_step = step
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.ckpt"
        temporary = path.with_suffix(".partial")
        trainer.save_checkpoint(temporary, weights_only=False)  # every process takes part, the first one writes
        if trainer.is_global_zero:
            _finish(temporary, path)
            # Newer ones are damaged, or training had gone on from them: they count for nothing.
            for _, old in [one for one in _numbered(self.folder) if one[0] <= step][: -self.keep]:
                _checksum_path(old).unlink(missing_ok=True)
                old.unlink()
        trainer.strategy.barrier("checkpoint")


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksum holds; a damaged one is named in a warning and passed over."""
    for _, path in reversed(_numbered(folder)):
        if is_intact(path):
            return path
        logger.warning(
            "checkpoint %s is damaged (its SHA-256 differs or is missing); falling back to an older one", path
        )
    return None


def is_intact(path: Path) -> bool:
    """True if the file is what was written."""
    checksum = _checksum_path(path)
    return checksum.exists() and checksum.read_text().split()[:1] == [_sha256(path)]


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.ckpt"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _finish(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    # The checksum goes first: a checkpoint without one counts as damaged, the reverse does no harm.
    checksum = _checksum_path(path)
    partial = checksum.with_suffix(".partial-checksum")
    partial.write_text(f"{_sha256(temporary)}  {path.name}\n")
    partial.replace(checksum)
    temporary.replace(path)


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
