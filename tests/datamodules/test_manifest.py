from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from corpus_tables import table_of_rows
from hypothesis import given
from hypothesis import strategies as st

from datamodules.corpora.manifest import (
    COLUMNS,
    FORMATS,
    ManifestError,
    empty_manifest,
    file_path,
    read_manifest,
    table_name,
    typed,
    write_manifest,
)

# Nanoseconds, more than a float can tell apart.
TIME = 1_700_000_000_123_456_789
FILE_NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, ord("/")} & set(name))


@given(st.lists(FILE_NAMES, min_size=1, max_size=4))
def test_any_file_name_survives_being_text(parts: list[bytes]) -> None:
    path = Path("/music", *(os.fsdecode(part) for part in parts))
    text = table_name(path)
    text.encode()  # it is valid text
    assert not set(text) & set(map(chr, range(32)))
    assert file_path("/", text.removeprefix("/")) == path


@pytest.mark.parametrize("extension", FORMATS)
def test_a_table_is_read_as_it_was_written(tmp_path: Path, extension: str) -> None:
    rows = [
        {"name": "NA", "genre": "Rock, Roll", "side_to_mid_db": -np.inf, "content_hash": "00123"},
        {"name": 'quote".wav', "genre": "", "bandwidth_hz": 20123.25},
        {"name": table_name("a\nb"), "problem": "is empty (0 bytes)", "frames": None, "own": 3},
    ]
    table = typed(table_of_rows(rows).assign(modified_ns=pd.array([None, TIME, None], "Int64")))
    path = tmp_path / "deep" / f"m{extension}"
    write_manifest(table, path)
    again = read_manifest(path)
    pd.testing.assert_frame_equal(again, table)
    assert again["modified_ns"][1] == TIME
    assert list(again.columns) == [*COLUMNS, "own"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_table_of_somebody_else_needs_few_columns(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("root,name,sample_rate,channels,frames\n/music,a.wav,48000,2,480000\n", encoding="utf-8")
    table = read_manifest(path)
    assert table.loc[0, "problem"] == table.loc[0, "genre"] == ""
    assert pd.isna(table.loc[0, "loudness_lufs"])
    path.write_text("root,name\n/music,a.wav\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="no column sample_rate, channels, frames; write it with `spectrostream"):
        read_manifest(path)


def test_an_interrupted_writing_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.csv"
    write_manifest(typed(table_of_rows([{}])), path)
    before = path.read_bytes()
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_manifest(empty_manifest(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "does not exist; write it with `spectrostream data scan"),
        ("text.parquet", b"no table", "cannot be read"),
        ("binary.csv", b"\xff\xfe\x00\x01", "cannot be read"),
        ("letters.csv", b"root,name,sample_rate,channels,frames\n/m,a,fast,2,1\n", "cannot be read"),
        ("table.xlsx", b"", r"\.parquet or \.csv, given was"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / name)
