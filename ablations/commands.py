"""What `spectrostream train`, `ablate` and `report` do."""

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
    """One training in `out`; started again it resumes.

    It refuses to go on under another configuration, unless `accept_changes` and a checkpoint can go on with it. What
    can be known to go wrong is told before anything is written.
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
        # Once more, now that nobody else works in the folder.
        changes = require_same_run(out, experiment, data.fingerprint, start, accept_changes=accept_changes)
        if is_first:
            starts.remember()
            claim(out, experiment, data, start, changes)
        shown = display if is_first else Silent()
        with _replaced_files_told(shown, out), shown.training(experiment.training.max_steps) as progress:
            try:
                trained(experiment, out, data, progress.progressed, run_name=out.name, start_fingerprint=start)
            except (TrainingDivergedError, MisconfigurationException, OtherModelError) as error:
                raise UserError(f"{out}: {error}") from error
    return RunFolder(out).weights


@contextmanager
def _replaced_files_told(display: Display | Silent, out: Path) -> Iterator[None]:
    """At the end, however it comes, one line says how many files the run has replaced by others, if any."""
    try:
        yield
    finally:
        if replaced := replaced_in_words(RunFolder(out).unreadable):
            display.say(replaced)


def ablate(
    study_name: str, overrides: Sequence[str], out: Path, jobs: int | None, display: Display
) -> tuple[Path, int]:
    """Runs what is missing of a study and writes its report; returns the page and how many runs failed."""
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
    """The report of what lies in `out`, without running anything."""
    study = load_study(study_name)
    return _report(study, study_tasks(study, overrides, out), {}, out, display)


def _report(study: Study, tasks: Sequence[Task], failures: dict[str, str], out: Path, display: Display) -> Path:
    with display.busy("measuring real-time factors"):
        measure_costs(tasks)
    with display.busy("writing the report"):
        return study_report(study, tasks, failures, out / "report")


def study_tasks(study: Study, overrides: Sequence[str], out: Path, *, to_train: bool = False) -> list[Task]:
    """Every run with its folder; each corpus is scanned once.

    to_train: the runs must be possible on this machine and with this music (ConfigError otherwise), which has what
    they are to be evaluated on (SegmentsError otherwise), and the folder remembers the weights they start from.
    """
    corpora: dict[object, StereoMusicDataModule] = {}
    checked: set[StereoMusicDataModule] = set()
    starts = Starts(out)
    tasks = []
    for run in study.runs(overrides, starts=starts):
        _require_one_process(run)
        # What scan and division depend on: a track shorter than a crop is left out, seeds and batches do not matter.
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
    """As many runs at a time as there are accelerators, or cores for their threads.

    counts: devices by kind; this machine's by default.
    """
    counts = device_counts() if counts is None else counts
    trainer = tasks[0].run.config.trainer
    kind = chosen_accelerator(trainer.accelerator, counts)
    if kind != "cpu":
        return counts[kind]
    return max(1, usable_cores() // trainer.threads) if trainer.threads else 1


def cuda_devices(tasks: Sequence[Task], counts: Mapping[str, int] | None = None) -> list[str]:
    """The CUDA devices that the study's runs share, as CUDA_VISIBLE_DEVICES names them; none for runs elsewhere."""
    counts = device_counts() if counts is None else counts
    if chosen_accelerator(tasks[0].run.config.trainer.accelerator, counts) != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(counts["cuda"])]
    return names[: counts["cuda"]]
