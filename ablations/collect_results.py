"""Collects the results in the runs' folders for a report: cards, records, curves and audio."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import soundfile

from ablations.assembly import deployed_codec, evaluation_protocol
from ablations.evaluate import failed_card
from ablations.provenance import read_json
from ablations.run import has_results
from ablations.run_folder import RunFolder
from ablations.runner import Task
from ablations.study import BASELINE, Study
from reports.metrics.cost import real_time_factors
from reports.page.build import ReportInput, write_report
from reports.records import COLUMNS, SystemCard, read_card, read_records, write_card
from spectrostream.errors import UserError


class NothingToReportError(UserError):
    """The baseline did not finish, so there is nothing to compare with."""


def measure_costs(tasks: Sequence[Task]) -> None:
    """Add real-time factors to the cards of finished runs that lack them.

    Only one codec is measured at a time, so that the factors are comparable.
    """
    for task in tasks:
        path = task.files.card(task.run.name)
        if not has_results(task.folder):
            continue
        card = read_card(path)
        if card.encode_real_time_factor is None:
            factors = real_time_factors(deployed_codec(task.files.weights), seconds=2.0, runs=3)
            measured = dataclasses.replace(
                card,
                encode_real_time_factor=factors.encode,
                decode_real_time_factor=factors.decode,
                threads=factors.threads,
            )
            write_card(measured, path)


def study_report(study: Study, tasks: Sequence[Task], failures: Mapping[str, str], folder: Path) -> Path:
    """Write the report of all runs.

    Args:
        failures: Run name -> why it failed.
        folder: The report's folder.

    Returns:
        The report's `index.html`.

    Raises:
        NothingToReportError: The baseline has no results.
    """
    finished = [task for task in tasks if has_results(task.folder)]
    baseline = _finished_baseline(tasks)
    cards = [card for task in finished for card in _cards(task)]
    unfinished = [task for task in tasks if task not in finished]
    cards += [failed_card(task.run, failures.get(task.run.name) or _known_failure(task)) for task in unfinished]
    report = ReportInput(
        title=study.title,
        question=study.question,
        lead=_lead(study, cards),
        cards=tuple(cards),
        records=pd.concat([read_records(task.files.records) for task in finished], ignore_index=True)[list(COLUMNS)],
        curves={task.run.name: training_curves(task.folder) for task in finished},
        reference_audio={path.stem: path for path in baseline.files.references()},
        decoded_audio={key: path for task in finished for key, path in _decoded_audio(task.files.audio).items()},
        baseline=baseline.run.name,
        peers=tuple(task.run.name for task in tasks if task.run.variant.role == "peer"),
        ablation_levels=study.compared_at,
        study_facts=_facts(study, baseline),
        axes=study.positions([task.run for task in finished]),
    )
    return write_report(report, folder)


def _finished_baseline(tasks: Sequence[Task]) -> Task:
    baselines = [task for task in tasks if task.run.variant.role == BASELINE]
    for task in baselines:
        if has_results(task.folder):
            return task
    folders = ", ".join(str(task.folder) for task in baselines)
    raise NothingToReportError(
        f"the baseline has no results in {folders}, so there is nothing to compare with; "
        "run the study with `spectrostream ablate` and the same arguments first"
    )


def training_curves(folder: Path) -> pd.DataFrame:
    """Return the columns step, name and value from the logs of every attempt.

    If two attempts logged the same step, the later attempt counts.
    """
    frames = []
    for attempt, path in enumerate(RunFolder(folder).logs()):
        wide = pd.read_csv(path)
        names = [name for name in wide.columns if "/" in name]
        long = wide.melt(id_vars="step", value_vars=names, var_name="name").dropna(subset="value")
        frames.append(long.assign(attempt=attempt))
    if not frames:
        return pd.DataFrame({"step": [], "name": [], "value": []})
    curves = pd.concat(frames).sort_values(["name", "step", "attempt"])
    kept = curves.drop_duplicates(["name", "step"], keep="last")
    return kept[["step", "name", "value"]].reset_index(drop=True)


def _cards(task: Task) -> list[SystemCard]:
    cards = [read_card(path) for path in task.files.cards()]
    # The study's texts may have changed since the run.
    variant = task.run.variant
    return [
        dataclasses.replace(card, title=variant.title, change=variant.change, axis=variant.axis, role=variant.role)
        if card.name == task.run.name
        else card
        for card in cards
    ]


def _known_failure(task: Task) -> str:
    failed = read_json(task.files.failed)
    return failed["reason"] if failed else "not run yet"


def _decoded_audio(folder: Path) -> dict[tuple[str, int, str], Path]:
    """Return (system, levels, segment) -> its file `<system>/<levels>/<segment>.flac`."""
    return {
        (path.parent.parent.name, int(path.parent.name), path.stem): path for path in sorted(folder.glob("*/*/*.flac"))
    }


def _lead(study: Study, cards: Sequence[SystemCard]) -> tuple[str, ...]:
    trained = [card for card in cards if card.role != "check" and card.steps is not None]
    steps = _range_in_words([card.steps or 0 for card in trained], 1, "{:,.0f}")
    audio = _range_in_words([card.audio_seconds_seen or 0.0 for card in trained], 60, "{:.1f}")
    minutes = _range_in_words([card.training_seconds or 0.0 for card in trained], 60, "{:.1f}")
    budget = (
        f"Each model here was trained for {steps} steps: {audio} minutes of audio, {minutes} minutes of computing. "
        "The published systems were trained for hundreds of thousands of steps on thousands of hours."
    )
    return (budget, study.caveat) if study.caveat else (budget,)


def _range_in_words(values: Sequence[float], unit: float, style: str) -> str:
    """Return one number if all print alike, else the lowest and the highest."""
    low, high = (style.format(end / unit) for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _held_out(baseline: Task) -> str:
    seconds = [soundfile.info(path).duration for path in baseline.files.references()]
    lengths = _range_in_words(seconds, 1, "{:.1f}") if seconds else "?"
    kind = {
        "end": "the ends of the tracks that were trained on, never the same seconds",
        "track": "whole tracks that were not trained on",
        "official": "whole tracks that were not trained on, the corpora's own test parts where they have one",
    }[baseline.run.config.data.chosen_split]
    shared = read_json(baseline.files.facts).get("validation_shares_test_music", True)
    others = "the same held-out music" if shared else "other held-out tracks"
    return f"{kind}; segments of {lengths} s; the losses shown during training are of {others}"


def _facts(study: Study, baseline: Task) -> dict[str, str]:
    run = read_json(baseline.files.facts)
    config = baseline.run.config
    return {
        "study": study.name,
        "corpus": run["data"],
        "held out": _held_out(baseline),
        "data fingerprint": run["data_fingerprint"][:16],
        "seeds": ", ".join(map(str, study.seeds)),
        "protocol": evaluation_protocol(config).hash,
        "git revision": run["git_revision"] or "not in a repository",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }
