"""A training run in a folder: trainer and callbacks; started again it goes on."""

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
from lightning_modules.trainer_config import TrainerConfig
from spectrostream.errors import UserError


class TrainingStoppedError(UserError):
    """A run that ended before its last step; its checkpoints are there."""


@dataclass(frozen=True)
class FitResult:
    """What a finished training was.

    steps: generator updates. seconds: of training over all attempts. audio_seconds: trained on. float32_layers:
    convolutions that the CPU computes wrongly in the short number format of `trainer.precision` and that ran in
    float32.
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
    """Trains in `folder` up to the module's max_steps, from its newest valid checkpoint if there is one.

    Afterwards the module's codec has the averaged weights, where they are averaged. callbacks: further ones.
    """
    module.bad_batches = folder / "bad-batches"
    clock = TrainingClock(report, config.log_every)
    checkpoint = RunCheckpoint(
        folder / "checkpoints",
        every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        keep_best=config.keep_best,
    )
    preemption = Preemption(checkpoint)
    # The clock comes first: a checkpoint then holds the time of the step it was written after.
    ordered = [clock, *callbacks, CollapseWatch(), checkpoint, preemption, clock.data_wait]
    with opened_loggers(config, folder, run_name) as loggers, warnings.catch_warnings():
        _ignore_what_is_meant()
        trainer = build_trainer(module, config, ordered, loggers)
        bind_ranks(trainer)
        found = agreed_checkpoint(trainer, checkpoint.folder)
        trainer.fit(module, datamodule=data, ckpt_path=found, weights_only=True)
        # Within the loggers' reach: they are told that the run failed.
        preemption.raise_if_preempted()
        _require_good_end(trainer, module)
    module.adopt_averaged_weights()
    layers = module.precision.float32_layers
    return FitResult(trainer.global_step, clock.seconds, clock.audio_seconds, layers)


def _require_good_end(trainer: lightning.Trainer, module: CodecTraining) -> None:
    if trainer.global_step < module.config.max_steps:
        # A callback, for instance: Lightning then returns as if all were done.
        raise TrainingStoppedError(
            f"training stopped at step {trainer.global_step} of {module.config.max_steps}; "
            "type the same command again to go on"
        )
    module.guard.require_good_end()


def build_trainer(
    module: CodecTraining, config: TrainerConfig, callbacks: list[Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """Lightning's trainer for a run counted in generator updates; prepares the module to be executed as configured."""
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
    # Casting is done in the training step, see `Precision`; Lightning's own would be one more.
    module.precision_name = config.precision
    if config.channels_last:
        lay_out_channels_last(module.codec, module.discriminator)
    if config.checkpoint_activations:
        checkpoint_activations(module.codec, module.discriminator)
    if config.compile:
        compile_training(module.codec, module.discriminator)


def _ignore_what_is_meant() -> None:
    messages = (
        # Data at hand in memory needs no workers; small models on CPU machines are a use of ours.
        ".*does not have many workers.*",
        ".*available but not used.*",
        # Lightning's own use of a torch interface that torch 2.13 calls old, and torch's compiler looking at what it
        # compiles.
        ".*isinstance.treespec, LeafSpec.*",
        "The .grad attribute of a Tensor that is not a leaf.*",
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
