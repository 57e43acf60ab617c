"""Training runs in processes of their own, as tests start them: `fit_process.py kill FOLDER`, `.. two FOLDER`, ..."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from training_setup import Batches, PlainGradientDescent, cpu_config, noise, tiny_module

from datamodules.stereo_music import DataConfig, StereoMusicDataModule
from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import FitResult, fit
from lightning_modules.optimization import OptimizerConfig

KILLED_AT = 5


def music_run(folder: Path, *, killed_at: int | None = None) -> tuple[CodecTraining, FitResult]:
    """Six updates on the demo corpus; with `killed_at` this process ends there by SIGKILL."""

    def report(step: int, _metrics: dict[str, float]) -> None:
        if step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    module = tiny_module(max_steps=6, adversarial_start=1)
    data = StereoMusicDataModule(DataConfig(crop_seconds=0.12, batch_size=2, validation_crops=2))
    config = cpu_config(threads=1, validate_every=3, checkpoint_every=2)
    return module, fit(module, data, config, folder, report=report)


def descent(max_steps: int) -> PlainGradientDescent:
    """Its codebooks start in the second update."""
    return PlainGradientDescent.tiny(initial_vectors=24, max_steps=max_steps)


def two_processes(folder: Path) -> None:
    """Three updates, two examples in each process; each keeps its weights and what it opened for writing."""
    written: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(str(folder)) and set(str(arguments[1])) & set("wax+"):
            written.append(str(arguments[0]))

    sys.addaudithook(note)
    module = descent(max_steps=3)
    data = Batches(lambda k: noise(k, 4).chunk(2)[int(os.environ.get("LOCAL_RANK", "0"))], held_out=(noise(99),))
    config = cpu_config(devices=2, threads=1, validate_every=2, checkpoint_every=1, keep_checkpoints=9)
    result = fit(module, data, config, folder)
    state = {"state": module.state_dict(), "written": list(written), "audio_seconds": result.audio_seconds}
    torch.save(state, folder.parent / f"rank-{module.global_rank}.pt")


class LossesOfProcess(Callback):
    """What this process logs of each update."""

    names = ("mel", "commitment", "adversarial", "feature_matching", "discriminator")

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object, **__: object) -> None:
        self.rows.append([float(trainer.callback_metrics[f"train/{name}_loss"]) for name in self.names])


def shared_batches(folder: Path, *, processes: int, max_steps: int) -> tuple[CodecTraining, LossesOfProcess]:
    """Global batches of four examples, which the processes share; the codebooks start in the fourth update.

    Steps are small, and each entry starts from several vectors: where a vector lies between two entries, or is one,
    rounding decides, and what it decides grows.
    """
    slow = OptimizerConfig(learning_rate=1e-4)
    module = tiny_module(
        max_steps=max_steps, initial_vectors=48, codebook_size=8, ema_decay=0.9, generator=slow, discriminator=slow
    )
    losses = LossesOfProcess()
    data = Batches(lambda k: noise(k, 4).chunk(processes)[module.global_rank])
    config = cpu_config(devices=processes, threads=1, checkpoint_every=10**6)
    fit(module, data, config, folder, callbacks=[losses])
    return module, losses


def two_that_share(folder: Path, max_steps: int) -> None:
    """Each process leaves its losses and its state."""
    module, losses = shared_batches(folder, processes=2, max_steps=max_steps)
    content = {"losses": torch.tensor(losses.rows), "state": module.state_dict()}
    torch.save(content, folder.parent / f"rank-{module.global_rank}.pt")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "kill":
        music_run(where, killed_at=KILLED_AT)
    elif what == "share":
        two_that_share(where, max_steps=int(sys.argv[3]))
    else:
        two_processes(where)
