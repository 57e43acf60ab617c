"""What the launcher of a run knows: SLURM's environment, and the checkpoint that all its processes go on from."""

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
    """For the Trainer: in a task that srun started, SLURM without Lightning's requeueing.

    That one writes checkpoints of its own beside the run, which any later run in the folder would load; ours ends with
    exit code 75 and the job script requeues.
    """
    # Without SLURM's variables nobody needs to be told that srun exists, which `detect` does.
    is_task = "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ
    return [SLURMEnvironment(auto_requeue=False)] if is_task and SLURMEnvironment.detect() else []


def agreed_checkpoint(trainer: lightning.Trainer, folder: Path) -> Path | None:
    """The newest valid checkpoint in `folder`, searched and read by the first process alone and told to the others.

    To be called in every process, before `trainer.fit`. Unfinished files of a killed process are removed.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return _search(folder)
    if "TORCHELASTIC_RUN_ID" in os.environ or isinstance(strategy.cluster_environment, SLURMEnvironment):
        strategy.setup_environment()  # `fit` finds it done
        return strategy.broadcast(_search(folder) if trainer.is_global_zero else None)
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        # Started by a process that had searched.
        return Path(os.environ[_TOLD]) if os.environ[_TOLD] else None
    found = _search(folder)
    os.environ[_TOLD] = str(found or "")
    return found


def _search(folder: Path) -> Path | None:
    remove_unfinished(folder)
    return latest_valid_checkpoint(folder)
