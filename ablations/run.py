"""One run of a study in its own folder: train, evaluate, write its records and its card. Run again, it goes on."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

from ablations.assembly import (
    data_module,
    deployed_codec,
    evaluation_protocol,
    evaluation_segments,
    initial_codec,
    network_parameters,
    segment_limit,
    training_module,
)
from ablations.experiment import ExperimentConfig, signature
from ablations.provenance import read_json, write_json
from ablations.run_folder import describe
from ablations.study import BASELINE, Cell
from ablations.training_samples import sampling
from ablations.zero_codes import ZeroCodes
from datamodules.stereo_music import StereoMusicDataModule
from datamodules.workers.unreadable_files import FAILURE_LIST
from lightning_modules.fit import FitResult, fit
from reports.evaluation import Segment, evaluate
from reports.metrics.cost import macs_per_second
from reports.metrics.visqol import VisqolPool
from reports.records import SystemCard, write_card, write_records
from spectrostream.codec import SpectroStream
from spectrostream.errors import UserError
from spectrostream.interface import AudioCodec
from spectrostream.other_codecs.dac import Dac
from spectrostream.registry import Codec
from spectrostream.weights import save_codec

# Checks of the baseline: the untrained codec, and the trained decoder without any codes.
STEP_0 = "step0"
ZERO_CODES = "zero-codes"

Report = Callable[[str, int, Mapping[str, float]], None]
"""Told the phase in words, the generator updates done, and what was logged of this one if anything was."""


class CellBusyError(UserError):
    """Another process works in this run's folder."""


def cell_folder(cells: Path, cell: Cell, data_fingerprint: str) -> Path:
    """Where the cell lives: its name for people, its signature for identity."""
    return cells / f"{cell.name}-{signature(cell.config, data_fingerprint, cell.start_fingerprint)}"


def has_results(folder: Path) -> bool:
    """True if the cell was trained and evaluated, be it under another protocol; the report says so then."""
    return (folder / "DONE.json").exists()


def is_done(folder: Path, cell: Cell) -> bool:
    """True if the cell was trained, and evaluated as it is configured now."""
    done = read_json(folder / "DONE.json")
    return done is not None and done["evaluation"] == evaluation_identity(cell)


def evaluation_identity(cell: Cell) -> str:
    """Hash of how a codec is evaluated: operating points, metrics, segments; not of how many processes do it."""
    plain = dataclasses.asdict(cell.config.evaluation)
    plain.pop("workers")
    # Of a table the protocol says how many.
    plain["segments"] = None if cell.config.data.evaluation_segments else segment_limit(cell.config)
    plain["protocol"] = evaluation_protocol(cell.config).hash
    if cell.variant.role == BASELINE:  # its learning checks are made there
        plain["compared_at"] = cell.compared_at
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def run_cell(cell: Cell, folder: Path, *, report: Report | None = None) -> None:
    """Trains (or resumes) and evaluates `cell` in `folder`; ends with DONE.json. CellBusyError if somebody is at it."""
    report = report or (lambda _phase, _step, _metrics: None)
    with locked(folder):
        (folder / "failed.json").unlink(missing_ok=True)
        (folder / "DONE.json").unlink(missing_ok=True)
        data = data_module(cell.config)
        if not (folder / "trained.json").exists():
            describe(folder, cell.config, data, cell.start_fingerprint)
        result = trained(
            cell.config, folder, data, report, run_name=cell.name, start_fingerprint=cell.start_fingerprint
        )
        report("evaluating", result.steps, {})
        records, cards = _evaluate(cell, folder, data, result)
        write_records(records, folder / "records.csv")
        for card in cards:
            write_card(card, folder / f"card-{card.name}.json")
        write_json({"evaluation": evaluation_identity(cell), "steps": result.steps}, folder / "DONE.json")


def trained(
    config: ExperimentConfig,
    folder: Path,
    data: StereoMusicDataModule,
    report: Report,
    *,
    run_name: str,
    start_fingerprint: str = "",
) -> FitResult:
    """The finished training of `config` in `folder`: done before, resumed, or done now; leaves codec.safetensors.

    start_fingerprint: of the weights at `training.start_from`, checked where they are loaded.
    """
    finished = read_json(folder / "trained.json")
    if finished is not None and (folder / "codec.safetensors").exists():
        return FitResult(**finished)
    _quiet_lightning()
    report("training", 0, {})
    module = training_module(config, folder, start_fingerprint)
    data.failure_list = folder / FAILURE_LIST
    with sampling(config, folder, data) as samples, _keyboard_interrupts():
        told = partial(report, "training")
        result = fit(module, data, config.trainer, folder, report=told, run_name=run_name, callbacks=samples)
    if module.global_rank == 0:
        save_codec(module.codec, folder / "codec.safetensors")
        write_json(dataclasses.asdict(result), folder / "trained.json")
    return result


