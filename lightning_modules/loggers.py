"""Where the numbers of a run are written."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from lightning_modules.trainer_config import TrainerConfig


def build_loggers(config: TrainerConfig, folder: Path, run_name: str | None) -> list[Logger]:
    """CSV, and what `trainer.wandb` asks for."""
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
