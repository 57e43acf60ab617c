"""The records that every table, figure and page is made from: tidy scores, one card per system, one protocol.

Scores are long form, one row per (system, levels, track, segment, metric). A missing score is NaN with a reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd

COLUMNS = ("system", "levels", "kbps", "track", "segment", "metric", "value", "reason")
"""`kbps` is counted from the bits of that system at that many levels, all channels together."""

_KEY = ["system", "levels", "track", "segment", "metric"]
_TRACK_KEY = ["system", "levels", "kbps", "track", "metric"]

ROLES = ("baseline", "variant", "peer", "check")
STATUSES = ("finished", "failed")


class MetricInfo(NamedTuple):
    """How a metric is written: its title, its unit ("" if none), its direction, its decimals."""

    title: str
    unit: str
    higher_is_better: bool
    decimals: int


METRICS: dict[str, MetricInfo] = {
    "visqol_lr": MetricInfo("ViSQOL-LR", "MOS-LQO", True, 2),
    "visqol_m": MetricInfo("ViSQOL-M", "MOS-LQO", True, 2),
    "visqol_s": MetricInfo("ViSQOL-S", "MOS-LQO", True, 2),
    "mel_distance": MetricInfo("Mel distance", "", False, 2),
    "stft_distance": MetricInfo("STFT distance", "", False, 2),
    "si_sdr": MetricInfo("SI-SDR", "dB", True, 1),
    "sdr_m": MetricInfo("SDR-M", "dB", True, 1),
    "sdr_s": MetricInfo("SDR-S", "dB", True, 1),
    "ild_error": MetricInfo("ILD error", "dB", False, 1),
    "ipd_error": MetricInfo("IPD error", "rad", False, 2),
    "ic_error": MetricInfo("IC error", "", False, 2),
    "width_error": MetricInfo("Width error", "dB", False, 1),
    "phase_consistency": MetricInfo("Phase consistency", "", True, 2),
    "log_spectral_distance": MetricInfo("Log-spectral distance", "dB", False, 1),
    "clipped_samples": MetricInfo("Clipped samples", "", False, 0),
}


# ---- scores ---------------------------------------------------------------------------------------------------------


def check_records(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame, or a ValueError that says which rule of a record it breaks and where."""
    if tuple(frame.columns) != COLUMNS:
        raise ValueError(f"records have the columns {list(COLUMNS)}; these have {list(frame.columns)}")
    infinite = frame[np.isinf(frame["value"].astype(float))]
    if not infinite.empty:
        raise ValueError(f"{_where(infinite)} is infinite: write NaN and say why in `reason`")
    mute = frame[frame["value"].isna() == (frame["reason"] == "")]
    if not mute.empty:
        raise ValueError(f"{_where(mute)}: a missing value has a reason, and only a missing value has one")
    twice = frame[frame.duplicated(_KEY)]
    if not twice.empty:
        raise ValueError(f"{_where(twice)} is recorded twice: give each segment of a track its own name")
    return frame


