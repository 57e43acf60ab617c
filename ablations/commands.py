"""The commands `spectrostream train`, `ablate` and `report`, without the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from ablations.assembly import data_module, training_module
from ablations.collect_results import measure_costs, study_report
from ablations.compose import ConfigError, load_experiment
from ablations.display import Display, Silent
from ablations.initial_weights import Starts
from ablations.preflight import (
    chosen_accelerator,
    device_counts,
    require_devices,
    require_music,
    require_room,
    require_segments,
    require_writable,
    usable_cores,
)
from ablations.run import folder_of, is_done, locked, trained
from ablations.run_folder import RunFolder
from ablations.run_record import RUNS, claim, require_run_or_empty, require_same_run, require_study_or_empty
from ablations.runner import Task, run_tasks
from ablations.study import Run, Study, load_study
from datamodules.stereo_music import StereoMusicDataModule
from datamodules.workers.unreadable_files import replaced_in_words
from lightning_modules.codec_training import OtherModelError
from lightning_modules.optimization import TrainingDivergedError
from spectrostream.errors import UserError


def train(config: str, overrides: Sequence[str], out: Path, display: Display, *, accept_changes: bool = False) -> Path:
    """Train one codec in `out`, or resume its training.

    Mistakes that can be found beforehand are errors before any file is written.

    Args:
        config: A shipped configuration or a YAML file.
        overrides: `key=value` words.
        out: The run's folder.
        accept_changes: Resume under another configuration, if the checkpoint allows it.

    Returns:
        The file of the trained weights.

    Raises:
        UserError: The training is not possible, or it diverged.
    """
    require_writable(out)
    require_run_or_empty(out)
    starts = Starts(out)
    experiment = load_experiment(config, overrides, starts=starts)
    require_devices(experiment.trainer)
    data = data_module(experiment)
    display.say(data.describe())
    require_music(experiment, data.split.train_seconds)
    require_segments(data)
    start = starts.fingerprint(experiment.training.start_from, experiment.model.kind)
    require_same_run(out, experiment, data.fingerprint, start, accept_changes=accept_changes)
    if not RunFolder(out).trained.exists():
        require_room(out, training_module(experiment, out, start), experiment.trainer.keep_checkpoints)
    # The other processes of a distributed run share the folder with the first.
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    with locked(out) if is_first else nullcontext():
        # Check again: only now can no other process work in the folder.
        changes = require_same_run(out, experiment, data.fingerprint, start, accept_changes=accept_changes)
        if is_first:
            starts.remember()
            claim(out, experiment, data, start, changes)
        shown = display if is_first else Silent()
        with _count_of_replaced_files(shown, out), shown.training(experiment.training.max_steps) as progress:
            try:
                trained(experiment, out, data, progress.progressed, run_name=out.name, start_fingerprint=start)
            except (TrainingDivergedError, MisconfigurationException, OtherModelError) as error:
                raise UserError(f"{out}: {error}") from error
    return RunFolder(out).weights


@contextmanager
def _count_of_replaced_files(display: Display | Silent, out: Path) -> Iterator[None]:
    """Show at the end, also after an error, how many music files the run replaced by others."""
    try:
        yield
    finally:
        if replaced := replaced_in_words(RunFolder(out).unreadable):
            display.say(replaced)


def ablate(
    study_name: str, overrides: Sequence[str], out: Path, jobs: int | None, display: Display
) -> tuple[Path, int]:
    """Run the missing runs of a study and write its report.

    Args:
        study_name: A shipped study or a YAML file.
        overrides: `key=value` words for all runs.
        out: The study's folder.
        jobs: Runs at a time; None chooses the number from the machine.

    Returns:
        The report's page, and the number of failed runs.
    """
    require_writable(out)
    require_study_or_empty(out)
    study = load_study(study_name)
    tasks = study_tasks(study, overrides, out, to_train=True)
    waiting = [task for task in tasks if not is_done(task.folder, task.run)]
    display.say(f"{study.title}: {len(tasks)} runs, {len(tasks) - len(waiting)} done before")
    with display.runs(sum(task.run.config.training.max_steps for task in waiting)) as progress:
        devices = cuda_devices(tasks)
        failures = run_tasks(tasks, jobs=jobs or default_jobs(tasks), display=progress, devices=devices)
    return _report(study, tasks, failures, out, display), len(failures)


def report(study_name: str, overrides: Sequence[str], out: Path, display: Display) -> Path:
    """Write the report of the runs in `out` without training; return its page."""
    study = load_study(study_name)
    return _report(study, study_tasks(study, overrides, out), {}, out, display)


def _report(study: Study, tasks: Sequence[Task], failures: dict[str, str], out: Path, display: Display) -> Path:
    with display.busy("measuring real-time factors"):
        measure_costs(tasks)
    with display.busy("writing the report"):
        return study_report(study, tasks, failures, out / "report")


def study_tasks(study: Study, overrides: Sequence[str], out: Path, *, to_train: bool = False) -> list[Task]:
    """Return every run of a study with its folder. Each corpus is scanned once.

    Args:
        to_train: Check that every run is possible here, and record the weights that the runs start from in `out`.

    Raises:
        ConfigError: A run is not possible on this machine or with this music.
        SegmentsError: The music lacks evaluation segments, or trains on them.
    """
    corpora: dict[object, StereoMusicDataModule] = {}
    checked: set[StereoMusicDataModule] = set()
    starts = Starts(out)
    tasks = []
    for run in study.runs(overrides, starts=starts):
        _require_one_process(run)
        # Seeds, batches and workers change neither the scan nor the split, so such runs share one data module.
        scanned = replace(run.config.data, seed=0, batch_size=1, num_workers=0)
        data = corpora.setdefault((scanned, run.config.model.channels), data_module(run.config))
        if to_train:
            require_devices(run.config.trainer)
            require_music(run.config, data.split.train_seconds)
            if data not in checked:
                require_segments(data)
                checked.add(data)
        tasks.append(Task(run, folder_of(out / RUNS, run, data.fingerprint)))
    if to_train:
        starts.remember()
    return tasks


def _require_one_process(run: Run) -> None:
    trainer = run.config.trainer
    if trainer.devices * trainer.num_nodes > 1:
        raise ConfigError(
            "trainer.devices and trainer.num_nodes are 1 in a study, where each run is one process; "
            "type jobs=N for several runs at a time"
        )


def default_jobs(tasks: Sequence[Task], counts: Mapping[str, int] | None = None) -> int:
    """Return how many runs fit on the machine at a time: one per accelerator, or as many as have cores.

    Args:
        counts: Number of devices by kind; this machine's if None.
    """
    counts = device_counts() if counts is None else counts
    trainer = tasks[0].run.config.trainer
    kind = chosen_accelerator(trainer.accelerator, counts)
    if kind != "cpu":
        return counts[kind]
    return max(1, usable_cores() // trainer.threads) if trainer.threads else 1


def cuda_devices(tasks: Sequence[Task], counts: Mapping[str, int] | None = None) -> list[str]:
    """Return the CUDA devices for the study's runs, as CUDA_VISIBLE_DEVICES names them; empty without CUDA."""
    counts = device_counts() if counts is None else counts
    if chosen_accelerator(tasks[0].run.config.trainer.accelerator, counts) != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(counts["cuda"])]
    return names[: counts["cuda"]]
