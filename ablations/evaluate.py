"""Evaluates a trained run: scores, cards and decoded audio."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

from ablations.assembly import (
    deployed_codec,
    evaluation_protocol,
    evaluation_segments,
    initial_codec,
    segment_limit,
)
from ablations.provenance import read_json
from ablations.run_folder import RunFolder
from ablations.signature import signature
from ablations.study import BASELINE, Run
from ablations.zero_codes import ZeroCodes
from datamodules.stereo_music import StereoMusicDataModule
from lightning_modules.fit import FitResult
from reports.evaluation import Segment, evaluate
from reports.metrics.cost import macs_per_second
from reports.metrics.visqol import VisqolPool
from reports.records import SystemCard
from spectrostream.added_keys import identity_of
from spectrostream.interface import AudioCodec, TrainableCodec

# The baseline's learning checks: the untrained codec, and the trained decoder without codes.
STEP_0 = "step0"
ZERO_CODES = "zero-codes"


def evaluation_identity(run: Run) -> str:
    """Return a hash of how a codec is evaluated: operating points, metrics, segments."""
    plain = identity_of(run.config.evaluation)
    plain.pop("workers")  # processes change no score
    # The protocol counts the segments of a table.
    plain["segments"] = None if run.config.data.evaluation_segments else segment_limit(run.config)
    plain["protocol"] = evaluation_protocol(run.config).hash
    if run.variant.role == BASELINE:  # its learning checks are evaluated at these levels
        plain["compared_at"] = run.compared_at
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def evaluate_run(
    run: Run, folder: Path, data: StereoMusicDataModule, result: FitResult
) -> tuple[pd.DataFrame, list[SystemCard]]:
    """Evaluate a trained run, and the learning checks of a baseline; write the audio into the run's folder.

    Args:
        folder: The run's folder, with the trained weights.
        data: Has the held-out segments.
        result: The run's training.

    Returns:
        The scores (the columns are `reports.records.COLUMNS`), and a card for each codec, the run's own first.
    """
    config = run.config
    files = RunFolder(folder)
    segments = evaluation_segments(config, data)
    codec = deployed_codec(files.weights)
    shutil.rmtree(files.audio, ignore_errors=True)  # an earlier evaluation may have other levels or segments
    audio = files.audio if config.evaluation.keep_audio else None
    if audio is not None:
        _write_references(segments, files.reference_audio)
    pool = VisqolPool(config.evaluation.workers) if config.evaluation.visqol else nullcontext()
    with pool as visqol:
        frames = [
            evaluate(run.name, codec, segments, levels=config.evaluation.levels, visqol=visqol, audio_folder=audio)
        ]
        cards = [_card(run, codec, read_json(files.facts), result)]
        if run.variant.role == BASELINE:
            for name, title, checked in _learning_checks(run, codec):
                # No ViSQOL: the cheap distances show what the codec learnt.
                frames.append(
                    evaluate(name, checked, segments, levels=[run.compared_at], visqol=None, audio_folder=audio)
                )
                cards.append(_check_card(cards[0], name, title))
    return pd.concat(frames, ignore_index=True), cards


def _learning_checks(run: Run, codec: TrainableCodec) -> Iterator[tuple[str, str, AudioCodec]]:
    """Yield name, title and codec of each codec that a trained one must beat."""
    yield f"{run.name}@{STEP_0}", "untrained (step 0)", initial_codec(run.config)
    if codec.takes_zero_levels:
        yield f"{run.name}@{ZERO_CODES}", "trained decoder, zero codes", ZeroCodes(codec)


def _card(run: Run, codec: TrainableCodec, facts: dict[str, Any], result: FitResult) -> SystemCard:
    latency = codec.latency_samples
    return SystemCard(
        name=run.name,
        title=run.variant.title,
        role=run.variant.role,
        change=run.variant.change,
        changes={key: value for key, value in run.variant.set.items() if not key.startswith("evaluation.")},
        axis=run.variant.axis,
        signature=signature(run.config, facts["data_fingerprint"], run.start_fingerprint),
        parameters=codec.network_parameters,
        codebook_parameters=codec.codebook_parameters,
        macs_per_second=macs_per_second(codec),
        latency_ms=None if latency is None else 1000 * latency / codec.sample_rate,
        is_causal=codec.is_causal,
        sample_rate=codec.inner_sample_rate,
        steps=result.steps,
        training_seconds=result.seconds,
        audio_seconds_seen=result.audio_seconds,
        seed=run.seed,
        versions=facts["versions"],
        data_fingerprint=facts["data_fingerprint"],
        protocol_hash=evaluation_protocol(run.config).hash,
        git_revision=facts["git_revision"],
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


def failed_card(run: Run, reason: str) -> SystemCard:
    """Return the card of a run that did not finish."""
    return SystemCard(
        name=run.name,
        title=run.variant.title,
        role=run.variant.role,
        change=run.variant.change,
        axis=run.variant.axis,
        seed=run.seed,
        status="failed",
        status_reason=reason,
    )


def _write_references(segments: list[Segment], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for segment in segments:
        path = folder / f"{segment.name}.flac"
        soundfile.write(path, segment.audio.clamp(-1, 1).T.numpy(), 48000, subtype="PCM_24")
