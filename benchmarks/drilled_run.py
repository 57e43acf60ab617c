"""Runs a small training with a planned fault: `python -m benchmarks.drilled_run FOLDER`.

Exit codes and messages are those of `spectrostream train`. The music is noise: only the bits of the result matter.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import fit
from lightning_modules.trainer_config import TrainerConfig
from lightning_modules.training_config import TrainingConfig
from spectrostream import SpectroStreamConfig
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig, MultiScaleSTFTDiscriminator
from spectrostream.codec import SpectroStream
from spectrostream.errors import UserError
from spectrostream.quantizer import QuantizerConfig

STEPS = 8
CHECKPOINT_EVERY = 2
VALIDATE_EVERY = 3
BATCH = 4
SAMPLES = 3840
MOMENTS = ("update", "validation")


def small_module() -> CodecTraining:
    """Return a training module with fixed initial weights; its codebooks start in the second update."""
    torch.manual_seed(0)
    quantizer = QuantizerConfig(levels=2, codebook_size=8, initial_vectors=16, kmeans_iterations=2)
    codec = SpectroStream(SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=8, quantizer=quantizer))
    discriminator = MultiScaleSTFTDiscriminator(
        MultiScaleSTFTConfig(windows=(256,), width=2, multipliers=(2, 2), frequency_strides=(2, 2), time_strides=(1, 2))
    )
    return CodecTraining(codec, discriminator, TrainingConfig(max_steps=STEPS, adversarial_start=1))


def small_config(*, devices: int = 1) -> TrainerConfig:
    """Return a trainer configuration with checkpoints and validations after different updates."""
    return TrainerConfig(
        accelerator="cpu",
        devices=devices,
        threads=1,
        validate_every=VALIDATE_EVERY,
        checkpoint_every=CHECKPOINT_EVERY,
        log_every=1,
    )


class Noise(lightning.LightningDataModule):
    """Noise whose batch k depends only on k; each process gets its share of the batch."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return an endless loader that begins at the trainer's step."""
        return DataLoader(_Endless(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return a loader of one batch."""
        return DataLoader([self.share(-1)], batch_size=None)  # type: ignore[arg-type]

    def share(self, index: int) -> Tensor:
        """Return the part of batch `index` for this process, `[batch, channels, samples]`."""
        assert self.trainer is not None
        generator = torch.Generator().manual_seed(1000 + index)
        batch = 0.1 * torch.randn(BATCH, 2, SAMPLES, generator=generator)
        return batch.chunk(self.trainer.world_size)[self.trainer.global_rank]


class _Endless(IterableDataset[Tensor]):
    def __init__(self, data: Noise) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        assert self.data.trainer is not None
        return map(self.data.share, itertools.count(self.data.trainer.global_step))


class Fault(Callback):
    """Sends a signal to the process of `rank` during update `step`, or during the validation after it."""

    def __init__(self, number: signal.Signals, *, step: int, rank: int = 0, moment: str = MOMENTS[0]) -> None:
        self.number = number
        self.step = step
        self.rank = rank
        self.moment = moment

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Send the signal in the update, if that is the moment."""
        if self.moment == "update" and trainer.global_step == self.step - 1:
            self._send(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Send the signal in the validation, if that is the moment."""
        if self.moment == "validation" and trainer.global_step == self.step:
            self._send(trainer)

    def _send(self, trainer: lightning.Trainer) -> None:
        if trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def main() -> int:
    """Train or resume; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--signal", help="KILL, TERM or USR1")
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--moment", choices=MOMENTS, default=MOMENTS[0])
    given = parser.parse_args()
    faults = []
    if given.signal:
        number = signal.Signals[f"SIG{given.signal}"]
        faults = [Fault(number, step=given.step, rank=given.rank, moment=given.moment)]
    try:
        fit(small_module(), Noise(), small_config(devices=given.devices), given.folder, callbacks=faults)
    except UserError as error:
        if error.exit_code:
            sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
