"""A manifest that shrinks leaves no shards behind, and nothing else is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas
import pytest
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import prepare
from datamodules.shards.index import read_index

pytestmark = pytest.mark.processes

# A second of stereo is 192 kB: every track has a shard of its own.
SHARDS = Settings("pcm16", as_shards=True, shard_bytes=220_000)


@pytest.fixture
def music(tmp_path: Path) -> pandas.DataFrame:
    files = [
        write_raw(tmp_path / "music" / f"{name}.wav", noisy_tones(1.0, 48000, seed), 48000)
        for seed, name in enumerate("abcde")
    ]
    return manifest_of(tmp_path / "music", files, split=["train", "test", "test", "test", "test"])


def tars(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar")}


def test_shards_that_no_track_needs_any_more_are_removed(music: pandas.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(music, out, SHARDS)
    made = tars(out)
    train, *tests = sorted(made, reverse=True)
    assert (train, len(tests)) == ("train-00000000.tar", 4)
    (out / "mine.tar").write_bytes(b"not of the log")
    (out / tests[1]).write_bytes(b"not what was made")
    copied = out / tests[2]
    os.utime(copied, ns=(0, 0))
    again = prepare(music.iloc[:1], out, SHARDS)
    assert set(read_index(again.path.read_bytes(), "here")["shard"]) == {train}
    assert tars(out) == {train, "mine.tar", tests[1]}
    assert (again.removed, again.kept) == (3, 1)
    whole = prepare(music, out, SHARDS)
    assert (whole.removed, whole.made) == (0, 4), "what was removed is made again when it is needed again"
    assert tars(out) == made | {"mine.tar"}


def test_shards_of_several_manifests_before_are_removed(music: pandas.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rows in (music, music.iloc[[0, 2, 4]], music.iloc[:2]):
        prepared = prepare(rows, out, SHARDS)
        assert tars(out) == set(read_index(prepared.path.read_bytes(), "here")["shard"])
    assert prepare(music.iloc[:2], out, SHARDS).removed == 0


def test_a_new_index_that_could_not_be_written_removes_nothing(
    music: pandas.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prepare(music, out, SHARDS)
    before = tars(out)

    def full_disk(table: pandas.DataFrame, path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("datamodules.preparing.prepare.write_index", full_disk)
    with pytest.raises(OSError, match="No space left"):
        prepare(music.iloc[:1], out, SHARDS)
    assert tars(out) == before


def test_a_log_that_names_files_elsewhere_removes_none(music: pandas.DataFrame, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim.tar"
    prepare(music, out, SHARDS)
    victim.write_bytes(b"precious")
    status = victim.stat()
    numbers = {"size_bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": ""}
    names = ("../victim.tar", str(victim), "\\x2e\\x2e/victim.tar", "\\x2e\\x2e\\x2fvictim.tar")
    files = [{"name": name, **numbers} for name in names]
    with (out / "prepared.jsonl").open("a") as log:
        log.write(json.dumps({"job": "x", "name": "x", "rows": [], "problems": {}, "files": files}) + "\n")
    assert prepare(music, out, SHARDS).removed == 0
    assert victim.read_bytes() == b"precious"
