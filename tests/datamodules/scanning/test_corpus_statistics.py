"""Counts, hours and quantiles of tables whose statistics are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.manifest import ManifestError, empty_manifest, typed, write_manifest
from datamodules.scanning.corpus_statistics import corpus_statistics, read_manifests, usable, weighted_quantiles
from datamodules.scanning.duplicates import mark_duplicates


def _manifest(**columns: object) -> pandas.DataFrame:
    rows = len(next(iter(columns.values())))  # type: ignore[arg-type]
    given_columns: dict[str, object] = {
        "corpus": "folder",
        "root": "/music",
        "name": [f"{number:03}.flac" for number in range(rows)],
        "sample_rate": 48000,
        "channels": 2,
        "frames": 48000 * 3600,
        "duration_seconds": 3600.0,
        "container": "FLAC",
        "subtype": "PCM_16",
        "side_to_mid_db": -6.0,
        "clipped_share": 0.0,
        "silent_share": 0.0,
        "content_hash": [f"{number:032}" for number in range(rows)],
    }
    return typed(pandas.DataFrame(given_columns | columns))


def _found(statistics: pandas.DataFrame, section: str) -> dict[str, tuple[int, float]]:
    rows = statistics[statistics["section"] == section]
    return {row.item: (row.tracks, row.hours) for row in rows.itertuples()}


def test_hours_and_tracks_by_what_is_known() -> None:
    table = _manifest(
        split=["train", "train", "test", "", ""],
        genre=["Rock", "Pop", "Pop", "", "Pop"],
        sample_rate=[48000, 44100, 44100, 44100, None],
        duration_seconds=[1800, 3600, 5400, 7200, None],
        problem=["", "", "", "", "is empty (0 bytes)"],
    )

    statistics = corpus_statistics(table)

    assert _found(statistics, "all")["can be used"] == (4, 5.0)
    assert _found(statistics, "all")["cannot be used"][0] == 1
    assert _found(statistics, "split") == {"none": (1, 2.0), "train": (2, 1.5), "test": (1, 1.5)}
    assert _found(statistics, "genre") == {"Pop": (2, 2.5), "Rock": (1, 0.5)}
    assert _found(statistics, "sample rate (Hz)") == {"44100": (3, 4.5), "48000": (1, 0.5)}
    assert _found(statistics, "format") == {"FLAC PCM_16": (4, 5.0)}
    assert list(_found(statistics, "genre")) == ["Pop", "Rock"]  # most hours first


def test_findings_count_what_stands_out() -> None:
    table = _manifest(
        corpus=["a", "a", "b", "b"],
        side_to_mid_db=[-math.inf, -59.0, -61.0, None],
        channels=[2, 2, 2, 1],
        clipped_share=[0.0, 2e-4, 0.5e-4, None],
        silent_share=[0.6, 0.5, 0.0, None],
        content_hash=["x", "x", "x", ""],
        split=["train", "train", "test", "test"],
    )

    findings = _found(corpus_statistics(mark_duplicates(table)), "finding")

    by_word = {item.split(" ")[0]: values for item, values in findings.items()}
    assert by_word == {
        "mono": (2, 2.0),
        "clipped": (1, 1.0),
        "silent": (1, 1.0),
        "not": (1, 1.0),
        "copies": (2, 2.0),
        "same": (3, pytest.approx(math.nan, nan_ok=True)),
    }


def test_quantiles_are_weighted_by_hours() -> None:
    table = _manifest(bandwidth_hz=[10000, 16000, 20000], duration_seconds=[100, 100, 9800])

    rows = corpus_statistics(table).query("section == 'bandwidth (kHz)'")

    assert dict(zip(rows["item"], rows["value"], strict=True)) == {
        "5%": 20,
        "25%": 20,
        "50%": 20,
        "75%": 20,
        "95%": 20,
    }


def test_what_was_not_measured_has_no_quantiles() -> None:
    sections = set(corpus_statistics(_manifest(name=["a"]))["section"])

    assert "duration (minutes)" in sections
    assert "bandwidth (kHz)" not in sections


def test_problems_of_a_kind_are_one_row() -> None:
    problems = [
        "is cut short: its header promises 44100 frames, it ends at 22050; copy it again",
        "is cut short: its header promises 9 frames, it ends at 3.5; copy it again",
        "is the same file as '/music/a.flac'",
        'is the same file as "/music/it\'s.flac"',
        "",
    ]

    found = _found(corpus_statistics(_manifest(problem=problems)), "problem")

    assert {item: count for item, (count, _) in found.items()} == {
        "is cut short: its header promises N frames, it ends at N; copy it again": 2,
        "is the same file as ...": 2,
    }


def test_an_empty_manifest_has_statistics() -> None:
    statistics = corpus_statistics(empty_manifest())

    assert _found(statistics, "all")["can be used"] == (0, 0.0)


@given(
    pairs=st.lists(st.tuples(st.integers(-5, 5) | st.just(-math.inf), st.integers(1, 9)), min_size=1, max_size=9),
    quantile=st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.95]),
)
def test_weighted_quantiles_are_those_of_repeated_values(pairs: list[tuple[float, int]], quantile: float) -> None:
    values, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    repeated = np.sort(np.repeat(values, weights.astype(int)))

    expected = repeated[math.ceil(round(quantile * len(repeated), 9)) - 1]

    assert weighted_quantiles(values, weights, [quantile])[0] == expected


def test_several_manifests_are_one_and_a_track_counts_once(tmp_path: Path) -> None:
    first = _manifest(name=["a.wav", "b.wav"], content_hash=["1", "2"])
    second = _manifest(name=["b.wav", "c.wav"], content_hash=["2", "1"])
    for name, table in (("first.csv", first), ("second.parquet", second)):
        write_manifest(table, tmp_path / name)

    table = read_manifests([tmp_path / "first.csv", tmp_path / "second.parquet"])

    assert table["name"].tolist() == ["a.wav", "b.wav", "c.wav"]
    assert table["duplicate_of"].tolist() == ["", "", "folder/a.wav"]
    assert len(usable(table)) == 3


def test_a_missing_manifest_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="data scan"):
        read_manifests([tmp_path / "nowhere.csv"])
