"""A training run in a folder: trainer and callbacks; started again it goes on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lightning_modules.checkpoints import RunCheckpoint, latest_valid_checkpoint
from lightning_modules.clock import ReportStep, TrainingClock
from lightning_modules.codec_training import CodecTraining
from lightning_modules.loggers import build_loggers
from lightning_modules.trainer_config import TrainerConfig
from spectrostream.errors import UserError


class TrainingStoppedError(UserError):
    """A run that ended before its last step; its checkpoints are there."""


@dataclass(frozen=True)
class FitResult:
    """steps: generator updates; seconds: of training over all attempts; audio_seconds: heard by the generator."""

    steps: int
    seconds: float
    audio_seconds: float


def fit(
    module: CodecTraining,
    data: lightning.LightningDataModule,
    config: TrainerConfig,
    folder: Path,
    *,
    report: ReportStep | None = None,
    run_name: str | None = None,
) -> FitResult:
    """Trains in `folder` up to the module's max_steps, from its newest valid checkpoint if there is one."""
    if config.threads:
        torch.set_num_threads(config.threads)
    clock = TrainingClock(report, config.log_every)
    checkpoint = RunCheckpoint(folder / "checkpoints", every=config.checkpoint_every, keep=config.keep_checkpoints)
    # The clock comes first: a checkpoint then holds the time of the step it was written after.
    loggers = build_loggers(config, folder, run_name)
    with warnings.catch_warnings():
        _ignore_what_is_meant()
        trainer = build_trainer(module, config, [clock, checkpoint], loggers)
        trainer.fit(module, datamodule=data, ckpt_path=latest_valid_checkpoint(checkpoint.folder), weights_only=True)
    if trainer.global_step < module.config.max_steps:
        # A signal, for instance: Lightning then returns as if all were done.
        raise TrainingStoppedError(
            f"training stopped at step {trainer.global_step} of {module.config.max_steps}; "
            "type the same command again to go on"
        )
    return FitResult(trainer.global_step, clock.seconds, clock.audio_seconds)


def build_trainer(
    module: CodecTraining, config: TrainerConfig, callbacks: list[Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """Lightning's trainer for a run counted in generator updates."""
    accumulate = module.config.accumulate
    world_size = config.devices * config.num_nodes
    trainer = lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy="ddp_find_unused_parameters_true" if world_size > 1 else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        max_steps=module.config.max_steps,
        max_epochs=-1,
        # Lightning counts batches here; they are never grouped into epochs.
        val_check_interval=config.validate_every * accumulate or None,
        limit_val_batches=1.0 if config.validate_every else 0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every * accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=False,  # RunCheckpoint does it
        enable_progress_bar=False,  # the command that runs it shows the bar
        enable_model_summary=False,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=None,
    )
    if trainer.world_size != world_size:
        raise RuntimeError(
            f"asked for {config.num_nodes} x {config.devices} processes but the launcher gave {trainer.world_size}; "
            "in a SLURM job set --ntasks-per-node to trainer.devices"
        )
    return trainer


def _ignore_what_is_meant() -> None:
    # Data at hand in memory needs no workers; small models on CPU machines are a use of ours; the last is Lightning's
    # own use of a torch interface that torch 2.13 calls old.
    messages = (".*does not have many workers.*", ".*available but not used.*", ".*isinstance.treespec, LeafSpec.*")
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
