"""`data scan` and `data stats` as they are typed: what is said, what is written, mistakes, a kill in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
from workbench import hidden_or_unfinished, started, write_sound

from datamodules.corpora.manifest import read_manifest
from datamodules.corpora.manifest_corpus import load_manifests
from spectrostream.errors import UserError
from spectrostream_cli import main

pytestmark = pytest.mark.processes


@pytest.fixture
def music(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six files, two of them bad, one a copy; the working folder is beside it."""
    folder = tmp_path / "my music"
    write_sound(folder / "one.flac", 1.0)
    write_sound(folder / "album" / "two.wav", 2.0, rate=44100, seed=1)
    write_sound(folder / "mono.flac", 1.0, channels=1, seed=2)
    (folder / "copy.flac").write_bytes((folder / "one.flac").read_bytes())
    (folder / "empty.flac").touch()
    (folder / "text.mp3").write_text("no music at all")
    monkeypatch.chdir(tmp_path)
    return folder


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_scan_says_where_the_manifest_is_and_what_is_wrong(music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scan", str(music), "--workers", "1"]) == 0

    said = _said(capsys)
    assert "cannot be used: empty.flac: is empty (0 bytes)" in said
    assert "cannot be used: text.mp3: cannot be read as audio" in said
    assert said.endswith(
        "manifest: runs/data/my music.parquet (4 tracks, 0.00 hours, 2 files cannot be used, 1 copies of other tracks)"
    )
    table = read_manifest(Path("runs/data/my music.parquet"))
    assert len(table) == 6
    assert set(table["root"]) == {str(music)}
    assert hidden_or_unfinished(Path("runs")) == []


def test_a_second_scan_measures_only_new_files(music: Path) -> None:
    words = ["data", "scan", str(music), "--workers", "1", "--out", "m.csv"]
    assert main(words) == 0
    # What only a second measurement would change.
    text = Path("m.csv").read_text()
    known = read_manifest(Path("m.csv")).set_index("name")["content_hash"]
    Path("m.csv").write_text(text.replace(known["mono.flac"], "f" * 32))
    write_sound(music / "new.flac", 1.0, seed=3)

    assert main(words) == 0

    hashes = read_manifest(Path("m.csv")).set_index("name")["content_hash"]
    assert hashes["mono.flac"] == "f" * 32
    assert len(hashes["new.flac"]) == 32


def test_folders_with_equal_file_names_are_trained_on_together_with_names_of_their_own(tmp_path: Path) -> None:
    def scanned(folder: str, *options: str) -> str:
        out = str(tmp_path / f"{folder}.parquet")
        assert main(["data", "scan", str(tmp_path / folder), "--workers", "1", "--out", out, *options]) == 0
        return out

    def trained(*manifests: str) -> list[str]:
        return [track.name for track in load_manifests(manifests).tracks]

    for seed, path in enumerate(("one/a.flac", "one/b.flac", "two/a.flac", "two/b.flac")):
        write_sound(tmp_path / path, 1.0, seed=seed)
    plain = scanned("one"), scanned("two")
    with pytest.raises(UserError, match=r"2 tracks are there twice.*data scan FOLDER --name NAME"):
        trained(*plain)
    named = scanned("one"), scanned("two", "--name", "live")
    expected = ["folder/a.flac", "folder/b.flac", "live/a.flac", "live/b.flac"]
    assert trained(*named) == expected
    assert trained(scanned("one"), scanned("two")) == expected
    prepared = []
    for number, manifest in enumerate(named):
        out = tmp_path / f"flac{number}"
        assert main(["data", "prepare", manifest, "--out", str(out), "--format", "flac", "--workers", "1"]) == 0
        prepared.append(str(out / "manifest.parquet"))
    assert trained(*prepared) == expected
    assert set(read_manifest(Path(scanned("two", "--name", "folder")))["corpus"]) == {"folder"}


def test_headers_only_decodes_nothing(music: Path) -> None:
    assert main(["data", "scan", str(music), "--headers-only", "--out", "m.csv", "--workers", "1"]) == 0

    table = read_manifest(Path("m.csv"))
    assert set(table["content_hash"]) == {""}
    assert table["duration_seconds"].sum() == pytest.approx(5.0)


def test_stats_prints_a_table_and_writes_pictures(music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "scan", str(music), "--workers", "1", "--out", "m.parquet"]) == 0
    capsys.readouterr()

    assert main(["data", "stats", "m.parquet"]) == 0

    said = _said(capsys)
    assert said.endswith("statistics: m-stats (statistics.csv, corpus.svg, corpus.png)")
    for words in ("can be used 4", "44100 1", "48000 3", "loudness (LUFS) 5%", "copies of another track 1", "is empty"):
        assert words in said, words
    statistics = pandas.read_csv("m-stats/statistics.csv")
    assert list(statistics.columns) == ["section", "item", "tracks", "hours", "value"]
    assert Path("m-stats/corpus.png").read_bytes().startswith(b"\x89PNG")
    assert Path("m-stats/corpus.svg").read_text().startswith("<?xml")
    assert hidden_or_unfinished(Path("m-stats")) == []


