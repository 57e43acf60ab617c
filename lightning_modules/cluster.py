"""What the launcher of a run provides: SLURM's environment, and one checkpoint from which all processes resume."""

from __future__ import annotations

import os
from pathlib import Path

import lightning
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from lightning_modules.checkpoint_files import latest_valid_checkpoint, remove_unfinished

_TOLD = "SPECTROSTREAM_RESUME_FROM"


def cluster_plugins() -> list[ClusterEnvironment]:
    """Plugins for the trainer: in a task that srun started, SLURM without Lightning's requeueing.

    Lightning's requeueing writes its own checkpoints beside the run, and any later run in the folder would load them.
    Here a run that is asked to stop ends with exit code 75, and the job script requeues it.
    """
    # `detect` prints advice about srun, which nobody needs without SLURM's variables.
    is_task = "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ
    return [SLURMEnvironment(auto_requeue=False)] if is_task and SLURMEnvironment.detect() else []


def agreed_checkpoint(trainer: lightning.Trainer, folder: Path) -> Path | None:
    """Find the newest valid checkpoint; only the first process searches, and tells the others.

    Every process must call it before `trainer.fit`. It removes unfinished files of a killed process.

    Args:
        trainer: Lightning's trainer.
        folder: The folder of the checkpoints.

    Returns:
        The checkpoint's path; None if there is none.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return _search(folder)
    if "TORCHELASTIC_RUN_ID" in os.environ or isinstance(strategy.cluster_environment, SLURMEnvironment):
        strategy.setup_environment()  # `fit` does not repeat it
        return strategy.broadcast(_search(folder) if trainer.is_global_zero else None)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        # The process that started this one has searched already.
        return Path(os.environ[_TOLD]) if os.environ[_TOLD] else None
    found = _search(folder)
    os.environ[_TOLD] = str(found or "")
    return found


def _search(folder: Path) -> Path | None:
    remove_unfinished(folder)
    return latest_valid_checkpoint(folder)
