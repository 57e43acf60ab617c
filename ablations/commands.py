"""What `spectrostream train`, `ablate` and `report` do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from ablations.assembly import data_module
from ablations.cell import cell_folder, is_done, locked, trained
from ablations.console import ConsoleDisplay, progress_bar
from ablations.experiment import ConfigError, ExperimentConfig, load_experiment, signature, to_yaml
from ablations.gathering import measure_costs, study_report
from ablations.provenance import read_json, write_json
from ablations.runner import Task, run_tasks
from ablations.study import Study, load_study
from lightning_modules.optimization import TrainingDivergedError
from spectrostream.errors import UserError

_SIGNATURE = "signature.json"


def train(config: str, overrides: Sequence[str], out: Path, console: Console) -> Path:
    """One training in `out`; started again it resumes, and refuses to go on under another configuration."""
    experiment = load_experiment(config, overrides)
    data = data_module(experiment)
    console.print(data.describe(), markup=False, highlight=False, soft_wrap=True)
    # The other processes of a distributed run share the folder with the first.
    with locked(out) if getattr(rank_zero_only, "rank", 0) == 0 else nullcontext():
        _claim(out, experiment, signature(experiment, data.fingerprint))
        with progress_bar(console) as progress:
            bar = progress.add_task("training", total=experiment.training.max_steps)
            report = lambda phase, step: progress.update(bar, description=phase, completed=step)  # noqa: E731
            try:
                trained(experiment, out, data, report, run_name=out.name)
            except (TrainingDivergedError, MisconfigurationException) as error:
                raise UserError(f"{out}: {error}") from error
    return out / "codec.safetensors"


def _claim(out: Path, experiment: ExperimentConfig, own: str) -> None:
    """The folder belongs to one configuration on one corpus."""
    before = read_json(out / _SIGNATURE)
    if before is not None and before != own:
        raise ConfigError(
            f"{out} holds a run of another configuration or corpus (see {out / 'config.yaml'}); "
            "go on with the same words as then, or choose another folder with out=FOLDER"
        )
    if getattr(rank_zero_only, "rank", 0) == 0:
        write_json(own, out / _SIGNATURE)
        (out / "config.yaml").write_text(to_yaml(experiment), encoding="utf-8")


def ablate(
    study_name: str, overrides: Sequence[str], out: Path, jobs: int | None, console: Console
) -> tuple[Path, int]:
    """Runs what is missing of a study and writes its report; returns the page and how many runs failed."""
    study = load_study(study_name)
    tasks = study_tasks(study, overrides, out)
    waiting = [task for task in tasks if not is_done(task.folder, task.cell)]
    console.print(f"{study.title}: {len(tasks)} runs, {len(tasks) - len(waiting)} done before", highlight=False)
    with ConsoleDisplay(console, total_steps=sum(task.cell.config.training.max_steps for task in waiting)) as display:
        failures = run_tasks(tasks, jobs=jobs or default_jobs(tasks), display=display)
    return _report(study, tasks, failures, out, console), len(failures)


def report(study_name: str, overrides: Sequence[str], out: Path, console: Console) -> Path:
    """The report of what lies in `out`, without running anything."""
    study = load_study(study_name)
    return _report(study, study_tasks(study, overrides, out), {}, out, console)


def _report(study: Study, tasks: Sequence[Task], failures: dict[str, str], out: Path, console: Console) -> Path:
    with console.status("measuring real-time factors"):
        measure_costs(tasks)
    with console.status("writing the report"):
        return study_report(study, tasks, failures, out / "report")


def study_tasks(study: Study, overrides: Sequence[str], out: Path) -> list[Task]:
    """Every cell with its folder; each corpus is scanned once."""
    fingerprints: dict[object, str] = {}
    tasks = []
    for cell in study.cells(overrides):
        trainer, data = cell.config.trainer, cell.config.data
        if trainer.devices * trainer.num_nodes > 1:
            raise ConfigError(
                "trainer.devices and trainer.num_nodes are 1 in a study, where each run is one process; "
                "type jobs=N for several runs at a time"
            )
        # What a scan depends on: a track shorter than a crop is left out.
        corpus = (data.root, data.crop_seconds, cell.config.model.channels)
        if corpus not in fingerprints:
            fingerprints[corpus] = data_module(cell.config).fingerprint
        tasks.append(Task(cell, cell_folder(out / "cells", cell, fingerprints[corpus])))
    return tasks


def default_jobs(tasks: Sequence[Task]) -> int:
    """As many runs at a time as there are cores for their threads; on an accelerator one."""
    trainer = tasks[0].cell.config.trainer
    if trainer.accelerator != "cpu" or not trainer.threads:
        return 1
    return max(1, _usable_cores() // trainer.threads)


def _usable_cores() -> int:
    """Of this process: a container or a batch system may grant fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