def test_stats_of_several_manifests(music: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, out in ((music, "a.csv"), (music / "album", "b.csv")):
        assert main(["data", "scan", str(folder), "--workers", "1", "--headers-only", "--out", out]) == 0
    capsys.readouterr()

    assert main(["data", "stats", "a.csv", "b.csv", "--out", "both"]) == 0

    assert "can be used 5" in _said(capsys)
    assert Path("both/corpus.svg").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scan", "MUSIC", "--corpus", "musdb"], "no corpus 'musdb'; known are"),
        (["scan", "MUSIC", "--name", "a/b"], "cannot be called 'a/b'; allowed are .* --name live"),
        (["scan", "MUSIC", "--name", ""], "cannot be called ''; allowed are"),
        (["scan", "MUSIC", "--name", "fma"], "laid out as 'folder'; type another --name, or --corpus fma"),
        (["scan", "nowhere"], "'/.*/nowhere' does not exist"),
        (["scan", "MUSIC", "--out", "m.json"], r"\.parquet or \.csv"),
        (["scan", "MUSIC", "--out", "other.csv"], "other.csv exists and is not a manifest"),
        (["scan", "MUSIC", "--out", "elsewhere.csv"], "is the manifest of /elsewhere; type another name with --out"),
        (["scan", "hopeless"], "none of 1 files can be used; the reasons are in runs/data/hopeless.parquet"),
        (["scan", "bare"], "no music"),
        (["stats", "nowhere.parquet"], "does not exist; write it with `spectrostream data scan"),
        (["stats", "other.csv"], "has no column"),
    ],
)
def test_mistakes_are_explained(
    music: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    Path("other.csv").write_text("song,year\na,1999\n")
    Path("elsewhere.csv").write_text("root,name,sample_rate,channels,frames\n/elsewhere,a.wav,48000,2,10\n")
    Path("bare").mkdir()
    Path("hopeless").mkdir()
    Path("hopeless/a.wav").write_text("no music")
    before = Path("other.csv").read_text()

    code = main(["data", *(str(music) if word == "MUSIC" else word for word in words)])

    captured = capsys.readouterr()
    assert code == 1
    assert "Traceback" not in captured.err
    assert captured.err.startswith("error: ")
    assert re.search(expected, captured.err), captured.err
    assert Path("other.csv").read_text() == before
    assert hidden_or_unfinished(music.parent) == []


@pytest.mark.parametrize(
    "option", [["--workers", "0"], ["--timeout", "-1"], ["--timeout", "nan"], ["--workers", "two"], ["--timeout", ""]]
)
def test_impossible_numbers_are_refused(music: Path, capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "scan", str(music), *option])
    assert "must be" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["scan", "stats"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["data", command, "--help"])
    assert f"examples:\n  spectrostream data {command}" in capsys.readouterr().out


def _wait_until(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def _holders(path: Path) -> list[int]:
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == path:
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_killed_scan_leaves_no_process_and_resumes(music: Path) -> None:
    slow = music / "slow.flac"
    soundfile.write(slow, np.zeros(8000 * 3600 * 3, np.int16), 8000)  # silence takes no room, but time
    words = ["data", "scan", str(music), "--workers", "1", "--out", "m.csv"]
    process = started(*words)
    journal = Path(".m.csv.journal")
    _wait_until(lambda: _holders(slow) and journal.exists() and journal.read_bytes().count(b"\n") == 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert not Path("m.csv").exists()
    _wait_until(lambda: not _holders(slow), seconds=2)
    # What only a second measurement would change.
    lines = journal.read_text()
    journal.write_text(lines.replace('"content_hash": "', '"content_hash": "again-')[:-3] + "\n" + '{"root": "torn')
    slow.unlink()
    assert main(words) == 0

    table = read_manifest(Path("m.csv"))
    assert table["content_hash"].str.startswith("again-").sum() >= 3
    assert len(table) == 6
    assert not journal.exists()


@pytest.mark.slow
def test_ctrl_c_stops_quietly_and_keeps_what_is_done(music: Path) -> None:
    slow = music / "slow.flac"
    soundfile.write(slow, np.zeros(8000 * 3600 * 3, np.int16), 8000)  # silence takes no room, but time
    # A process group of its own: Ctrl-C in a terminal reaches all processes of it.
    process = started("data", "scan", music, "--workers", "1", "--out", "m.csv", start_new_session=True)
    _wait_until(lambda: _holders(slow))
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise

    assert process.returncode == 130
    assert error.decode().strip() == "stopped; run the same command again to resume"
    assert _holders(slow) == []
    assert not Path("m.csv").exists()
