"""The catalog of metrics: one entry is all that a new metric needs."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from synthetic_music import music
from test_evaluation import RoundingCodec
from torch import Tensor

from reports.evaluation import Segment, evaluate, protocol
from reports.metrics import stereo
from reports.metrics.catalog import METRICS, MetricInfo, score_pair
from reports.metrics.score import Score
from reports.page.build import ReportInput, write_report
from reports.records import SystemCard, read_records


def peak_error(reference: Tensor, estimate: Tensor) -> Score:
    """Difference of the highest samples in dB."""
    return Score(abs(20 * math.log10(float(reference.abs().max() / estimate.abs().max()))))


PEAK_ERROR = MetricInfo(
    title="Peak error",
    unit="dB",
    higher_is_better=False,
    decimals=3,
    headline=True,
    function=peak_error,
    definition="Absolute difference of the peaks.",
)


def evaluated() -> pd.DataFrame:
    """The records of a codec on three short tracks."""
    segments = [Segment(f"track {seed}", f"segment-{seed}", music(0.2, seed=seed)) for seed in (1, 2, 3)]
    return evaluate("ours", RoundingCodec(), segments, levels=[1], visqol=None, audio_folder=None)


def page_of(records: pd.DataFrame, folder: Path) -> Path:
    """The folder of a report on `records`."""
    card = SystemCard(name="ours", title="Ours", role="baseline")
    report = ReportInput("T", "Q?", (), (card,), records, {}, {}, {}, "ours", (), ablation_levels=1)
    return write_report(report, folder / "report").parent


def test_a_new_metric_is_one_function_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = protocol().hash
    monkeypatch.setitem(METRICS, "peak_error", PEAK_ERROR)
    records = evaluated()
    values = records[records["metric"] == "peak_error"]["value"]
    assert len(values) == 3
    assert values.notna().all()
    folder = page_of(records, tmp_path)
    written = read_records(folder / "records.csv")
    assert written[written["metric"] == "peak_error"]["value"].tolist() == values.tolist()
    for table in ("learning", "ablation", "all_metrics", "rates"):
        assert ",peak_error,peak_error_" in (folder / "tables" / f"{table}.csv").read_text(encoding="utf-8"), table
    for page in ("index.html", "report.md"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "Peak error (dB) ↓" in text
        assert f"{values.mean():.3f}" in text
        assert PEAK_ERROR.definition in text
    assert protocol().metrics[-1] == "peak_error"
    assert protocol().hash != before


def test_metrics_that_share_a_function_share_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(reference: Tensor, estimate: Tensor) -> stereo.CueErrors:
        calls.append(estimate)
        return stereo.CueErrors(Score(1.0), Score(2.0), Score(3.0))

    for name, info in list(METRICS.items()):
        if info.function is stereo.cue_errors:
            monkeypatch.setitem(METRICS, name, dataclasses.replace(info, function=counted))
    scores = score_pair(torch.zeros(2, 4800), torch.zeros(2, 4800))
    assert [scores[name].value for name in ("ild_error", "ipd_error", "ic_error")] == [1.0, 2.0, 3.0]
    assert len(calls) == 1


def test_an_entry_writes_its_own_names() -> None:
    assert METRICS["ipd_error"].label == "IPD error (rad)"
    assert METRICS["ipd_error"].heading == "IPD error (rad) ↓"
    # The unit of an opinion score tells a reader nothing that the title does not.
    assert METRICS["visqol_lr"].heading == "ViSQOL-LR ↑"
    headline = [name for name, info in METRICS.items() if info.headline]
    assert headline == ["visqol_lr", "mel_distance", "stft_distance", "si_sdr", "ipd_error", "ic_error"]
