"""What was measured of trainings that took turns, as Markdown: medians of the rounds, ratios taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.training_case import STRATEGIES, TrainingCase

MISSING = "–"
Numbers = Mapping[str, float]


@dataclass
class TrainingRow:
    """One case and its measurements.

    kind: of the codec; rows of "dac" are what others are held against. turns: one per round, as `Stopwatch.measured`,
    None where the turn failed. profile: as `training_turn.profile`, None where it failed.
    peak: operations per second of one device, in the case's precision.
    """

    case: TrainingCase
    kind: str
    turns: list[Numbers | None] = field(default_factory=list)
    profile: Numbers | None = None
    peak: float = 0.0

    def median(self, value: Callable[[Numbers], float]) -> float | None:
        """Of the rounds that there are."""
        values = [value(turn) for turn in self.turns if turn is not None]
        return statistics.median(values) if values else None

    def speed_against(self, other: TrainingRow | None) -> float | None:
        """Audio-seconds per second over those of `other`: the median of the rounds' ratios, so a slow spell cancels."""
        pairs = zip(self.turns, other.turns if other else [], strict=False)
        ratios = [audio_speed(own) / audio_speed(theirs) for own, theirs in pairs if own and theirs]
        return statistics.median(ratios) if ratios else None

    def flops_per_second(self) -> float | None:
        """Of one device."""
        flops = None if self.profile is None else self.profile["flops"]
        return None if flops is None else self.median(lambda turn: flops * turn["steps"] / turn["seconds"])

    def quantizer_share(self) -> float | None:
        """Of a step, forward and backward."""
        profile = self.profile
        if profile is None:
            return None
        return (profile["quantizer_forward"] + profile["quantizer_backward"]) / profile["seconds"]

    def numbers(self) -> dict[str, float | None]:
        """The row in SI units: seconds, bytes, operations, shares."""
        achieved = self.flops_per_second()
        return {
            "audio_seconds_per_second": self.median(audio_speed),
            "steps_per_second": self.median(lambda turn: turn["steps"] / turn["seconds"]),
            "processors": self.median(lambda turn: turn["processor_seconds"] / turn["seconds"]),
            "data_wait_share": self.median(lambda turn: turn["waited"] / turn["seconds"]),
            "peak_memory": self.median(lambda turn: turn["peak_memory"]),
            "flops_per_second": achieved,
            "share_of_peak": achieved / self.peak if achieved is not None and self.peak else None,
            "quantizer_share": self.quantizer_share(),
        }


def audio_speed(turn: Numbers) -> float:
    """Audio-seconds per second of wall time, all processes together."""
    return turn["audio_seconds"] / turn["seconds"]


COLUMNS = (
    "configuration",
    "codec + judges",
    "batch of a process",
    "audio-s per s",
    "against DAC",
    "steps per s",
    "processors",
    "waiting for data",
    "peak memory, GB",
    "GFLOP per step",
    "GFLOP/s",
    "of the peak",
    "quantizer",
    "against 1 process",
)


def training_table(rows: Sequence[TrainingRow]) -> str:
    """Every row in its order."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row, rows) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cells(row: TrainingRow, rows: Iterable[TrainingRow]) -> list[str]:
    found, profile = row.numbers(), row.profile or {}
    alone = _like(row, rows, devices=1, strategy=STRATEGIES[0]) if row.case.devices > 1 else None
    count, seconds = row.case.crops()
    return [
        title(row.case),
        _parameters(profile),
        f"{count} x {seconds:.3g} s",
        _cell(found["audio_seconds_per_second"], 1, "{:.3g}"),
        _cell(row.speed_against(_dac_beside(row, rows)), 1, "{:.2f}x"),
        _cell(found["steps_per_second"], 1, "{:.3g}"),
        _cell(found["processors"], 1, "{:.2f}"),
        _cell(found["data_wait_share"], 100, "{:.2f} %"),
        _cell(found["peak_memory"], 1e-9, "{:.2f}"),
        _cell(profile.get("flops"), 1e-9, "{:.1f}"),
        _cell(found["flops_per_second"], 1e-9, "{:.1f}"),
        _cell(found["share_of_peak"], 100, "{:.0f} %"),
        _cell(found["quantizer_share"], 100, "{:.1f} %"),
        _cell(row.speed_against(alone), 1, "{:.2f}x"),
    ]


def title(case: TrainingCase) -> str:
    """The configuration and what is not plain about how it is executed."""
    words = [case.config.rpartition("/")[2].removesuffix(".yaml"), case.precision]
    words += [word for word, is_so in (("compiled", case.compile), ("channels last", case.channels_last)) if is_so]
    if case.devices > 1:
        words += [f"{case.devices} processes", case.strategy.replace("_", " ")]
    return ", ".join(words)


def _like(row: TrainingRow, rows: Iterable[TrainingRow], **changes: object) -> TrainingRow | None:
    wanted = replace(row.case, **changes)  # type: ignore[arg-type]
    return next((other for other in rows if other.case == wanted), None)


def _dac_beside(row: TrainingRow, rows: Iterable[TrainingRow]) -> TrainingRow | None:
    """DAC executed in the same way."""
    own = replace(row.case, config="")
    return next((other for other in rows if other.kind == "dac" and replace(other.case, config="") == own), None)


def _parameters(profile: Numbers) -> str:
    if not profile:
        return MISSING
    return f"{profile['codec_parameters'] / 1e6:.2f} + {profile['judge_parameters'] / 1e6:.2f} M"


def _cell(value: float | None, scale: float, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value * scale)
