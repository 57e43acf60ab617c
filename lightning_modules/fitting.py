"""A training run in a folder: trainer, loggers, checkpoints, and the clock; started again it goes on."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lightning_modules.checkpoints import RunCheckpoint, latest_valid_checkpoint
from lightning_modules.codec_training import CodecTraining
from spectrostream.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed")
WANDB_MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class TrainerConfig:
    """Where and how a run executes; nothing here changes what it computes, apart from precision.

    devices: processes per node, one for each accelerator (or CPU process). threads: of each process, 0 leaves torch's
    own. validate_every, checkpoint_every, log_every: in generator updates; 0 turns validation off.
    keep_checkpoints: the last ones that stay, 2 or more: one to fall back to.
    wandb: "disabled", "offline" or "online" (needs an account).
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    threads: int = 0
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 50
    wandb: str = "disabled"
    wandb_project: str = "spectrostream"

    def __post_init__(self) -> None:
        for key, allowed in (("precision", PRECISIONS), ("wandb", WANDB_MODES)):
            if getattr(self, key) not in allowed:
                raise ValueError(f"trainer.{key} = {getattr(self, key)!r} is not known; allowed: {', '.join(allowed)}")
        lowest = {"devices": 1, "num_nodes": 1, "threads": 0, "validate_every": 0}
        lowest |= {"checkpoint_every": 1, "keep_checkpoints": 2, "log_every": 1}
        for key, value in lowest.items():
            if getattr(self, key) < value:
                raise ValueError(f"trainer.{key} = {getattr(self, key)} is not possible; allowed: {value} or more")


class TrainingStoppedError(UserError):
    """A run that ended before its last step; its checkpoints are there."""


@dataclass(frozen=True)
class FitResult:
    """steps: generator updates; seconds: of training over all attempts; audio_seconds: heard by the generator."""

    steps: int
    seconds: float
    audio_seconds: float


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
    loggers = _loggers(config, folder, run_name)
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


def _loggers(config: TrainerConfig, folder: Path, run_name: str | None) -> list[Logger]:
    # CSV always: it is the report's source. Each attempt has its own file, or Lightning would delete the earlier ones.
    earlier = [int(path.name.removeprefix("attempt-")) for path in (folder / "logs").glob("attempt-[0-9]*")]
    attempt = max(earlier, default=-1) + 1
    loggers: list[Logger] = [
        CSVLogger(folder, name="logs", version=f"attempt-{attempt:03d}", flush_logs_every_n_steps=20)
    ]
    if config.wandb != "disabled":
        loggers.append(
            WandbLogger(
                project=config.wandb_project,
                name=run_name or folder.name,
                save_dir=folder,
                offline=config.wandb == "offline",
            )
        )
    return loggers


def _ignore_what_is_meant() -> None:
    # Data at hand in memory needs no workers; small models on CPU machines are a use of ours; the last is Lightning's
    # own use of a torch interface that torch 2.13 calls old.
    messages = (".*does not have many workers.*", ".*available but not used.*", ".*isinstance.treespec, LeafSpec.*")
    for message in messages:
        warnings.filterwarnings("ignore", message=message)
