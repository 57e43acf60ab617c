"""A folder with everything that lies in folders, and files that go bad while a training reads them.

Nothing stops what can go on. What cannot be used is counted once and listed with its reason: in the manifest, in
`passed-over.csv`, in the corpus' `skipped`, in `unreadable.txt`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from hanging_files import hanging
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.corpora.manifest import read_manifest
from datamodules.data_config import DataConfig
from datamodules.preparing import pool as prepare_pool
from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import PASSED_OVER_NAME, prepare
from datamodules.scanning.scan import scan
from datamodules.stereo_music import StereoMusicDataModule

pytestmark = pytest.mark.processes

# Root may read everything. Without these two capabilities, which the next program does not get back, it may not.
_AS_ORDINARY_USER = """
import ctypes, os, sys
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            sys.exit(f"cannot drop a capability: {os.strerror(ctypes.get_errno())}")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

# Scan, a training's crops without workers, prepare: as one user types them after each other.
_COMMANDS = """
import json, sys
from pathlib import Path
from datamodules.data_config import DataConfig
from datamodules.stereo_music import StereoMusicDataModule
from spectrostream_cli import main

music, out = sys.argv[1:]
manifest = out + "/music.parquet"
assert main(["data", "scan", music, "--out", manifest, "--workers", "2", "--timeout", "60"]) == 0
data = StereoMusicDataModule(DataConfig(root=music, crop_seconds=0.5, batch_size=8, cache_audio=False))
data.failure_list = Path(out, "unreadable.txt")
batches = iter(data.train_dataloader())
for _ in range(24):
    batch = next(batches)
    assert batch.shape == (8, 2, 24000) and batch.isfinite().all()
skipped = {str(file.path.relative_to(music)): file.reason for file in data.corpus.skipped}
names = [track.name for track in data.corpus.tracks]
Path(out, "training.json").write_text(json.dumps([skipped, names, data.describe()]))
assert main(["data", "prepare", manifest, "--out", out + "/flac", "--format", "flac", "--workers", "2"]) == 0
"""

GOOD = {
    "album one/with space.flac",
    "new\\x0aline.wav",
    "emoji 🎵.flac",
    "latin \\xe9.flac",
    "a flac.mp3",  # named wrongly: what it holds is what counts
    "high.wav",
    "low.wav",
    "square.wav",
    "one/song.ogg",
    "two/song.ogg",
}
# Known from the name or the header alone.
BAD_AT_SIGHT = {
    "truncated.flac": "cut short",
    "truncated.wav": "cut short",
    "zero.wav": r"is empty \(0 bytes\)",
    "text.ogg": "cannot be read as audio",
    "protected.m4p": r"\.m4p cannot be read here; convert it",
    "video.mp4": r"\.mp4 cannot be read here; convert it",
    "really a video.mp3": "cannot be read as audio",
    "dangling.flac": "No such file",
    "loop.wav": "Too many levels of symbolic links",
    "pipe.wav": "is not a regular file",
    "private.flac": "Permission denied|System error",
    "locked": "folder cannot be read: Permission denied",
}


def _music(path: Path, seed: int = 0, seconds: float = 2.0, rate: int = 48000, channels: int = 2) -> Path:
    return write_raw(path, noisy_tones(seconds, rate, seed, channels).clip(-1, 1), rate)


def _video() -> bytes:
    """The first boxes of an MPEG-4 file, which a protected song has too."""
    return b"\0\0\0\x20ftypmp42\0\0\0\0mp42isomM4P \0\0\0\0" + b"\0\0\x10\0mdat" + bytes(range(256)) * 16


def _not_a_number_in_the_middle(path: Path) -> Path:
    frames = noisy_tones(1.0, 48000)
    frames[24000, 1] = np.nan
    return write_raw(path, frames, 48000, subtype="FLOAT")


