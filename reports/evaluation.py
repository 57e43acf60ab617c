"""From a codec and segments of audio to records: code, count the bits, decode, score, keep the decoded audio."""

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

from reports.metrics import spectral as spectral_metrics
from reports.metrics import stereo as stereo_metrics
from reports.metrics import visqol as visqol_scores
from reports.metrics.cost import device_of
from reports.metrics.score import Score
from reports.metrics.visqol import PendingStereoVisqol, VisqolPool
from reports.records import COLUMNS, METRICS, EvaluationProtocol, check_records
from spectrostream.interface import AudioCodec

SAMPLE_RATE = spectral_metrics.SAMPLE_RATE
_SCORING_PACKAGES = ("torch", "torchaudio", "scipy", "visqol-python")
_VISQOL_METRICS = ("visqol_lr", "visqol_m", "visqol_s")


# Raised with every change of the code that changes a score: scores before and after are not comparable.
METRICS_VERSION = 1


class Segment(NamedTuple):
    """A stretch of a track to be coded on its own. audio: `[2, samples]` float32 in [-1, 1] at 48 kHz."""

    track: str
    name: str  # unique among all segments; names the decoded file
    audio: Tensor


class _Outcome(NamedTuple):
    """One segment at one number of levels; ViSQOL's scores may still be on their way."""

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
    """Score `codec` on every segment at every number of levels: records with all of METRICS.

    Without a `visqol` pool its scores are missing with that reason. With an `audio_folder` the decoded audio is kept as
    24-bit FLAC in `<audio_folder>/<system>/<levels>/<segment>.flac`. `progress` is told each step in words. The codec
    is set to evaluation mode meanwhile.

    Raises ValueError for another sample rate, channels that do not fit, levels the codec lacks, names that clash, or a
    codec whose output has not the shape of its input; VisqolWorkerError if a worker is lost.
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
    """The protocol of `evaluate` as this installation runs it."""
    return EvaluationProtocol(
        sample_rate=SAMPLE_RATE,
        segment_seconds=segment_seconds,
        segment_table=segment_table,
        settings=_settings(),
        # "+cpu" and "+cu128" compute the same scores.
        versions={name: importlib.metadata.version(name).split("+")[0] for name in _SCORING_PACKAGES},
    )


def score_pair(reference: Tensor, estimate: Tensor) -> dict[str, Score]:
    """All metrics but ViSQOL of two `[2, samples]` at 48 kHz, under the names of METRICS."""
    cues = stereo_metrics.cue_errors(reference, estimate)
    return {
        "mel_distance": spectral_metrics.mel_distance(reference, estimate),
        "stft_distance": spectral_metrics.stft_distance(reference, estimate),
        "si_sdr": spectral_metrics.si_sdr(reference, estimate),
        "sdr_m": stereo_metrics.sdr_mid(reference, estimate),
        "sdr_s": stereo_metrics.sdr_side(reference, estimate),
        "ild_error": cues.ild,
        "ipd_error": cues.ipd,
        "ic_error": cues.ic,
        "width_error": stereo_metrics.width_error(reference, estimate),
        "phase_consistency": stereo_metrics.phase_consistency(reference, estimate),
        "log_spectral_distance": spectral_metrics.log_spectral_distance(reference, estimate),
        "clipped_samples": Score(float((estimate.abs() > 1).sum())),
    }


@contextmanager
def evaluation_mode(codec: AudioCodec) -> Iterator[None]:
    """The codec in evaluation mode; afterwards each of its modules is as it was."""
    modules = list(codec.modules()) if isinstance(codec, nn.Module) else []
    before = [module.training for module in modules]
    if isinstance(codec, nn.Module):
        codec.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _settings() -> dict[str, Any]:
    return {
        "code": METRICS_VERSION,
        "spectral": spectral_metrics.SETTINGS,
        "stereo": stereo_metrics.SETTINGS,
        "visqol": visqol_scores.SETTINGS,
    }


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
        scores |= dict.fromkeys(_VISQOL_METRICS, Score.missing("ViSQOL was not run"))
    else:
        pending = visqol.submit_stereo(label, segment.audio.numpy(), estimate.numpy())
    if audio_folder is not None:
        _save(estimate, audio_folder / f"{label}.flac")
    return _Outcome(segment, bits, scores, pending)


def _code(codec: AudioCodec, audio: Tensor, levels: int, label: str) -> tuple[Tensor, int]:
    """Decoded `[2, samples]` on the CPU, and the bits of its codes."""
    batch = audio[None].to(device_of(codec))
    codes = codec.encode(batch, levels=levels)
    decoded = codec.decode(codes, length=audio.shape[-1])
    if decoded.shape != batch.shape:
        raise ValueError(f"{label}: decoded {list(decoded.shape)} from {list(batch.shape)}; a codec keeps the shape")
    return decoded[0].float().cpu(), codec.bits(codes)


def _save(audio: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # What lies beyond full scale does not fit a file; `clipped_samples` says how much that was.
    soundfile.write(path, audio.clamp(-1, 1).T.numpy(), SAMPLE_RATE, subtype="PCM_24")


def _rows(system_name: str, levels: int, outcomes: Sequence[_Outcome]) -> Iterator[tuple[Any, ...]]:
    seconds = sum(outcome.segment.audio.shape[-1] for outcome in outcomes) / SAMPLE_RATE
    kbps = sum(outcome.bits for outcome in outcomes) / seconds / 1000 if seconds else math.nan
    for outcome in outcomes:
        scores = outcome.scores
        if outcome.visqol is not None:
            scores = scores | dict(zip(_VISQOL_METRICS, outcome.visqol.result(), strict=True))
        segment = outcome.segment
        for metric in METRICS:
            yield (system_name, levels, kbps, segment.track, segment.name, metric, *scores[metric])
