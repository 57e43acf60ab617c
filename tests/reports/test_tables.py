"""One table, four renderings with the same numbers; known answers of the study's tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from typing import Any

import pandas as pd
import pytest
import synthetic_report as study
from hypothesis import given
from hypothesis import strategies as st

from reports.tables.ablation_tables import (
    ablation_table,
    all_metrics_table,
    learning_table,
    learning_verdict,
    seeds_table,
)
from reports.tables.integrity import integrity_line, integrity_warnings
from reports.tables.peer_tables import cost_table, curve_table, paired_table, rate_table
from reports.tables.rendering import (
    Cell,
    Column,
    Row,
    Table,
    escape_latex,
    escape_markdown,
    number,
    p_value,
    signed,
    to_csv,
    to_latex,
    to_markdown,
    with_interval,
)
from reports.track_scores import TrackScores, matched_rates


@pytest.fixture(scope="module")
def scores() -> TrackScores:
    return TrackScores(study.records())


def column(table: Table, key: str) -> list[Cell]:
    index = [column.key for column in table.columns].index(key)
    return [row.cells[index] for row in table.rows]


def row(table: Table, raw: str) -> dict[str, Cell]:
    found = next(row for row in table.rows if row.cells[0].raw == raw)
    return {column.key: cell for column, cell in zip(table.columns, found.cells, strict=True)}


# ---- formats --------------------------------------------------------------------------------------------------------


def test_numbers_are_written_as_the_conventions_say() -> None:
    assert number(-3.14159, 2) == "−3.14"
    assert number(-0.001, 2) == "0.00"
    assert number(math.nan, 2) == number(None, 1) == "–"
    assert signed(0.123, 2) == "+0.12"
    assert signed(-0.123, 1) == "−0.1"
    assert signed(0.001, 2) == "0.00"
    assert with_interval(3.83, 3.76, 3.9, 2) == "3.83 [3.76, 3.90]"
    assert with_interval(-1.25, -1.3, 0.04, 1) == "−1.2 [−1.3, 0.0]"
    assert with_interval(3.83, math.nan, math.nan, 2) == "3.83"
    assert [p_value(p) for p in (0.00004, 0.0312, 1.0, math.nan)] == ["< 0.001", "0.031", "1.000", "–"]


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns, but a row brings 1 cells"):
        Table("T", (Column("a", "A"), Column("b", "B")), (Row((Cell("1"),)),))


# ---- renderings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Table:
    columns = (
        Column("system", "System", css="text"),
        Column("mel", "Mel ↓", group="Quality", details=("difference",)),
        Column("sdr", "SDR-S (dB) ↑", group="Quality"),
    )
    rows = (
        Row((Cell("A & B_1", "a"), Cell("1.25", 1.2512, bold=True), Cell("n/a (silent | <mono>)", css="missing"))),
        Row((Cell("[50 %]", "b"), Cell("1.37", 1.37, detail="+0.12", detail_raw=(0.1188,)), Cell("–")), heading="3 #"),
    )
    return Table("Title $1", columns, rows, ("n = 6 & more",))


def test_markdown(small: Table) -> None:
    assert to_markdown(small).splitlines() == [
        "**Title $1**",
        "",
        "| System | Mel ↓ | SDR-S (dB) ↑ |",
        "| :--- | ---: | ---: |",
        r"| A &amp; B_1 | **1.25** | n/a (silent \| \<mono>) |",
        "| *3 #* |  |  |",
        "| [50 %] | 1.37 (+0.12) | – |",
        "",
        "n = 6 &amp; more",
    ]


def test_csv_has_raw_values_and_says_what_is_missing(small: Table) -> None:
    assert list(csv.reader(io.StringIO(to_csv(small)))) == [
        ["system", "mel", "mel_difference", "sdr"],
        ["a", "1.2512", "", "n/a (silent | <mono>)"],
        ["b", "1.37", "0.1188", ""],
    ]


def test_latex_is_booktabs(small: Table) -> None:
    lines = to_latex(small).splitlines()
    assert r"\caption{Title \$1}" in lines
    assert r"\begin{tabular}{@{}lrr@{}}" in lines
    assert r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{Quality} \\" in lines
    assert r"\cmidrule(lr){2-3}" in lines
    assert r"A \& B\_1 & \textbf{1.25} & n/a (silent \textbar{} \textless{}mono\textgreater{}) \\" in lines
    assert r"\multicolumn{3}{@{}l}{\emph{3 \#}} \\" in lines
    # LaTeX takes a [ after \\ for an argument.
    assert r"{}[50 \%] & 1.37 (+0.12) & -- \\" in lines


def test_markdown_keeps_underscores_inside_words_only() -> None:
    assert escape_markdown("mel_loss _so_ *a*") == r"mel_loss \_so\_ \*a\*"


_COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciicircum{}": "^",
    r"\textasciitilde{}": "~",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textquotedbl{}": '"',
    **{f"\\{character}": character for character in "{}$&#%_"},
}


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_escaped_latex_is_literal(text: str) -> None:
    escaped = escape_latex(text)
    tokens = re.compile("|".join(re.escape(command) for command in _COMMANDS))
    assert not re.search(r"[\\{}$&#%_^~<>|\"]", tokens.sub("", escaped)), "a special character is left unescaped"
    assert tokens.sub(lambda match: _COMMANDS[match[0]], escaped) == text


@given(st.text())
def test_escaped_latex_stays_on_one_line(text: str) -> None:
    assert len(escape_latex(text).splitlines()) <= 1


# ---- the study's tables ---------------------------------------------------------------------------------------------


def test_ablation_rows_are_the_baseline_and_then_one_change_each(scores: TrackScores) -> None:
    table = ablation_table(scores, study.cards(), "base", 8)
    assert [cell.text for cell in column(table, "change")] == [
        "Baseline: STFT <6/6>",
        "second seed",
        "channels fused at once",
        "channels fused before block 3",
        "channels fused last & split first",
        "channels split after block 3",
        "waveform front-end, 50 % fewer bands",
    ]
    assert table.title == "One change at a time, at 8 levels (3.20 kbps)"
    assert [column.title for column in table.columns[1:4]] == ["ViSQOL-LR ↑", "Mel distance ↓", "STFT distance ↓"]
    assert row(table, "base")["steps"].text == "12\u202f000"
    assert row(table, "base")["training_minutes"].text == "42.0"


def test_ablation_values_and_differences_come_from_the_records(scores: TrackScores) -> None:
    records = study.records()
    chosen = records[(records["metric"] == "mel_distance") & (records["levels"] == 8)]
    means = chosen.groupby("system")["value"].mean()
    cell = row(ablation_table(scores, study.cards(), "base", 8), "fusion-0")["mel_distance"]
    assert cell.raw == pytest.approx(means["fusion-0"])
    assert cell.text == f"{means['fusion-0']:.2f}"
    assert cell.detail_raw == (pytest.approx(means["fusion-0"] - means["base"]),)
    assert cell.detail == f"+{means['fusion-0'] - means['base']:.2f}"


def test_bold_is_the_best_and_what_does_not_differ_from_it() -> None:
    records = study.records()
    chosen = records[
        records["system"].isin(["base", "base-seed-2", "fusion-0"]) & (records["metric"] == "mel_distance")
    ]
    wobble: dict[str, list[float]] = {
        "base": [0] * 6,
        "base-seed-2": [0.02, -0.01, 0.01, -0.02, 0.02, -0.01],
        "fusion-0": [0.2] * 5 + [0.3],
    }
    at = {track: index for index, track in enumerate(study.TRACKS)}
    rows = zip(chosen["system"], chosen["track"], strict=True)
    values = [1 + 0.1 * at[track] + wobble[system][at[track]] for system, track in rows]
    scores = TrackScores(chosen.assign(value=values))
    points = [("base", 8), ("base-seed-2", 8), ("fusion-0", 8)]
    assert scores.best(points, "mel_distance") == {("base", 8), ("base-seed-2", 8)}
    assert scores.best([("base", 8)], "mel_distance") == set(), "alone, nothing is best"


def test_a_failed_run_keeps_its_row_and_its_reason(scores: TrackScores) -> None:
    table = ablation_table(scores, study.cards(), "base", 8)
    failed = row(table, "fusion-7")
    assert failed["change"].detail == "failed: out of memory at step 1200 & 50 % of <budget>"
    assert {failed[metric].text for metric in ("visqol_lr", "mel_distance", "steps", "parameters_millions")} == {"–"}
    assert r"failed: out of memory at step 1200 \& 50 \% of \textless{}budget\textgreater{}" in to_latex(table)


def test_a_missing_metric_stays_missing_with_its_reason(scores: TrackScores) -> None:
    table = all_metrics_table(scores, study.cards(), "base", 8)
    assert row(table, "waveform")["sdr_s"].text == "n/a (silent side & <mono>)"
    assert row(table, "waveform")["sdr_s"].raw is None
    assert not any("waveform" in str(point) for point in scores.best([("waveform", 8), ("base", 8)], "sdr_s"))
    notes = ablation_table(scores, study.cards(), "base", 8).notes
    assert any("ViSQOL-S: 1 of 6 tracks have no value" in note and "side below -60 dBFS" in note for note in notes)


def test_few_tracks_are_said_to_be_few(scores: TrackScores) -> None:
    for table in (
        ablation_table(scores, study.cards(), "base", 8),
        paired_table(scores, study.cards(), "base", ["dac"]),
    ):
        assert any("Only 6 tracks" in note and "0.031" in note for note in table.notes)


def test_seeds_give_mean_and_spread_and_are_not_pooled(scores: TrackScores) -> None:
    table = seeds_table(scores, study.cards(), "base", 8)
    assert table is not None
    assert len(table.rows) == 1
    means = [scores.mean((system, 8), "mel_distance") for system in ("base", "base-seed-2")]
    cell = row(table, "base")["mel_distance"]
    assert cell.raw == pytest.approx(sum(means) / 2)
    assert cell.detail_raw == (pytest.approx(abs(means[0] - means[1]) / math.sqrt(2)),)
    alone = [card for card in study.cards() if card.name != "base-seed-2"]
    assert seeds_table(scores, alone, "base", 8) is None


def test_learning_is_answered_against_untrained_and_zero_codes(scores: TrackScores) -> None:
    table = learning_table(scores, study.cards(), "base", 8)
    assert [cell.raw for cell in column(table, "system")] == ["base@step0", "base@zero-codes", "base"]
    verdicts = learning_verdict(scores, study.cards(), "base", 8)
    assert len(verdicts) == 2
    assert all(text.startswith("Yes") and "6 of 6 tracks" in text for text in verdicts)
    swapped = study.records().replace({"system": {"base": "base@step0", "base@step0": "base"}})
    assert learning_verdict(TrackScores(swapped), study.cards(), "base", 8)[0].startswith("Not shown")


def test_rates_are_matched_and_the_rest_stands_alone(scores: TrackScores) -> None:
    groups = [group.points for group in matched_rates(scores, ("base", "dac"))]
    assert groups == [
        (("base", 4), ("dac", 1)),
        (("base", 8), ("dac", 2)),
        (("dac", 3),),
        (("base", 16),),
    ]
    table = rate_table(scores, study.cards(), ("base", "dac"))
    assert [row.heading for row in table.rows if row.heading] == [
        "about 1.6 kbps",
        "about 3.2 kbps",
        "about 5.2 kbps, no matching rate",
        "about 6.4 kbps, no matching rate",
    ]
    first = table.rows[0].cells
    assert [cell.text for cell in first[:4]] == ["STFT <6/6>", "4", "1.60", "0.80"]
    assert re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", first[4].text)


def test_paired_differences_are_ours_minus_theirs(scores: TrackScores) -> None:
    table = paired_table(scores, study.cards(), "base", ["dac"])
    mel = next(row for row in table.rows if row.cells[0].raw == "mel_distance")
    difference, p, wins, better = mel.cells[1:]
    expected = scores.values(("base", 4), "mel_distance") - scores.values(("dac", 1), "mel_distance")
    assert difference.raw == pytest.approx(expected.mean())
    assert expected.mean() < 0
    assert p.raw == pytest.approx(min(1.0, 2 * 0.5**6 * len(table.rows))), "Holm over the whole table"
    assert wins.text == "6 / 6"
    assert better.text == "open", "six tracks cannot settle twelve comparisons, whatever their interval"
    assert table.rows[0].heading == "STFT <6/6> at 1.60 kbps minus DAC at 1.72 kbps"


def test_enough_tracks_settle_a_comparison() -> None:
    records = study.records().query("metric == 'mel_distance'")
    copies = [records.assign(track=records["track"] + f" {n}", value=records["value"] + 0.001 * n) for n in range(3)]
    table = paired_table(TrackScores(pd.concat(copies, ignore_index=True)), study.cards(), "base", ["dac"])
    assert [row.cells[-1].text for row in table.rows] == ["ours", "ours"]
    assert all(float(str(row.cells[2].raw)) < 0.05 for row in table.rows)


def test_a_peer_without_scores_is_shown_as_such(scores: TrackScores) -> None:
    unscored = TrackScores(study.records().query("system != 'dac'"))
    table = rate_table(unscored, study.cards(), ("base", "dac"))
    assert table.rows[-1].cells[0].detail == "no scores"
    refused = {cell.text for cell in column(curve_table(unscored, study.cards(), "base", ["dac"]), "bd_rate_percent")}
    assert refused == {"n/a (fewer than two rates)"}


def test_unknown_costs_are_not_applicable() -> None:
    table = cost_table(study.cards(), ("base", "dac"))
    assert row(table, "dac")["latency_ms"].text == "–"
    assert [cell.text for cell in column(table, "causal")] == ["yes", "no"]
    assert row(table, "base")["gmacs_per_second"].text == "5.97"


@pytest.mark.parametrize("kind", ["ablation", "rates"])
def test_every_rendering_carries_the_same_numbers(scores: TrackScores, kind: str) -> None:
    tables = {
        "ablation": ablation_table(scores, study.cards(), "base", 8),
        "rates": rate_table(scores, study.cards(), ("base", "dac")),
    }
    table = tables[kind]
    markdown, latex = to_markdown(table), to_latex(table)
    frame = pd.read_csv(io.StringIO(to_csv(table)))
    for index, cells in enumerate(row.cells for row in table.rows):
        for position, cell in enumerate(cells):
            assert escape_markdown(cell.text) in markdown
            assert escape_latex(cell.text) in latex
            key = table.columns[position].key
            if isinstance(cell.raw, float) and key.endswith("distance"):
                assert cell.text.startswith(f"{frame[key][index]:.2f}")


# ---- integrity ------------------------------------------------------------------------------------------------------


def test_equal_rows_pass_and_failed_rows_are_not_held_against_them() -> None:
    own = [card for card in study.cards() if card.role in ("baseline", "variant")]
    assert integrity_warnings(own, "base") == ()
    assert "6 finished systems" in integrity_line(own)


def test_a_row_with_other_steps_is_named() -> None:
    changed: dict[str, dict[str, Any]] = {"fusion-0": {"steps": 9000}, "waveform": {"protocol_hash": ""}}
    own = [dataclasses.replace(card, **changed.get(card.name, {})) for card in study.cards() if card.role != "check"]
    assert integrity_warnings(own, "base") == (
        "steps: 12000 in STFT <6/6>, but not in Fusion 0 (9000)",
        "evaluation protocol: 9d41ce07ab12 in STFT <6/6>, but not in Waveform_front-end (not recorded)",
    )


def test_a_fact_nobody_recorded_is_no_agreement() -> None:
    own = [dataclasses.replace(card, git_revision="") for card in study.cards() if card.role == "baseline"]
    assert integrity_warnings(own, "base") == ("code revision: not recorded, so it cannot be checked",)
