from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from datamodules.corpora.folder_corpus import demo_corpus_root, scan_folder
from datamodules.corpora.manifest import read_manifest, write_manifest
from spectrostream_cli import main

pytestmark = pytest.mark.processes


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_manifest(scan_folder(demo_corpus_root()).table, tmp_path / "demo.parquet")
    return tmp_path / "demo.parquet"


def test_an_existing_table_of_segments_is_not_replaced(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tables" / "segments.csv"
    words = ["data", "segments", str(manifest), "--out", str(out), "--count", "3", "--seconds", "2", "--split", "end"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"segments: {out} (3 of 2 s at most, from 3 tracks)"
    table = pd.read_csv(out)
    assert list(table.columns) == ["corpus", "track", "start_seconds", "duration_seconds", "content_hash"]
    assert (table["duration_seconds"] == 2).all()
    before = out.read_bytes()
    assert main(words) == 0
    assert main([*words, "--count", "2"]) == 1
    assert f"{str(out)!r} is there and is not this table; type another file" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_manifest_is_not_replaced_by_the_segments_of_it(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "demo.csv"
    write_manifest(read_manifest(manifest), table)
    before = table.read_bytes()
    assert main(["data", "segments", str(table), "--out", str(table), "--seconds", "2", "--split", "end"]) == 1
    assert "is not this table; type another file" in capsys.readouterr().err
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count 0 is not possible; allowed: a whole number, 1 or more"),
        (["--out", "segments.txt"], "--out 'segments.txt' is not possible; allowed: a file that ends in .csv"),
        (["--seconds", "0"], "data.evaluation_segment_seconds=0.0 is not allowed"),
        (["--keep", "loud > 1"], "is no condition on the columns"),
        (["--held-out-fraction", "0"], "nothing is held out of"),
    ],
)
def test_segment_mistakes_are_explained(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["data", "segments", str(manifest), "--out", str(tmp_path / "s.csv"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "s.csv").exists()


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "segments", str(tmp_path / "no.parquet"), "--out", str(tmp_path / "s.csv")]) == 1
    assert "does not exist; write it with `spectrostream data scan" in capsys.readouterr().err