def _where(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return " / ".join(f"{first[name]}" for name in _KEY)


def write_records(frame: pd.DataFrame, path: Path) -> None:
    """Write CSV beside `path`, then put it in place. Floats keep every bit. ValueError if `check_records` refuses."""
    check_records(frame)
    _replace(path, lambda file: frame.to_csv(file, index=False, lineterminator="\n"))


def read_records(path: Path) -> pd.DataFrame:
    """What `write_records` wrote, exactly. ValueError with the path if the columns or the rows are not records."""
    header = pd.read_csv(path, nrows=0).columns
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path}: records have the columns {list(COLUMNS)}; this file has {list(header)}")
    # Read as text and converted here: a track may well be called "NA", an empty reason is an empty text, and Python's
    # float gives back every bit whatever the version of pandas.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    try:
        frame["levels"] = frame["levels"].map(int)
        for name in ("kbps", "value"):
            frame[name] = [float(text or "nan") for text in frame[name]]
        return check_records(frame)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def track_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Segments averaged to tracks, the unit of every statistic.

    Returns columns `system, levels, kbps, track, metric, value, reason, segments, skipped`: `value` is the mean over
    the `segments` that have one, `skipped` counts those that have none. A track without any stays NaN and joins the
    reasons.
    """
    check_records(frame)
    groups = frame.groupby(_TRACK_KEY, sort=False, dropna=False)
    means = groups.agg(
        value=("value", "mean"),  # pandas leaves NaN out of the mean
        reason=("reason", lambda reasons: "; ".join(dict.fromkeys(filter(None, reasons)))),
        segments=("value", "count"),
        skipped=("value", lambda values: int(values.isna().sum())),
    ).reset_index()
    means["reason"] = means["reason"].where(means["value"].isna(), "")
    return means[[*_TRACK_KEY, "value", "reason", "segments", "skipped"]]


def _replace(path: Path, write: Callable[[IO[str]], Any]) -> None:
    """Write beside, then rename: a reader finds the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8", newline="") as file:
        write(file)
    os.replace(beside, path)  # noqa: PTH105 (the atomic one)


# ---- systems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SystemCard:
    """The facts of one system that are not scores. None: not known, or not a notion of this system.

    Raises ValueError for a role or a status that is not listed, and for a failure without its reason.
    """

    name: str  # the identifier in the records
    title: str  # the words in a table
    role: str  # one of ROLES
    change: str = ""  # the one change against the baseline, in words
    changes: dict[str, str] = field(default_factory=dict)  # dotted configuration key -> value
    axis: str = ""  # the ablation's axis: "fusion", "split", "frontend", ...
    signature: str = ""  # of the resolved configuration
    parameters: int | None = None  # of the networks, without codebooks
    codebook_parameters: int | None = None
    macs_per_second: float | None = None  # multiply-accumulates per second of audio
    encode_real_time_factor: float | None = None  # seconds of computing per second of audio
    decode_real_time_factor: float | None = None
    threads: int | None = None  # with which the real-time factors were measured
    latency_ms: float | None = None
    is_causal: bool | None = None
    sample_rate: int | None = None  # Hz
    steps: int | None = None
    training_seconds: float | None = None
    audio_seconds_seen: float | None = None
    seed: int | None = None
    status: str = "finished"  # one of STATUSES
    status_reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""
    protocol_hash: str = ""
    git_revision: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}; it is one of {', '.join(ROLES)}")
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; it is one of {', '.join(STATUSES)}")
        if self.status == "failed" and not self.status_reason:
            raise ValueError(f"{self.name}: a failed system says why in `status_reason`")


def write_card(card: SystemCard, path: Path) -> None:
    """Write JSON beside `path`, then put it in place. ValueError for NaN or infinity: an unknown fact is None."""
    text = json.dumps(dataclasses.asdict(card), indent=2, allow_nan=False) + "\n"
    _replace(path, lambda file: file.write(text))


def read_card(path: Path) -> SystemCard:
    """What `write_card` wrote. ValueError with the path for a missing key, an unknown key or a value not allowed."""
    given = json.loads(path.read_text(encoding="utf-8"))
    names = {item.name for item in dataclasses.fields(SystemCard)}
    missing, unknown = sorted(names - set(given)), sorted(set(given) - names)
    if missing or unknown:
        raise ValueError(f"{path}: not a system card: missing keys {missing}, unknown keys {unknown}")
    try:
        return SystemCard(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# ---- the protocol ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Everything that two scores must share to be comparable. Its hash is printed with every table."""

    sample_rate: int = 48000  # Hz
    segment_seconds: float | None = 10.0  # None where a table lists them
    segment_table: str = ""  # the beginning of its SHA-256, and how many of it if not all
    metrics: tuple[str, ...] = tuple(METRICS)
    reference_level: str = "as in the files: 1.0 is 0 dBFS, no gain is applied"
    settings: dict[str, Any] = field(default_factory=dict)  # metric family -> its settings
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that compute scores

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the protocol as canonical JSON."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
