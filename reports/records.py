"""The data behind every table, figure and page: records of scores, one card per system, the evaluation protocol.

Records are in long form, one row per (system, levels, track, segment, metric). A missing score is NaN with a reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.metrics.catalog import METRICS
from spectrostream.atomic_files import write_whole

COLUMNS = ("system", "levels", "kbps", "track", "segment", "metric", "value", "reason")
"""`kbps` is measured: the bits of the system at that number of levels, all channels together."""

_KEY = ["system", "levels", "track", "segment", "metric"]
_TRACK_KEY = ["system", "levels", "kbps", "track", "metric"]

ROLES = ("baseline", "variant", "peer", "check")
STATUSES = ("finished", "failed")


# ---- scores ---------------------------------------------------------------------------------------------------------


def check_records(frame: pd.DataFrame) -> pd.DataFrame:
    """Check the rules of records.

    Args:
        frame: Scores with `COLUMNS`.

    Returns:
        The same frame.

    Raises:
        ValueError: If a row breaks a rule; the message names the row and the rule.
    """
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
    """Write records as CSV; a reader finds the old file or the complete new one. Floats keep every bit.

    Args:
        frame: Scores with `COLUMNS`.
        path: The file; missing folders are created.

    Raises:
        ValueError: If `check_records` refuses the frame.
    """
    check_records(frame)
    write_whole(path, frame.to_csv(index=False, lineterminator="\n"))


def read_records(path: Path) -> pd.DataFrame:
    """Read exactly what `write_records` wrote.

    Args:
        path: The CSV file.

    Returns:
        Scores with `COLUMNS`.

    Raises:
        ValueError: If the file does not hold records; the message names the path.
    """
    header = pd.read_csv(path, nrows=0).columns
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path}: records have the columns {list(COLUMNS)}; this file has {list(header)}")
    # pandas reads text only, and the conversion happens here: a track may have the name "NA", an empty reason is an
    # empty text, and Python's float restores every bit in every version of pandas.
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    try:
        frame["levels"] = frame["levels"].map(int)
        for name in ("kbps", "value"):
            frame[name] = [float(text or "nan") for text in frame[name]]
        return check_records(frame)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def track_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Average segments to tracks, the unit of every statistic.

    Args:
        frame: Scores with `COLUMNS`.

    Returns:
        Columns `system, levels, kbps, track, metric, value, reason, segments, skipped`. `value` is the mean over the
        `segments` with a score, and `skipped` counts the others. A track without any score is NaN with all reasons.

    Raises:
        ValueError: If `check_records` refuses the frame.
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


# ---- systems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SystemCard:
    """The facts of one system that are not scores. None: not known, or it does not apply to this system.

    Raises:
        ValueError: If the role or the status is not a known one, or a failed system has no reason.
    """

    name: str  # the identifier in the records
    title: str  # the words in a table
    role: str  # one of ROLES; "peer" is another codec
    change: str = ""  # the one change against the baseline, as text
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
    """Write a card as JSON; a reader finds the old file or the complete new one.

    Args:
        card: The card.
        path: The file; missing folders are created.

    Raises:
        ValueError: If a fact is NaN or infinite; an unknown fact is None.
    """
    text = json.dumps(dataclasses.asdict(card), indent=2, allow_nan=False) + "\n"
    write_whole(path, text)


def read_card(path: Path) -> SystemCard:
    """Read what `write_card` wrote.

    Args:
        path: The JSON file.

    Returns:
        The card.

    Raises:
        ValueError: If a key is missing or unknown, or a value is not allowed; the message names the path.
    """
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
    """Everything that two scores must share to be comparable. Every table of scores shows its hash."""

    sample_rate: int = 48000  # Hz
    segment_seconds: float | None = 10.0  # None where a table lists them
    segment_table: str = ""  # the first digits of its SHA-256, and the number of segments if not all are used
    metrics: tuple[str, ...] = field(default_factory=lambda: tuple(METRICS))
    reference_level: str = "as in the files: 1.0 is 0 dBFS, no gain is applied"
    settings: dict[str, Any] = field(default_factory=dict)  # module of metrics -> its settings
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that compute scores

    @property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the protocol in canonical JSON."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
