"""One run in its own folder: trains or resumes, evaluates, writes records and cards."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ablations.assembly import data_module, training_module
from ablations.evaluate import evaluate_run, evaluation_identity
from ablations.provenance import read_json, write_json
from ablations.run_folder import RunFolder
from ablations.run_record import describe
from ablations.schema import ExperimentConfig
from ablations.signature import signature
from ablations.study import Run
from ablations.training_samples import sampling
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.fit import FitResult, fit
from reports.records import write_card, write_records
from spectrostream.atomic_files import lock
from spectrostream.errors import UserError
from spectrostream.weights import save_codec

Report = Callable[[str, int, Mapping[str, float]], None]
"""(phase in words, generator updates so far, metrics that this update logged) -> None."""


class RunBusyError(UserError):
    """Another process uses this run's folder."""


def folder_of(runs: Path, run: Run, data_fingerprint: str) -> Path:
    """Return the folder of a study's run: the name is for people, the signature identifies the run."""
    return runs / f"{run.name}-{signature(run.config, data_fingerprint, run.start_fingerprint)}"


def has_results(folder: Path) -> bool:
    """Return True if the run was trained and evaluated, also under another protocol."""
    return RunFolder(folder).done.exists()


def is_done(folder: Path, run: Run) -> bool:
    """Return True if the run was trained, and evaluated under its present configuration."""
    done = read_json(RunFolder(folder).done)
    return done is not None and done["evaluation"] == evaluation_identity(run)


def train_and_evaluate(run: Run, folder: Path, *, report: Report | None = None) -> None:
    """Train or resume a run of a study, then evaluate it; the last file is DONE.json.

    Args:
        folder: The run's folder.
        report: Called with the progress.

    Raises:
        RunBusyError: Another process uses the folder.
    """
    report = report or (lambda _phase, _step, _metrics: None)
    files = RunFolder(folder)
    with locked(folder):
        files.failed.unlink(missing_ok=True)
        files.done.unlink(missing_ok=True)
        data = data_module(run.config)
        if not files.trained.exists():
            describe(folder, run.config, data, run.start_fingerprint)
        result = trained(run.config, folder, data, report, run_name=run.name, start_fingerprint=run.start_fingerprint)
        report("evaluating", result.steps, {})
        records, cards = evaluate_run(run, folder, data, result)
        write_records(records, files.records)
        for card in cards:
            write_card(card, files.card(card.name))
        write_json({"evaluation": evaluation_identity(run), "steps": result.steps}, files.done)


def trained(
    config: ExperimentConfig,
    folder: Path,
    data: StereoMusicDataModule,
    report: Report,
    *,
    run_name: str,
    start_fingerprint: str = "",
) -> FitResult:
    """Train, resume, or read the result of a finished training; the first process writes the weights.

    Args:
        config: Of the run.
        folder: The run's folder, which this process has locked.
        data: The corpus.
        report: Called with the progress.
        run_name: The name for the loggers.
        start_fingerprint: The fingerprint that the weights at `training.start_from` must have; empty allows any.
    """
    files = RunFolder(folder)
    finished = read_json(files.trained)
    if finished is not None and files.weights.exists():
        return FitResult(**finished)
    _quiet_lightning()
    report("training", 0, {})
    module = training_module(config, folder, start_fingerprint)
    data.failure_list = files.unreadable
    with sampling(config, folder, data) as samples, _keyboard_interrupts():
        progress = partial(report, "training")
        result = fit(module, data, config.trainer, folder, report=progress, run_name=run_name, callbacks=samples)
    if module.global_rank == 0:
        save_codec(module.codec, files.weights)
        write_json(dataclasses.asdict(result), files.trained)
    return result


def _quiet_lightning() -> None:
    """Hide Lightning's hints; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning turns it into an exit with code 1."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the system frees the lock of a killed process.

    Raises:
        RunBusyError: Another process has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder).lock.open("wb") as file:
        if not lock(file, wait=False):
            raise RunBusyError(f"{folder} is in use by another process; wait for it or stop it")
        file.write(str(os.getpid()).encode())
        file.flush()
        yield
