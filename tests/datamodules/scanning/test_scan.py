"""Folders as they are: scanned to the end, whatever lies in them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from music_files import noisy_tones, write_raw
from scanned_folder import Scanner, by_name, music

from datamodules.audio.find_files import SkippedFile
from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.corpora.manifest import file_path, read_manifest, write_manifest
from datamodules.layouts import LAYOUTS, Entry, Found, LayoutError
from datamodules.scanning import pool as scan_pool
from datamodules.scanning.measuring import measure
from datamodules.scanning.pool import Job, measured
from datamodules.scanning.scan import ScanError, scan

pytestmark = pytest.mark.processes

DEMO = demo_corpus_root()


def _endless(path: Path, hours: float) -> Path:
    """Silence in a few bytes that takes long to decode."""
    piece = np.zeros(8000 * 600, np.int16)
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(round(hours * 6)):
            file.write(piece)
    return path


# ---- what lies in folders


def _bad_folder(root: Path) -> dict[str, str]:
    """Makes it; which names are expected to be bad, and a word of the reason."""
    good = music(root / "album one" / "01 good.flac").read_bytes()
    music(root / "new\nline.wav", 1)
    music(root / "emoji 🎵.flac", 2)
    music(root / "latin.flac", 3).rename(root / os.fsdecode(b"latin \xe9.flac"))
    music(root / "upper.FLAC", 4)
    music(root / "eight.wav", 5, channels=8)
    music(root / "high.wav", 6, rate=192000)
    music(root / "low.wav", 7, rate=8000)
    write_raw(root / "square.wav", np.where(np.arange(44100) % 100 < 50, 1.0, -1.0), 44100)
    (root / "really a flac.wav").write_bytes(music(root / "x.flac", 8).read_bytes())
    (root / "x.flac").rename(root / "x2.flac")
    (root / "loop").symlink_to(root)
    (root / "dangling.flac").symlink_to(root / "nowhere.flac")
    os.mkfifo(root / "pipe.wav")
    (root / "folder.wav").mkdir()
    (root / "notes.txt").write_text("no music")
    noise = noisy_tones(0.5, 44100)
    noise[1000, 0] = np.nan
    write_raw(root / "nan.wav", noise, 44100, subtype="FLOAT")
    bad = {
        "truncated.flac": (good[: len(good) // 2], "cut short"),
        "zero.flac": (b"", "empty (0 bytes)"),
        "text.mp3": (b"no music at all " * 50, "cannot be read as audio"),
        "drm.wma": (good, "cannot be read here"),
        "video.mp4": (good, "cannot be read here"),
    }
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in bad.items()}
    return reasons | {"nan.wav": "1 NaN", "dangling.flac": "No such file", "pipe.wav": "not a regular file"}


def test_everything_that_lies_in_a_folder_is_a_row(scanner: Scanner) -> None:
    bad = _bad_folder(scanner.root)

    table = scanner(workers=2)

    rows = by_name(table)
    for name, reason in bad.items():
        assert reason in rows.pop(name)["problem"], name
    assert set(rows) == {
        "album one/01 good.flac",
        "new\\x0aline.wav",
        "emoji 🎵.flac",
        "latin \\xe9.flac",
        "upper.FLAC",
        "eight.wav",
        "high.wav",
        "low.wav",
        "square.wav",
        "really a flac.wav",
        "x2.flac",
    }
    for name, row in rows.items():
        assert row["problem"] == "", name
        assert len(row["content_hash"]) == 32, name
        file = file_path(row["root"], name)
        assert (row["size_bytes"], row["modified_ns"]) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert rows["eight.wav"]["channels"] == 8
    assert rows["high.wav"]["sample_rate"] == 192000
    assert rows["square.wav"]["clipped_share"] == pytest.approx(1)
    assert rows["album one/01 good.flac"]["group"] == ""  # a folder need not be an album; tags say what is
    assert rows["x2.flac"]["duplicate_of"] == "folder/really a flac.wav"
    assert table["name"].tolist() == sorted(table["name"])


def test_tags_tell_what_the_layout_does_not(scanner: Scanner) -> None:
    source = demo_corpus_root() / "void_sensor_zeropage.ogg"
    content = source.read_bytes()
    (scanner.root / "good.ogg").write_bytes(content)
    audio, rate = soundfile.read(source, frames=48000)
    with soundfile.SoundFile(scanner.root / "odd.flac", "w", rate, 2, format="FLAC") as file:
        file.album, file.artist, file.genre = " two\nlines\t", "x" * 500, "Ambient"
        file.write(audio)

    rows = by_name(scanner())

    assert content.count(b"Ambient Pills") == 1
    assert (rows["good.ogg"]["group"], rows["good.ogg"]["album"]) == ("Ambient Pills", "Ambient Pills")
    assert rows["good.ogg"]["artist"] == "Zeropage"
    assert (rows["odd.flac"]["group"], rows["odd.flac"]["genre"]) == ("two lines", "Ambient")
    assert rows["odd.flac"]["artist"] == "x" * 200


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_manifest_is_read_as_it_was_written(scanner: Scanner, tmp_path: Path, suffix: str) -> None:
    _bad_folder(scanner.root)
    table = scanner()

    write_manifest(table, tmp_path / f"m{suffix}")

    pandas.testing.assert_frame_equal(read_manifest(tmp_path / f"m{suffix}"), table)
    scanner(known=read_manifest(tmp_path / f"m{suffix}"))
    assert scanner.measured == 5  # the bad files that are there and audio by name are given another chance


def test_real_music_is_measured_in_a_process_as_it_is_here(scanner: Scanner) -> None:
    scanner.root = DEMO

    rows = by_name(scanner(workers=2))

    assert len(rows) == 6
    row, expected = rows["zalek2_whallon.ogg"], measure([DEMO / "zalek2_whallon.ogg"])
    for name in ("loudness_lufs", "bandwidth_hz", "content_hash", "frames", "side_to_mid_db"):
        assert row[name] == getattr(expected, name)


def test_a_file_that_may_not_be_read_is_a_row(tmp_path: Path) -> None:
    path = music(tmp_path / "private.flac")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        outcome = scan_pool._outcome_of((path,), False)
    finally:
        os.seteuid(user)

    assert isinstance(outcome, str)
    assert "ermission denied" in outcome or "System error" in outcome


def test_files_that_vanish_are_rows(scanner: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    music(scanner.root / "here.flac")
    (scanner.root / "stems").mkdir()
    music(scanner.root / "stems" / "bass.wav")
    entries = (Entry("gone.flac"), Entry("here.flac"), Entry("stems", ("stems/bass.wav", "stems/gone.wav")))
    monkeypatch.setitem(LAYOUTS, "vanishing", lambda root: Found(entries))  # type: ignore[arg-type]

    rows = by_name(scanner("vanishing"))

    assert rows["gone.flac"]["problem"] == "cannot be opened: No such file or directory"
    assert rows["stems"]["problem"] == "cannot be opened: No such file or directory ('gone.wav')"
    assert rows["here.flac"]["problem"] == ""


def test_stems_are_one_track(scanner: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [music(scanner.root / "song" / f"{name}.wav", seed) for seed, name in enumerate(("bass", "drums"))]
    entry = Entry("song", ("song/bass.wav", "song/drums.wav"), "test", "album", "artist", "rock")
    skipped = SkippedFile(scanner.root / "song" / "notes.mp4", "is a video")
    monkeypatch.setitem(LAYOUTS, "stems", lambda root: Found((entry,), (skipped,)))  # type: ignore[arg-type]

    rows = by_name(scanner("stems"))

    row = rows["song"]
    assert (row["corpus"], row["split"], row["group"], row["artist"], row["genre"]) == (
        "stems",
        "test",
        "album",
        "artist",
        "rock",
    )
    assert row["parts"] == "song/bass.wav\nsong/drums.wav"
    assert row["size_bytes"] == sum(part.stat().st_size for part in parts)
    assert row["content_hash"] == measure(parts).content_hash
    assert rows["song/notes.mp4"]["problem"] == "is a video"


# ---- what hangs and what crashes


def test_a_file_that_takes_too_long_is_given_up_and_the_others_are_not(scanner: Scanner) -> None:
    for number in range(17):  # enough that a batch holds two of them
        music(scanner.root / f"{number:02}.flac", number, seconds=0.1)
    _endless(scanner.root / "05 endless.flac", hours=3)

    begin = time.monotonic()
    rows = by_name(scanner(timeout_seconds=0.75))

    problem = rows.pop("05 endless.flac")["problem"]
    assert problem == "took longer than 0.75 s; on a slow disk give more time, for instance --timeout 7.5"
    assert {row["problem"] for row in rows.values()} == {""}
    assert time.monotonic() - begin < 25


def test_a_large_file_has_more_time() -> None:
    assert scan_pool._limit((Job(0, (), 10**6), Job(1, (), 64 * 10**7)), 60) == 600


def _holders(path: Path) -> Iterator[int]:
    """Processes that have a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                yield int(link.parts[2])
        except OSError:
            continue


