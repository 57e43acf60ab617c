from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from small_study import finished_study

from ablations.collect_results import NothingToReportError, measure_costs, study_report, training_curves
from ablations.provenance import write_json
from ablations.runner import Task
from ablations.study import Study
from reports.records import read_card, read_records

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Task]]:
    """The finished study in folders that a test may change."""
    study, tasks, _ = finished_study(tmp_path_factory.getbasetemp())
    return study, [Task(task.run, Path(shutil.copytree(task.folder, tmp_path / task.run.name))) for task in tasks]


def write_log(folder: Path, attempt: int, rows: dict[str, list[float | None]]) -> None:
    path = folder / "logs" / f"attempt-{attempt:03d}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(path, index=False)


def test_the_later_attempt_counts_for_a_step(tmp_path: Path) -> None:
    write_log(tmp_path, 0, {"epoch": [0] * 3, "step": [1, 2, 3], "train/a": [10, 20, 30], "val/b": [None, 5, None]})
    write_log(tmp_path, 1, {"epoch": [0] * 2, "step": [3, 4], "train/a": [31, 41], "val/b": [None, 6]})
    curves = training_curves(tmp_path)
    assert list(curves.columns) == ["step", "name", "value"]
    assert list(curves.itertuples(index=False, name=None)) == [
        *[(1, "train/a", 10), (2, "train/a", 20), (3, "train/a", 31), (4, "train/a", 41)],
        *[(2, "val/b", 5), (4, "val/b", 6)],
    ]


def test_a_run_without_a_log_has_empty_curves(tmp_path: Path) -> None:
    curves = training_curves(tmp_path)
    assert list(curves.columns) == ["step", "name", "value"]
    assert curves.empty


def test_the_report_has_every_variant_with_its_numbers(tmp_path: Path, copied: tuple[Study, list[Task]]) -> None:
    study, tasks = copied
    measure_costs(tasks)
    page = study_report(study, tasks, {}, tmp_path / "report")
    html, markdown = page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")
    for words in ("A minute's study", "Does it run?", "fusion six", "fusion three", "a tiny DAC", "joined earlier"):
        assert words.replace("'", "&#39;") in html
    assert "A minute's study" in markdown
    csv = pd.read_csv(page.parent / "tables" / "ablation.csv")
    records = read_records(page.parent / "records.csv")
    assert set(records["system"]) == {"baseline", "fusion-3", "dac", "baseline@step0", "baseline@zero-codes"}
    chosen = records[(records["system"] == "fusion-3") & (records["levels"] == 4)]
    mel = chosen[chosen["metric"] == "mel_distance"].groupby("track")["value"].mean().mean()
    assert csv.set_index("change")["mel_distance"].to_dict()["fusion-3"] == pytest.approx(mel)
    assert f"{mel:.2f}" in html
    assert list((page.parent / "audio").rglob("*.flac"))


def test_failed_and_missing_runs_are_in_the_report(tmp_path: Path, copied: tuple[Study, list[Task]]) -> None:
    study, (baseline, *others) = copied
    for task in others:
        (task.folder / "DONE.json").unlink()
        (task.folder / f"card-{task.run.name}.json").write_text("never read")
    by_name = {task.run.name: task for task in others}
    write_json({"reason": "OutOfMemory: too wide", "traceback": ""}, by_name["fusion-3"].folder / "failed.json")
    page = study_report(study, [baseline, *others], {}, tmp_path / "report")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "OutOfMemory: too wide" in text
    assert "not run yet" in text
    # The only peer is a row of the comparison, not "no other codec was evaluated".
    assert "dac" in (page.parent / "tables" / "rates.csv").read_text(encoding="utf-8")
    assert "No other codec" not in text
    said_now = study_report(study, [baseline, *others], {"fusion-3": "killed by signal 9"}, tmp_path / "report")
    text = (said_now.parent / "report.md").read_text(encoding="utf-8")
    assert "killed by signal 9" in text
    assert "OutOfMemory" not in text


def test_without_a_baseline_there_is_nothing_to_report(tmp_path: Path, copied: tuple[Study, list[Task]]) -> None:
    study, tasks = copied
    (tasks[0].folder / "DONE.json").unlink()
    with pytest.raises(NothingToReportError, match=r"the baseline has no results in .*baseline.*run the study with"):
        study_report(study, tasks, {}, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_costs_are_measured_once_and_texts_come_from_the_study(
    tmp_path: Path, copied: tuple[Study, list[Task]]
) -> None:
    study, tasks = copied
    (tasks[1].folder / "DONE.json").unlink()
    paths = [task.folder / f"card-{task.run.name}.json" for task in tasks]
    measure_costs(tasks)
    cards = [read_card(path) for path in paths]
    for card, is_measured in zip(cards, (True, False, True), strict=True):
        assert (card.encode_real_time_factor is not None) == is_measured
        assert (card.threads is not None) == is_measured
    before = [path.stat().st_mtime_ns for path in paths]
    measure_costs(tasks)
    assert [path.stat().st_mtime_ns for path in paths] == before
    renamed = replace(tasks[0].run, variant=replace(tasks[0].run.variant, title="a better title"))
    page = study_report(study, [Task(renamed, tasks[0].folder), *tasks[1:]], {}, tmp_path / "report")
    assert "a better title" in page.read_text(encoding="utf-8")
