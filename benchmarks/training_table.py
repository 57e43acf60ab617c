"""A table of measured trainings in Markdown: medians of the rounds; ratios are taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.training_case import STRATEGIES, TrainingCase

MISSING = "–"
Numbers = Mapping[str, float]


@dataclass
class TrainingRow:
    """One case and its measurements."""

    case: TrainingCase
    kind: str
    """The codec's kind; other rows are compared with those of "dac"."""
    turns: list[Numbers | None] = field(default_factory=list)
    """`Stopwatch.measured` of each round; None if it failed."""
    profile: Numbers | None = None
    """`StepProfile.measured`; None if it failed."""
    peak: float = 0.0
    """Operations per second of one device in the case's precision."""

    def median(self, value: Callable[[Numbers], float]) -> float | None:
        """Return the median over the rounds that did not fail; None without any."""
        values = [value(turn) for turn in self.turns if turn is not None]
        return statistics.median(values) if values else None

    def speed_against(self, other: TrainingRow | None) -> float | None:
        """Return the speed relative to `other`; None if there is no common round.

        It is the median of the ratios within a round, so that a slow phase of the machine cancels out.
        """
        pairs = zip(self.turns, other.turns if other else [], strict=False)
        ratios = [audio_speed(own) / audio_speed(theirs) for own, theirs in pairs if own and theirs]
        return statistics.median(ratios) if ratios else None

    def flops_per_second(self) -> float | None:
        """Return the operations per second of one device."""
        flops = None if self.profile is None else self.profile["flops"]
        return None if flops is None else self.median(lambda turn: flops * turn["steps"] / turn["seconds"])

    def quantizer_share(self) -> float | None:
        """Return the quantizer's share of a step, forward and backward."""
        profile = self.profile
        if profile is None:
            return None
        return (profile["quantizer_forward"] + profile["quantizer_backward"]) / profile["seconds"]

    def numbers(self) -> dict[str, float | None]:
        """Return the row's numbers in seconds, bytes, operations and shares."""
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
    """Return the seconds of audio per second of wall time, of all processes together."""
    return turn["audio_seconds"] / turn["seconds"]


COLUMNS = (
    "configuration",
    "codec + discriminator",
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
    """Return the table of all rows in their order."""
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
    """Return the configuration's name and how it runs, in words."""
    words = [case.config.rpartition("/")[2].removesuffix(".yaml"), case.precision]
    words += [word for word, is_so in (("compiled", case.compile), ("channels last", case.channels_last)) if is_so]
    if case.devices > 1:
        words += [f"{case.devices} processes", case.strategy.replace("_", " ")]
    return ", ".join(words)


def _like(row: TrainingRow, rows: Iterable[TrainingRow], **changes: object) -> TrainingRow | None:
    wanted = replace(row.case, **changes)  # type: ignore[arg-type]
    return next((other for other in rows if other.case == wanted), None)


def _dac_beside(row: TrainingRow, rows: Iterable[TrainingRow]) -> TrainingRow | None:
    """Return DAC's row with the same execution."""
    own = replace(row.case, config="")
    return next((other for other in rows if other.kind == "dac" and replace(other.case, config="") == own), None)


def _parameters(profile: Numbers) -> str:
    if not profile:
        return MISSING
    return f"{profile['codec_parameters'] / 1e6:.2f} + {profile['discriminator_parameters'] / 1e6:.2f} M"


def _cell(value: float | None, scale: float, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value * scale)
