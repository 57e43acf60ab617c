"""What is written is read again, however the file was cut."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.scanning.journal import Finished, ScanJournal, TrackKey, read_journal
from datamodules.scanning.measuring import Measurement

MEASUREMENT = Measurement(48000, 2, 480, 0.01, "FLAC", "PCM_16", -12.5, -0.1, 0.0, 0.5, -math.inf, None, "ab" * 16)
ENTRIES = {
    TrackKey("/music", "a b\\x0a\\xff 🎵.flac", ""): Finished(10, 1795370698836066134, MEASUREMENT),
    TrackKey("/music", "mix", "bass.wav\ndrums.wav"): Finished(20, 5, None, "is cut short: 'name'"),
    TrackKey("/music", "c.wav", ""): Finished(None, None, None, "cannot be opened"),
}


def _written(path: Path) -> bytes:
    with ScanJournal(path) as journal:
        for key, finished in ENTRIES.items():
            journal.add(key, finished)
    return path.read_bytes()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    _written(tmp_path / "journal")

    assert read_journal(tmp_path / "journal") == ENTRIES


def test_each_track_is_on_disk_at_once(tmp_path: Path) -> None:
    with ScanJournal(tmp_path / "journal") as journal:
        for number, (key, finished) in enumerate(ENTRIES.items(), 1):
            journal.add(key, finished)

            assert len(read_journal(tmp_path / "journal")) == number


def test_no_journal_says_nothing(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "journal") == {}


@given(share=st.floats(0, 1))
def test_a_torn_journal_keeps_its_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = tmp_path_factory.mktemp("torn") / "journal"
    content = _written(path)
    torn = content[: round(share * len(content))]
    path.write_bytes(torn)
    whole = [line for line in torn.splitlines() if line in content.splitlines()]

    assert list(read_journal(path).items()) == list(ENTRIES.items())[: len(whole)]

    _written(path)
    assert read_journal(path) == ENTRIES


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_anything_else_is_no_journal(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("foreign") / "journal"
    path.write_bytes(content)

    assert read_journal(path) == {}


@pytest.mark.parametrize("line", ["1", "null", "[]", '{"root": 1}', '{"root":"","name":"","parts":"","measurement":3}'])
def test_other_json_is_passed_over(tmp_path: Path, line: str) -> None:
    content = _written(tmp_path / "journal")
    (tmp_path / "journal").write_bytes(line.encode() + b"\n" + content)

    assert read_journal(tmp_path / "journal") == ENTRIES
