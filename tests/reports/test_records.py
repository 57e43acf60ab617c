import dataclasses
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.metrics.catalog import METRICS
from reports.records import (
    COLUMNS,
    EvaluationProtocol,
    SystemCard,
    check_records,
    read_card,
    read_records,
    track_means,
    write_card,
    write_records,
)


def records(*rows: tuple[str, str, float, str]) -> pd.DataFrame:
    """Records of one system and one metric from (track, segment, value, reason)."""
    full = [("ours", 4, 1.987654321, track, segment, "si_sdr", value, why) for track, segment, value, why in rows]
    return pd.DataFrame(full, columns=list(COLUMNS))


@pytest.mark.slow
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_records_come_back_exactly(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "scores.csv"
    frame = records(
        *((f"track {n}", "NA", value, "") for n, value in enumerate(values)), ("x", "null", math.nan, 'a, "b"')
    )
    write_records(frame, path)
    back = read_records(path)
    assert back["value"].tolist()[:-1] == values
    assert math.isnan(back["value"].iloc[-1])
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    assert [file.name for file in path.parent.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("t", "s", math.inf, "")], "ours / 4 / t / s / si_sdr is infinite"),
        ([("t", "s", math.nan, "")], "a missing value has a reason"),
        ([("t", "s", 1.0, "why")], "only a missing value has one"),
        ([("t", "s", 1.0, ""), ("t", "s", 2.0, "")], "recorded twice"),
    ],
)
def test_broken_records_are_refused(rows, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_records(records(*rows), tmp_path / "scores.csv")
    assert not list(tmp_path.iterdir())
    records(*rows).to_csv(tmp_path / "by_hand.csv", index=False)
    with pytest.raises(ValueError, match=f"by_hand.csv: .*{complaint}"):
        read_records(tmp_path / "by_hand.csv")


def test_other_columns_are_refused(tmp_path: Path) -> None:
    frame = records(("t", "s", 1.0, "")).rename(columns={"levels": "n"})
    with pytest.raises(ValueError, match="records have the columns"):
        check_records(frame)
    frame.to_csv(tmp_path / "other.csv", index=False)
    records(("t", "s", 1.0, "")).astype({"value": object}).assign(value="loud").to_csv(
        tmp_path / "words.csv", index=False
    )
    with pytest.raises(ValueError, match=r"words.csv: could not convert string to float: 'loud'"):
        read_records(tmp_path / "words.csv")
    with pytest.raises(ValueError, match=r"other.csv: records have the columns .*'n'"):
        read_records(tmp_path / "other.csv")


def test_segments_average_to_tracks_and_missing_ones_are_counted() -> None:
    means = track_means(
        records(
            ("a", "1", 1.0, ""),
            ("a", "2", 3.0, ""),
            ("b", "1", 5.0, ""),
            ("b", "2", math.nan, "silent"),
            ("c", "1", math.nan, "silent"),
            ("c", "2", math.nan, "short"),
            ("c", "3", math.nan, "silent"),
        )
    )
    assert means["track"].tolist() == ["a", "b", "c"]
    assert means["value"].tolist()[:2] == [2.0, 5.0]
    assert math.isnan(means["value"].iloc[2])
    assert means["reason"].tolist() == ["", "", "silent; short"]
    assert means["segments"].tolist() == [2, 1, 0]
    assert means["skipped"].tolist() == [0, 1, 3]
    assert set(means["kbps"]) == {1.987654321}


CARD = SystemCard(
    name="fusion_3",
    title="Fusion at block 3",
    role="variant",
    change="the channels fuse in block 3",
    changes={"codec.fusion": "3"},
    axis="fusion",
    parameters=9_251_904,
    macs_per_second=1.5e9,
    is_causal=True,
    sample_rate=48000,
    versions={"torch": "2.13.0"},
)


def test_a_card_comes_back_as_it_was(tmp_path: Path) -> None:
    write_card(CARD, tmp_path / "cards" / "fusion_3.json")
    assert read_card(tmp_path / "cards" / "fusion_3.json") == CARD
    assert [file.name for file in (tmp_path / "cards").iterdir()] == ["fusion_3.json"]


def test_a_card_with_other_keys_is_refused(tmp_path: Path) -> None:
    facts = dataclasses.asdict(CARD)
    facts["colour"] = facts.pop("axis")
    (tmp_path / "card.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"card.json: .*missing keys \['axis'\], unknown keys \['colour'\]"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"role": "hero"}, "role is 'hero'; it is one of baseline, variant, peer, check"),
        ({"status": "done"}, "status is 'done'; it is one of finished, failed"),
        ({"status": "failed"}, "a failed system says why"),
    ],
)
def test_facts_that_are_not_allowed(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(CARD, **changes)


def test_nan_is_no_fact(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_card(dataclasses.replace(CARD, latency_ms=math.nan), tmp_path / "card.json")
    assert not list(tmp_path.iterdir())


def test_the_protocol_hash_moves_with_every_part() -> None:
    protocol = EvaluationProtocol(settings={"a": {"x": 1, "y": (2, 3)}}, versions={"torch": "2.13.0"})
    assert protocol.hash == EvaluationProtocol(settings={"a": {"y": [2, 3], "x": 1}}, versions={"torch": "2.13.0"}).hash
    assert len(protocol.hash) == 12
    others = [
        dataclasses.replace(protocol, sample_rate=44100),
        dataclasses.replace(protocol, segment_seconds=5.0),
        dataclasses.replace(protocol, metrics=("si_sdr",)),
        dataclasses.replace(protocol, reference_level="-23 LUFS"),
        dataclasses.replace(protocol, settings={}),
        dataclasses.replace(protocol, versions={}),
    ]
    assert len({protocol.hash, *(other.hash for other in others)}) == 7


def test_the_protocol_hash_of_today_stays() -> None:
    """Studies on disk carry this hash. It changes only with a metric or with a new METRICS_VERSION."""
    assert EvaluationProtocol().hash == "9bc32a016786"


def test_metrics_are_formatted_as_agreed() -> None:
    decimals = {info.unit: info.decimals for info in METRICS.values() if info.unit}
    assert decimals == {"MOS-LQO": 2, "dB": 1, "rad": 2}
    assert METRICS["ipd_error"].higher_is_better is False
