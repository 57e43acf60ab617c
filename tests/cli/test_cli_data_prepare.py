"""`spectrostream data prepare` as its user meets it: last lines, mistakes, and a kill in the middle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas
import pytest
import soundfile
from workbench import hidden_or_unfinished, started, write_sound

from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.corpora.manifest import read_manifest, table_name, write_manifest
from datamodules.shards.index import read_index
from spectrostream_cli import main

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus, and a file that is none."""
    folder = tmp_path_factory.mktemp("manifest")
    rows = []
    for path in sorted(demo_corpus_root().glob("*.[fo][lg]*")):
        info = soundfile.info(path)
        rows.append({"root": str(demo_corpus_root()), "name": path.name, "sample_rate": info.samplerate,
                     "channels": info.channels, "frames": info.frames})  # fmt: skip
    rows.append({**rows[0], "name": "gone.flac"})
    table = pandas.DataFrame(rows).assign(corpus="demo")
    write_manifest(table, folder / "demo.parquet")
    return folder / "demo.parquet"


def prepared(*words: object) -> int:
    return main(["data", "prepare", *map(str, words)])


def test_prepared_flac_files_and_the_printed_lines(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert prepared(manifest, "--out", out, "--format", "flac", "--workers", 1, "--sample-rate", 24000) == 0
    words = capsys.readouterr().out
    assert f"prepared: {out / 'manifest.parquet'} (6 tracks, 0.04 h" in words
    assert f"1 passed over, see {out / 'passed-over.csv'}" in words
    assert "passed over: demo/gone.flac: cannot be opened" in words
    assert set(read_manifest(out / "manifest.parquet")["sample_rate"]) == {24000}
    assert prepared(manifest, "--out", out, "--format", "flac", "--workers", 1, "--sample-rate", 24000) == 0
    assert "all of it was there" in capsys.readouterr().out


MISTAKES = {
    "float32 is not possible with --format flac, which allows": ("--format", "flac", "--encoding", "float32"),
    "--sample-rate 4000 is not possible, allowed are 8000 to": ("--format", "flac", "--sample-rate", 4000),
    "--channels 0": ("--format", "flac", "--channels", 0),
    "--workers 0": ("--format", "flac", "--workers", 0),
    "--shard-megabytes 0": ("--format", "shards", "--shard-megabytes", 0),
}  # fmt: skip


@pytest.mark.parametrize("message", list(MISTAKES))
def test_mistakes(manifest: Path, tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared(manifest, "--out", tmp_path / "out", *MISTAKES[message]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes_with_files(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared(tmp_path / "none.parquet", "--out", tmp_path / "out", "--format", "flac") == 1
    assert "data scan FOLDER" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert prepared(manifest, "--out", tmp_path / "file", "--format", "flac") == 1
    assert "is a file; type the name of a folder" in capsys.readouterr().err
    within = tmp_path / "whole" / "manifest.parquet"
    write_manifest(read_manifest(manifest), within)
    before = within.read_bytes()
    assert prepared(within, "--out", within.parent, "--format", "flac") == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert [within.read_bytes()] == [path.read_bytes() for path in within.parent.iterdir()]
    assert within.read_bytes() == before
    empty = tmp_path / "empty.csv"
    write_manifest(read_manifest(manifest).iloc[:0], empty)
    assert prepared(empty, "--out", tmp_path / "out", "--format", "flac") == 1
    assert "None of the 0 tracks" in capsys.readouterr().err


def test_another_manifest_into_the_same_folder_is_a_mistake(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, options = read_manifest(manifest), ("--out", tmp_path / "out", "--format", "shards", "--workers", 1)
    for rows, name in ((table.iloc[:1], "one.csv"), (table.iloc[1:2], "two.csv")):
        write_manifest(rows, tmp_path / name)
    assert prepared(tmp_path / "one.csv", *options) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert prepared(tmp_path / "two.csv", *options) == 1
    error = capsys.readouterr().err
    assert f"holds 1 tracks of '{tmp_path / 'one.csv'}'" in error
    assert f"type another --out, for instance --out '{tmp_path}/out-two', or remove the folder" in error
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", "prepare", "--help"])
    assert stopped.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "spectrostream data prepare music.parquet --out shards --format shards" in words
    assert "a new track changes only its own shard" in words


def test_shards_that_are_removed_are_counted(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = read_manifest(manifest).iloc[:2].assign(split=["train", "test"]), tmp_path / "out"
    for rows in (table, table.iloc[:1]):
        write_manifest(rows, tmp_path / "music.parquet")
        assert prepared(tmp_path / "music.parquet", "--out", out, "--format", "shards", "--workers", 1) == 0
    assert "1 shards of an earlier manifest removed" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in out.glob("*.tar")] == ["train-00000000.tar"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flac", "shards"])
def test_a_killed_prepare_resumes_to_the_same_bytes(tmp_path: Path, kind: str) -> None:
    root, rows = tmp_path / "music", []
    for number in range(6):
        path = write_sound(root / f"{number}.wav", 15.0, rate=44100, seed=number)
        numbers = {"sample_rate": 44100, "channels": 2, "frames": 44100 * 15}
        rows.append({"root": table_name(root), "name": path.name, **numbers})
    manifest = tmp_path / "music.csv"
    write_manifest(pandas.DataFrame(rows).assign(corpus="folder"), manifest)

    def words(out: Path) -> tuple[object, ...]:
        options = ("--format", kind, "--shard-megabytes", 3, "--workers", 1)
        return ("data", "prepare", manifest, "--out", out, *options)

    def finished(out: Path) -> list[Path]:
        return [path for path in out.rglob("*") if path.suffix in (".flac", ".tar")]

    out = tmp_path / "out"
    with started(*words(out), start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(finished(out)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    there = {path: path.stat().st_mtime_ns for path in finished(out)}
    assert 2 <= len(there) < 6
    assert main([str(word) for word in words(out)]) == 0
    assert main([str(word) for word in words(tmp_path / "whole")]) == 0
    kept = [path for path, modified in there.items() if path.stat().st_mtime_ns == modified]
    assert len(kept) >= len(there) - 1, "all but one that was finished and not yet in the log"
    for path in finished(tmp_path / "whole"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()
    assert len(finished(out)) == 6
    assert hidden_or_unfinished(out) == [".prepare.lock"]
    if kind == "shards":
        index = (out / "index.parquet").read_bytes()
        assert index == (tmp_path / "whole" / "index.parquet").read_bytes()
        assert len(read_index(index, "here")) == 6