def _everything(root: Path) -> None:
    """`GOOD`, `BAD_AT_SIGHT`, eight channels, and a NaN that only who reads it meets."""
    _music(root / "album one" / "with space.flac", 1)
    _music(root / "new\nline.wav", 2)
    _music(root / "emoji 🎵.flac", 3)
    _music(root / "latin.flac", 4).rename(root / os.fsdecode(b"latin \xe9.flac"))
    _music(root / "x.flac", 5).rename(root / "a flac.mp3")
    _music(root / "high.wav", 6, rate=192000)
    _music(root / "low.wav", 7, rate=8000)
    write_raw(root / "square.wav", np.where(np.arange(96000) % 100 < 50, 1.0, -1.0), 48000)
    _music(root / "one" / "song.ogg", 8)
    _music(root / "two" / "song.ogg", 9)
    (root / "one" / "back").symlink_to(root / "two")
    (root / "two" / "forth").symlink_to(root / "one")
    (root / "self").symlink_to(root)
    for name in ("truncated.flac", "truncated.wav"):
        content = _music(root / name, 10).read_bytes()
        (root / name).write_bytes(content[: len(content) // 2])
    (root / "zero.wav").touch()
    (root / "text.ogg").write_text("no music at all " * 50)
    for name in ("protected.m4p", "video.mp4", "really a video.mp3"):
        (root / name).write_bytes(_video())
    (root / "dangling.flac").symlink_to(root / "nowhere.flac")
    (root / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(root / "pipe.wav")
    _music(root / "private.flac", 11).chmod(0)
    _music(root / "locked" / "unseen.flac", 12)
    (root / "locked").chmod(0)
    _music(root / "eight.wav", 13, channels=8)
    _not_a_number_in_the_middle(root / "nan.wav")
    (root / "cover.jpg").write_bytes(b"no music")


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands made of everything."""
    folder = tmp_path_factory.mktemp("bad")
    _everything(folder / "music")
    (folder / "out").mkdir()
    command = [sys.executable, "-c", _AS_ORDINARY_USER, "-c", _COMMANDS, str(folder / "music"), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    (folder / "music" / "locked").chmod(0o700)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    (folder / "out" / "words.txt").write_text(" ".join(done.stdout.split()))
    return folder / "out"


def _assert_reasons(found: dict[str, str], expected: dict[str, str]) -> None:
    """Exactly these names, each with its reason."""
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert pandas.Series([found[name]]).str.contains(reason).all(), (name, found[name])


@pytest.mark.slow
def test_a_scan_lists_every_file_once_with_its_reason(tried: Path) -> None:
    table = read_manifest(tried / "music.parquet")
    bad = table[table["problem"] != ""]
    assert table["name"].is_unique
    _assert_reasons(dict(zip(bad["name"], bad["problem"], strict=True)), {**BAD_AT_SIGHT, "nan.wav": "1 NaN"})
    assert set(table.loc[table["problem"] == "", "name"]) == GOOD | {"eight.wav"}
    assert table.set_index("name").loc["square.wav", "clipped_share"] == pytest.approx(1, abs=1e-3)
    assert "(11 tracks, 0.01 hours, 13 files cannot be used)" in (tried / "words.txt").read_text()


@pytest.mark.slow
def test_a_training_counts_what_it_passes_over_and_goes_on(tried: Path) -> None:
    skipped, names, description = json.loads((tried / "training.json").read_text())
    _assert_reasons(skipped, {**BAD_AT_SIGHT, "eight.wav": "has 8 channels, allowed are 1 or 2"})
    assert set(names) == GOOD | {"nan.wav"}
    assert "11 tracks" in description
    assert "13 files skipped" in description
    (line,) = (tried / "unreadable.txt").read_text().splitlines()
    assert "nan.wav': has 1 NaN or infinite samples" in line


@pytest.mark.slow
def test_prepare_passes_over_what_cannot_be_used_and_makes_the_rest(tried: Path) -> None:
    passed_over = read_manifest(tried / "flac" / PASSED_OVER_NAME)
    expected = {**BAD_AT_SIGHT, "nan.wav": "1 NaN", "eight.wav": "has 8 channels"}
    _assert_reasons(dict(zip(passed_over["name"], passed_over["problem"], strict=True)), expected)
    made = read_manifest(tried / "flac" / "manifest.parquet")
    assert set(made["source_name"]) == GOOD
    assert set(made["sample_rate"]) == {48000}
    words = (tried / "words.txt").read_text()
    assert "prepared:" in words
    assert "10 tracks" in words
    assert "14 passed over" in words


# ---- what goes bad while it is used


def _ten_tracks(root: Path) -> dict[str, Path]:
    """Half of them will be damaged."""
    kinds = ("vanishing", "halved", "piped", "hanging")
    paths = {kind: _music(root / f"{kind}.wav", seed, 1.5) for seed, kind in enumerate(kinds)}
    paths["bad spot"] = _not_a_number_in_the_middle(root / "bad spot.wav")
    for seed in range(5):
        _music(root / f"good {seed}.flac", 10 + seed, 1.5)
    return paths


def _damage(paths: dict[str, Path]) -> None:
    paths["vanishing"].unlink()
    os.truncate(paths["halved"], paths["halved"].stat().st_size // 2)
    pipe = paths["piped"].with_name("pipe")
    os.mkfifo(pipe)
    pipe.replace(paths["piped"])  # in one step: the workers are reading, and would also see it gone


LOST = {
    "vanishing.wav": "cannot be opened: No such file or directory",
    "halved.wav": "is cut short: its header promises",
    "piped.wav": "is not a regular file",
    "hanging.wav": "takes longer to read than data.read_timeout_seconds=3",
    "bad spot.wav": "has 1 NaN or infinite samples",
}


def _listed(path: Path) -> list[tuple[str, str, str]]:
    """Process, name of the file and reason of each line of `unreadable.txt`."""
    lines = []
    for line in path.read_text().splitlines():
        _, _, process, rest = line.split(" ", 3)
        name, reason = rest.split("': ", 1)
        lines.append((process, Path(ast.literal_eval(name + "'")).name, reason))
    return lines


@pytest.mark.slow
def test_two_workers_go_on_while_files_vanish_shrink_and_hang(tmp_path: Path) -> None:
    paths = _ten_tracks(tmp_path / "music")
    config = DataConfig(
        root=str(tmp_path / "music"), crop_seconds=0.6, batch_size=4, num_workers=2, cache_audio=False,
        split="end", held_out_seconds=0.0, read_timeout_seconds=3.0,
    )  # fmt: skip
    data = StereoMusicDataModule(config)
    data.failure_list = tmp_path / "unreadable.txt"
    assert (len(data.corpus.tracks), data.corpus.skipped) == (10, ())
    batches = iter(data.train_dataloader())
    first = [next(batches) for _ in range(2)]
    # Until the workers are as far ahead as they may be: between two looks at a file each reason would be another.
    time.sleep(2)
    _damage(paths)
    with hanging(paths["hanging"]):
        later = [next(batches) for _ in range(40)]
    del batches
    for batch in first + later:
        assert batch.shape == (4, 2, 28800)
        assert batch.isfinite().all()
    listed = _listed(data.failure_list)
    for _, name, reason in listed:
        assert reason.startswith(LOST[name])
    # Each process meets each lost file, tells it once and goes on without it.
    assert Counter(name for _, name, _ in listed) == dict.fromkeys(LOST, 2)
    assert len({process for process, _, _ in listed}) == 2
    assert torch.equal(first[0], next(iter(_undamaged(tmp_path, config))))


def _undamaged(folder: Path, config: DataConfig) -> Any:
    """Batches of the same music, all of it there: read in this process."""
    _ten_tracks(folder / "again")
    changes: dict[str, Any] = {"root": str(folder / "again"), "num_workers": 0}
    return StereoMusicDataModule(DataConfig(**{**vars(config), **changes})).train_dataloader()


def test_a_scan_gives_up_a_file_that_hangs(tmp_path: Path) -> None:
    waiting = _music(tmp_path / "music" / "hanging.wav", 0, 0.5)
    for seed in range(3):
        _music(tmp_path / "music" / f"{seed}.flac", seed, 0.5)
    with hanging(waiting):
        table = scan(tmp_path / "music", journal=tmp_path / "journal", workers=2, timeout_seconds=3)
    problems = dict(zip(table["name"], table["problem"], strict=True))
    assert problems.pop("hanging.wav").startswith("took longer than 3 s")
    assert problems == {"0.flac": "", "1.flac": "", "2.flac": ""}


def test_prepare_gives_up_a_file_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("hanging.wav", "one.wav", "two.wav")
    files = [_music(tmp_path / "music" / name, seed, 0.5) for seed, name in enumerate(names)]
    table = manifest_of(tmp_path / "music", files)
    monkeypatch.setattr(prepare_pool, "_PATIENCE_SECONDS", 3.0)
    with hanging(files[0]):
        prepared = prepare(table, tmp_path / "out", Settings("flac24", as_shards=False), workers=2)
    assert (prepared.tracks, prepared.passed_over) == (2, 1)
    passed_over = read_manifest(tmp_path / "out" / PASSED_OVER_NAME)
    assert list(passed_over["name"]) == ["hanging.wav"]
    assert "takes longer than 4 s to read" in passed_over["problem"].iloc[0]