def _kill_holder(path: Path, is_over: Callable[[], bool]) -> None:
    while not is_over():
        for process in _holders(path):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def test_a_file_that_brings_its_process_down_is_a_row(scanner: Scanner) -> None:
    for number in range(3):
        music(scanner.root / f"{number}.flac", number)
    deadly = _endless(scanner.root / "deadly.flac", hours=3)
    over = threading.Event()
    killer = threading.Thread(target=_kill_holder, args=(deadly, over.is_set))
    killer.start()
    try:
        rows = by_name(scanner(workers=2))
    finally:
        over.set()
        killer.join()

    assert rows.pop("deadly.flac")["problem"].startswith("brought the decoder down (exit code -9)")
    assert {row["problem"] for row in rows.values()} == {""}


def test_no_process_is_left(scanner: Scanner) -> None:
    endless = _endless(scanner.root / "endless.flac", hours=3)
    jobs = [Job(0, (endless,), 1), Job(1, (music(scanner.root / "a.flac"),), 1)]
    outcomes = measured(jobs, workers=2, timeout_seconds=60, headers_only=False)
    next(outcomes)

    outcomes.close()

    assert list(_holders(endless)) == []


def test_batches_are_small_enough_for_all_workers_and_never_huge() -> None:
    jobs = [Job(number, (), 100_000) for number in range(1000)]

    batches = list(scan_pool._batches(jobs, workers=2, headers_only=False))

    assert [job for batch in batches for job in batch] == jobs
    assert {len(batch) for batch in batches} <= {62, 1000 % 62}
    large = [Job(number, (), 10**7) for number in range(1000)]
    assert {len(batch) for batch in scan_pool._batches(large, 2, False)} == {1}
    assert max(len(batch) for batch in scan_pool._batches(large, 2, True)) == 62


# ---- mistakes


def test_an_unknown_corpus_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"no corpus 'musdb'; known are .*folder"):
        scan(tmp_path, "musdb", journal=tmp_path / "journal")


@pytest.mark.parametrize(("name", "words"), [("nowhere", "does not exist"), ("file", "is not a folder")])
def test_a_folder_that_is_none_is_an_error(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ScanError, match=words):
        scan(tmp_path / name, journal=tmp_path / "journal")


def test_a_folder_without_music_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ScanError, match="no music"):
        scan(tmp_path, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
