"""Scanned again: nothing is measured twice, and what somebody wrote into the manifest stays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas
import pytest
from music_files import noisy_tones, write_raw
from scanned_folder import Scanner, by_name, music

from datamodules.corpora.manifest import read_manifest, typed, write_manifest
from datamodules.corpora.row_filter import fulfilled
from datamodules.layouts import LAYOUTS, Entry, Found
from datamodules.scanning.measuring import VERSION, measure
from datamodules.scanning.scan import ScanProgress, scan

pytestmark = pytest.mark.processes


def test_a_second_scan_measures_what_is_new_or_changed(scanner: Scanner) -> None:
    for number in range(6):
        music(scanner.root / f"{number}.flac", number)
    first = scanner()
    assert scanner.measured == 6

    same = scanner(known=first)
    assert scanner.measured == 0
    pandas.testing.assert_frame_equal(same, first)

    music(scanner.root / "1.flac", 11)
    os.utime(scanner.root / "2.flac", ns=(1, 1))
    (scanner.root / "3.flac").unlink()
    music(scanner.root / "6.flac", 6)
    later = scanner(known=same)

    assert scanner.measured == 3
    assert set(later["name"]) == {f"{number}.flac" for number in (0, 1, 2, 4, 5, 6)}
    assert by_name(later)["1.flac"]["content_hash"] == measure([scanner.root / "1.flac"]).content_hash


def test_what_was_added_to_a_manifest_by_hand_is_kept(scanner: Scanner, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        music(scanner.root / f"{name}.flac", ord(name))
    table = scanner()
    table["mood"], table["rating"], table["is_live"] = ["calm", "", "wild"], [3, 5, 1], [True, False, True]
    table["split"], table["genre"] = ["train", "test", ""], ["", "jazz", ""]
    for extension in (".csv", ".parquet"):
        path = tmp_path / f"manifest{extension}"
        write_manifest(table, path)
        (scanner.root / "a.flac").unlink(missing_ok=True)
        music(scanner.root / "d.flac", 9)

        again = scanner(known=read_manifest(path))

        rows = by_name(again)
        assert list(rows) == ["b.flac", "c.flac", "d.flac"]
        assert list(again["rating"].astype("Int64").fillna(-1)) == [5, 1, -1]
        assert list(again["is_live"].astype("boolean").fillna(False)) == [False, True, False]
        assert list(again["mood"].fillna("")) == ["", "wild", ""]
        assert list(again["split"]) == ["test", "", ""]
        assert list(again["genre"]) == ["jazz", "", ""]
        # They are columns as any others, also where a new file has no value.
        assert list(fulfilled(again, "rating > 2 and not is_live", "data.keep")) == [True, False, False]
        write_manifest(again, path)
        pandas.testing.assert_frame_equal(scanner(known=read_manifest(path)), again, check_dtype=False)


def test_what_the_corpus_says_is_stronger_than_what_was_added(
    scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    music(scanner.root / "song.flac")
    entry = Entry("song.flac", split="test", genre="rock")
    monkeypatch.setitem(LAYOUTS, "own", lambda root: Found((entry,), ()))  # type: ignore[arg-type]
    table = scanner("own").assign(split="train", genre="jazz", artist="somebody")
    (row,) = by_name(scanner("own", known=table)).values()
    assert (row["split"], row["genre"], row["artist"]) == ("test", "rock", "somebody")


@pytest.mark.parametrize("version", [None, VERSION - 1, VERSION + 1])
def test_what_another_version_measured_is_measured_again(scanner: Scanner, version: int | None) -> None:
    for number in range(2):
        music(scanner.root / f"{number}.flac", number)
    first = scanner()
    assert list(first["measurement_version"]) == [VERSION] * 2
    other = first.assign(bandwidth_hz=1.0)
    other.loc[1, "measurement_version"] = version
    again = scanner(known=other)
    assert scanner.measured == 1
    assert list(again["bandwidth_hz"] == 1.0) == [True, False]


def test_headers_are_no_measurement_but_a_measurement_has_headers(scanner: Scanner) -> None:
    music(scanner.root / "a.flac")
    headers = scanner(headers_only=True)
    row = by_name(headers)["a.flac"]
    assert (row["frames"], row["content_hash"]) == (22050, "")
    assert np.isnan(row["loudness_lufs"])

    whole = scanner(known=headers)
    assert scanner.measured == 1

    again = scanner(known=whole, headers_only=True)
    assert scanner.measured == 0
    pandas.testing.assert_frame_equal(again, whole)


def test_headers_forget_nothing_that_was_found_in_files_which_have_not_changed(scanner: Scanner) -> None:
    samples = noisy_tones(0.5, 44100)
    samples[1000] = np.nan
    for name in ("nan.wav", "mended.wav"):
        write_raw(scanner.root / name, samples, 44100, subtype="FLOAT")
    music(scanner.root / "good.wav", 1)
    measured = scanner()
    assert measured["problem"].str.contains("NaN").sum() == 2
    write_raw(scanner.root / "mended.wav", noisy_tones(0.5, 44100, 7), 44100, subtype="FLOAT")
    os.utime(scanner.root / "mended.wav", ns=(1, 1))

    headers = scanner(known=measured, headers_only=True)

    rows, before = by_name(headers), by_name(measured)
    assert rows["nan.wav"]["problem"] == before["nan.wav"]["problem"]
    assert rows["good.wav"].equals(before["good.wav"])
    assert (rows["mended.wav"]["problem"], rows["mended.wav"]["frames"]) == ("", 22050)
    # Headers alone again and again: it stays known.
    assert by_name(scanner(known=headers, headers_only=True))["nan.wav"]["problem"] != ""
    assert scanner.measured == 0
    # Whoever decodes tries what could not be used.
    scanner(known=headers)
    assert scanner.measured == 2


@pytest.mark.parametrize(
    "problem",
    [
        "cannot be opened: Permission denied",
        "cannot be opened: No such file or directory ('bass.wav')",
        "'/music/song/bass.wav': cannot be opened: Permission denied",
        "cannot be read: Input/output error",
        "took longer than 60 s; on a slow disk give more time, for instance --timeout 600",
        "brought the decoder down (exit code -9); copy it again or remove it",
        "brought the decoder down (exit code -15); copy it again or remove it",
        "cannot be measured (MemoryError: Unable to allocate 7.11 PiB for an array)",
    ],
)
def test_headers_are_tried_again_where_the_file_was_not_to_blame(scanner: Scanner, problem: str) -> None:
    music(scanner.root / "a.wav")
    unreachable = scanner().assign(problem=problem)
    assert list(scanner(known=unreachable, headers_only=True)["problem"]) == [""]


@pytest.mark.parametrize(
    "problem",
    [
        "cannot be read as audio, libsndfile says: Format not recognised.",
        "brought the decoder down (exit code -11); copy it again or remove it",
        "brought the decoder down (exit code -6); copy it again or remove it",
        "cannot be measured (ValueError: MemoryError)",
    ],
)
def test_headers_forget_no_reason_that_lies_in_the_file(scanner: Scanner, problem: str) -> None:
    music(scanner.root / "a.wav")
    broken = scanner().assign(problem=problem)
    assert list(scanner(known=broken, headers_only=True)["problem"]) == [problem]


@pytest.mark.parametrize("version", [None, VERSION - 1])
def test_headers_leave_what_another_version_measured_as_it_is(scanner: Scanner, version: int | None) -> None:
    music(scanner.root / "a.wav")
    measured = scanner()
    # What only a second measurement would change, and what only a header.
    other = measured.assign(bandwidth_hz=1.0, frames=5, measurement_version=version)
    again = scanner(known=other, headers_only=True)
    expected = measured.assign(bandwidth_hz=1.0, measurement_version=version)
    pandas.testing.assert_frame_equal(again, typed(expected))
    pandas.testing.assert_frame_equal(scanner(known=again), measured)
    # Headers that another version read are read by this one.
    headers = scanner(headers_only=True)
    old = headers.assign(frames=5, measurement_version=version)
    pandas.testing.assert_frame_equal(scanner(known=old, headers_only=True), headers)


def test_hard_links_are_measured_once_and_symbolic_links_are_named(scanner: Scanner) -> None:
    song = music(scanner.root / "a" / "song.flac")
    for number in range(5):
        os.link(song, scanner.root / f"copy {number}.flac")
    (scanner.root / "z").mkdir()
    (scanner.root / "z" / "link.flac").symlink_to(song)

    rows = by_name(scanner())

    assert scanner.measured == 1
    assert "is the same file as" in rows.pop("z/link.flac")["problem"]
    assert len({row["content_hash"] for row in rows.values()}) == 1
    assert [rows[f"copy {number}.flac"]["duplicate_of"] for number in range(5)] == ["folder/a/song.flac"] * 5


def test_a_scan_that_was_stopped_goes_on(scanner: Scanner, tmp_path: Path) -> None:
    for number in range(4):
        music(scanner.root / f"{number}.flac", number)

    class StopError(Exception):
        pass

    def stop_after_two(progress: ScanProgress) -> None:
        if progress.done == 2:
            raise StopError

    with pytest.raises(StopError):
        scan(scanner.root, journal=scanner.journal, progress=stop_after_two)
    table = scanner()

    assert scanner.measured == 2
    pandas.testing.assert_frame_equal(table, scanner())