def _evaluate(
    cell: Cell, folder: Path, data: StereoMusicDataModule, result: FitResult
) -> tuple[pd.DataFrame, list[SystemCard]]:
    config = cell.config
    segments = evaluation_segments(config, data)
    codec = deployed_codec(folder / "codec.safetensors")
    shutil.rmtree(folder / "audio", ignore_errors=True)  # of an evaluation at other levels or of other segments
    audio = folder / "audio" if config.evaluation.keep_audio else None
    if audio is not None:
        _write_references(segments, audio / "reference")
    pool = VisqolPool(config.evaluation.workers) if config.evaluation.visqol else nullcontext()
    with pool as visqol:
        frames = [
            evaluate(cell.name, codec, segments, levels=config.evaluation.levels, visqol=visqol, audio_folder=audio)
        ]
        cards = [_card(cell, codec, read_json(folder / "run.json"), result)]
        if cell.variant.role == BASELINE:
            for name, title, checked in _learning_checks(cell, codec):
                # Without ViSQOL: the cheap distances tell.
                frames.append(
                    evaluate(name, checked, segments, levels=[cell.compared_at], visqol=None, audio_folder=audio)
                )
                cards.append(_check_card(cards[0], name, title))
    return pd.concat(frames, ignore_index=True), cards


def _learning_checks(cell: Cell, codec: Codec) -> Iterator[tuple[str, str, AudioCodec]]:
    """Name, title and codec of what a trained codec has to beat."""
    yield f"{cell.name}@{STEP_0}", "untrained (step 0)", initial_codec(cell.config)
    if isinstance(codec, SpectroStream):
        yield f"{cell.name}@{ZERO_CODES}", "trained decoder, zero codes", ZeroCodes(codec)


def _card(cell: Cell, codec: Codec, run: dict[str, Any], result: FitResult) -> SystemCard:
    latency = codec.latency_samples
    return SystemCard(
        name=cell.name,
        title=cell.variant.title,
        role=cell.variant.role,
        change=cell.variant.change,
        changes={key: value for key, value in cell.variant.set.items() if not key.startswith("evaluation.")},
        axis=cell.variant.axis,
        signature=signature(cell.config, run["data_fingerprint"], cell.start_fingerprint),
        parameters=network_parameters(codec),
        codebook_parameters=codec.codebook_parameters,
        macs_per_second=macs_per_second(codec),
        latency_ms=None if latency is None else 1000 * latency / codec.sample_rate,
        is_causal=codec.is_causal,
        sample_rate=codec.config.sample_rate if isinstance(codec, Dac) else codec.sample_rate,
        steps=result.steps,
        training_seconds=result.seconds,
        audio_seconds_seen=result.audio_seconds,
        seed=cell.seed,
        versions=run["versions"],
        data_fingerprint=run["data_fingerprint"],
        protocol_hash=evaluation_protocol(cell.config).hash,
        git_revision=run["git_revision"],
    )


def _check_card(of: SystemCard, name: str, title: str) -> SystemCard:
    untrained = name.endswith(STEP_0)
    return dataclasses.replace(
        of,
        name=name,
        title=title,
        role="check",
        steps=0 if untrained else of.steps,
        training_seconds=0.0 if untrained else of.training_seconds,
        audio_seconds_seen=0.0 if untrained else of.audio_seconds_seen,
    )


def failed_card(cell: Cell, reason: str) -> SystemCard:
    """What is known of a cell that did not finish."""
    return SystemCard(
        name=cell.name,
        title=cell.variant.title,
        role=cell.variant.role,
        change=cell.variant.change,
        axis=cell.variant.axis,
        seed=cell.seed,
        status="failed",
        status_reason=reason,
    )


def _write_references(segments: list[Segment], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for segment in segments:
        path = folder / f"{segment.name}.flac"
        soundfile.write(path, segment.audio.clamp(-1, 1).T.numpy(), 48000, subtype="PCM_24")


def _quiet_lightning() -> None:
    """Its hints go, its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Lightning turns a KeyboardInterrupt into an exit with code 1."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process per folder; the system frees the lock even of a killed one. Raises CellBusyError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CellBusyError(f"{folder} is being worked on by another process; wait for it or stop it") from error
        file.write(str(os.getpid()))
        file.flush()
        yield
