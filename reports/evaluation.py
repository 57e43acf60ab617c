"""Evaluate a codec on segments of audio: encode, count the bits, decode, score, save the decoded audio."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import soundfile
import torch
from torch import Tensor, nn

from reports.metrics import catalog
from reports.metrics.catalog import METRICS, score_pair, visqol_scores
from reports.metrics.cost import device_of
from reports.metrics.score import Score
from reports.metrics.spectral import SAMPLE_RATE
from reports.metrics.visqol import PendingStereoVisqol, StereoVisqol, VisqolPool
from reports.records import COLUMNS, EvaluationProtocol, check_records
from spectrostream.interface import AudioCodec

_SCORING_PACKAGES = ("torch", "torchaudio", "scipy", "visqol-python")


class Segment(NamedTuple):
    """A part of a track that is coded and scored on its own."""

    track: str
    name: str  # unique among all segments; names the decoded file
    audio: Tensor  # the reference: `[2, samples]` float32 in [-1, 1] at 48 kHz


class _Outcome(NamedTuple):
    """One segment at one number of levels; ViSQOL's scores may still be pending."""

    segment: Segment
    bits: int
    scores: dict[str, Score]
    visqol: PendingStereoVisqol | None


def evaluate(
    system_name: str,
    codec: AudioCodec,
    segments: Sequence[Segment],
    *,
    levels: Sequence[int],
    visqol: VisqolPool | None,
    audio_folder: Path | None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Score a codec on every segment at every number of levels.

    The codec is in evaluation mode while this runs.

    Args:
        system_name: Names the codec in the records.
        codec: A stereo codec at 48 kHz.
        segments: What is coded and scored.
        levels: Numbers of quantizer levels.
        visqol: Computes ViSQOL's scores; None leaves them missing with that reason.
        audio_folder: Receives the decoded audio as 24-bit FLAC, `<system>/<levels>/<segment>.flac`; None saves nothing.
        progress: Receives a line of text for each step.

    Returns:
        Records with every metric of `METRICS`; see `reports.records`.

    Raises:
        ValueError: If the sample rate, the channels or the levels do not fit the codec, if names clash, or if the codec
            changes the shape of the audio.
        VisqolWorkerError: If a worker was lost.
    """
    _check(system_name, codec, segments, levels)
    tell = progress or (lambda _: None)
    outcomes: dict[int, list[_Outcome]] = {count: [] for count in levels}
    with evaluation_mode(codec), torch.inference_mode():
        for count in levels:
            for segment in segments:
                tell(f"{system_name}, {count} levels: {segment.name}")
                outcome = _outcome(system_name, codec, segment, count, visqol, audio_folder)
                outcomes[count].append(outcome)
    if visqol is not None:
        tell(f"{system_name}: waiting for ViSQOL")
    rows = [row for count, done in outcomes.items() for row in _rows(system_name, count, done)]
    return check_records(pd.DataFrame(rows, columns=list(COLUMNS)))


def protocol(segment_seconds: float | None = 10.0, segment_table: str = "") -> EvaluationProtocol:
    """Describe how `evaluate` scores with this installation.

    Args:
        segment_seconds: Length of the segments; None if a table lists them.
        segment_table: Identifies that table.

    Returns:
        The protocol; scores with the same hash are comparable.
    """
    return EvaluationProtocol(
        sample_rate=SAMPLE_RATE,
        segment_seconds=segment_seconds,
        segment_table=segment_table,
        settings=catalog.SETTINGS,
        # "+cpu" and "+cu128" compute the same scores.
        versions={name: importlib.metadata.version(name).split("+")[0] for name in _SCORING_PACKAGES},
    )


@contextmanager
def evaluation_mode(codec: AudioCodec) -> Iterator[None]:
    """Keep the codec in evaluation mode inside the context; afterwards each module has its previous mode."""
    modules = list(codec.modules()) if isinstance(codec, nn.Module) else []
    before = [module.training for module in modules]
    if isinstance(codec, nn.Module):
        codec.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _check(system_name: str, codec: AudioCodec, segments: Sequence[Segment], levels: Sequence[int]) -> None:
    if codec.sample_rate != SAMPLE_RATE or codec.channels != 2:
        raise ValueError(
            f"{system_name} codes {codec.channels} channels at {codec.sample_rate} Hz; systems are compared on"
            f" 2 channels at {SAMPLE_RATE} Hz: wrap it so that it takes and returns those"
        )
    if not segments or not levels:
        raise ValueError(f"nothing to evaluate: {len(segments)} segments at {len(levels)} numbers of levels")
    refused = [count for count in levels if not 1 <= count <= codec.levels]
    if refused or len(set(levels)) < len(levels):
        raise ValueError(f"levels is {list(levels)}; {system_name} has 1 .. {codec.levels}, each asked for once")
    names = [segment.name for segment in segments]
    for name in (system_name, *names):
        if Path(name).name != name:
            raise ValueError(f"{name!r} names a folder or file of the decoded audio: no slashes, not empty")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"segments need names of their own; used more than once: {twice}")
    for segment in segments:
        if segment.audio.ndim != 2 or segment.audio.shape[0] != 2:
            raise ValueError(f"segment {segment.name}: audio is [2, samples]; given {list(segment.audio.shape)}")


def _outcome(
    system_name: str,
    codec: AudioCodec,
    segment: Segment,
    levels: int,
    visqol: VisqolPool | None,
    audio_folder: Path | None,
) -> _Outcome:
    label = f"{system_name}/{levels}/{segment.name}"
    estimate, bits = _code(codec, segment.audio, levels, label)
    if not estimate.isfinite().all():
        return _Outcome(segment, bits, dict.fromkeys(METRICS, Score.missing("the output is not finite")), None)
    scores = score_pair(segment.audio, estimate)
    pending = None
    if visqol is None:
        scores |= visqol_scores(StereoVisqol.missing("ViSQOL was not run"))
    else:
        pending = visqol.submit_stereo(label, segment.audio.numpy(), estimate.numpy())
    if audio_folder is not None:
        _save(estimate, audio_folder / f"{label}.flac")
    return _Outcome(segment, bits, scores, pending)


def _code(codec: AudioCodec, audio: Tensor, levels: int, label: str) -> tuple[Tensor, int]:
    """Encode and decode `[2, samples]`: the decoded audio on the CPU, and the number of bits of its codes."""
    batch = audio[None].to(device_of(codec))
    codes = codec.encode(batch, levels=levels)
    decoded = codec.decode(codes, length=audio.shape[-1])
    if decoded.shape != batch.shape:
        raise ValueError(f"{label}: decoded {list(decoded.shape)} from {list(batch.shape)}; a codec keeps the shape")
    return decoded[0].float().cpu(), codec.bits(codes)


def _save(audio: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file cannot hold samples beyond full scale; the metric `clipped_samples` counts them.
    soundfile.write(path, audio.clamp(-1, 1).T.numpy(), SAMPLE_RATE, subtype="PCM_24")


def _rows(system_name: str, levels: int, outcomes: Sequence[_Outcome]) -> Iterator[tuple[Any, ...]]:
    seconds = sum(outcome.segment.audio.shape[-1] for outcome in outcomes) / SAMPLE_RATE
    kbps = sum(outcome.bits for outcome in outcomes) / seconds / 1000 if seconds else math.nan
    for outcome in outcomes:
        scores = outcome.scores
        if outcome.visqol is not None:
            scores = scores | visqol_scores(outcome.visqol.result())
        segment = outcome.segment
        for metric in METRICS:
            yield (system_name, levels, kbps, segment.track, segment.name, metric, *scores[metric])
