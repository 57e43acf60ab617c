"""Runs a training in a folder; a run that is started again resumes from its newest checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lightning_modules.checkpoints import RunCheckpoint
from lightning_modules.clock import ReportStep, TrainingClock
from lightning_modules.cluster import agreed_checkpoint, cluster_plugins
from lightning_modules.codec_training import CodecTraining
from lightning_modules.execution import checkpoint_activations, compile_training, lay_out_channels_last
from lightning_modules.gan_monitor import CollapseWatch
from lightning_modules.gradient_averaging import AveragingStrategy
from lightning_modules.loggers import opened_loggers
from lightning_modules.preemption import Preemption
from lightning_modules.rank_cleanup import bind_ranks
from lightning_modules.run_files import BAD_BATCHES, CHECKPOINTS
from lightning_modules.trainer_config import TrainerConfig
from spectrostream.errors import UserError


class TrainingStoppedError(UserError):
    """A run ended before its last step; its checkpoints are valid."""


@dataclass(frozen=True)
class FitResult:
    """Numbers of a finished training.

    Attributes:
        steps: Generator updates.
        seconds: Seconds of training over all attempts.
        audio_seconds: Seconds of audio that it trained on.
        float32_layers: Convolutions that ran in float32, because the CPU computes them wrongly in the short number
            format of `trainer.precision`.
    """

    steps: int
    seconds: float
    audio_seconds: float
    float32_layers: int = 0


def fit(
    module: CodecTraining,
    data: lightning.LightningDataModule,
    config: TrainerConfig,
    folder: Path,
    *,
    report: ReportStep | None = None,
    run_name: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train up to the module's max_steps, from the newest valid checkpoint in the folder if there is one.

    Afterwards the module's codec has the averaged weights, if `training.ema_decay` is set.

    Args:
        module: Codec, discriminator and what they compute.
        data: Batches `[batch, channels, samples]`.
        config: Where and how the run executes.
        folder: The run's folder, for checkpoints and logs.
        report: Gets the progress; see `ReportStep`.
        run_name: Name of the run in the loggers; the folder's name by default.
        callbacks: Further callbacks.

    Returns:
        The numbers of the finished training.

    Raises:
        TrainingStoppedError: Training ended before its last step.
        TrainingDivergedError: Too many updates were skipped.
        PreemptedError: The run was asked to stop; it is saved.
        TrainingInterruptedError: Ctrl-C stopped the run; it is saved.
    """
    module.bad_batches = folder / BAD_BATCHES
    clock = TrainingClock(report, config.log_every)
    checkpoint = RunCheckpoint(
        folder / CHECKPOINTS,
        every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        keep_best=config.keep_best,
    )
    preemption = Preemption(checkpoint)
    # The clock comes first: a checkpoint then holds the time of the step it was written after.
    ordered = [clock, *callbacks, CollapseWatch(), checkpoint, preemption, clock.data_wait]
    with opened_loggers(config, folder, run_name) as loggers, warnings.catch_warnings():
        _ignore_intended_uses()
        trainer = build_trainer(module, config, ordered, loggers)
        bind_ranks(trainer)
        found = agreed_checkpoint(trainer, checkpoint.folder)
        trainer.fit(module, datamodule=data, ckpt_path=found, weights_only=True)
        # Inside the loggers' context: an error here marks their run as failed.
        preemption.raise_if_preempted()
        _require_good_end(trainer, module)
    module.adopt_averaged_weights()
    layers = module.precision.float32_layers
    return FitResult(trainer.global_step, clock.seconds, clock.audio_seconds, layers)


def _require_good_end(trainer: lightning.Trainer, module: CodecTraining) -> None:
    if trainer.global_step < module.config.max_steps:
        # A callback can stop training; Lightning then returns as if it had finished.
        raise TrainingStoppedError(
            f"training stopped at step {trainer.global_step} of {module.config.max_steps}; "
            "run the same command again to resume"
        )
    module.guard.require_good_end()


def build_trainer(
    module: CodecTraining, config: TrainerConfig, callbacks: list[Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """Build Lightning's trainer for a run counted in generator updates, and prepare the module's execution.

    Raises:
        RuntimeError: The launcher gave another number of processes than configured.
        UserError: Settings contradict each other.
    """
    _prepare(module, config)
    accumulate = module.config.accumulate
    world_size = config.devices * config.num_nodes
    trainer = lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=AveragingStrategy() if world_size > 1 else "auto",
        plugins=[*cluster_plugins()],
        benchmark=True,  # crops are all of one length
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


def _prepare(module: CodecTraining, config: TrainerConfig) -> None:
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.precision == "16-mixed" and module.config.balance:
        raise UserError(
            "training.balance = true and trainer.precision = '16-mixed' do not go together: the balancer needs the "
            "true sizes of gradients; type trainer.precision=bf16-mixed, or training.balance=false"
        )
    # The training step casts, see `Precision`; Lightning's own casting would come on top.
    module.precision_name = config.precision
    if config.channels_last:
        lay_out_channels_last(module.codec, module.discriminator)
    if config.checkpoint_activations:
        checkpoint_activations(module.codec, module.discriminator)
    if config.compile:
        compile_training(module.codec, module.discriminator)


def _ignore_intended_uses() -> None:
    messages = (
        # Data in memory need no workers; training small models on a CPU is intended.
        ".*does not have many workers.*",
        ".*available but not used.*",
        # Lightning uses a torch interface that torch 2.13 calls old; torch's compiler reads gradients of inner tensors.
        ".*isinstance.treespec, LeafSpec.*",
        "The .grad attribute of a Tensor that is not a leaf.*",
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
