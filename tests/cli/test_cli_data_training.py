"""`spectrostream train data=..` on what `data scan` and `data prepare` make: known corpora, shards over a network."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from workbench import hidden_or_unfinished, started

sys.path.insert(0, str(Path(__file__).parents[1] / "ablations"))
sys.path.insert(0, str(Path(__file__).parents[1] / "datamodules" / "layouts"))
sys.path.insert(0, str(Path(__file__).parents[1] / "datamodules" / "shards"))
from local_servers import served
from miniatures import MINIATURES, SECONDS
from small_study import write_config

from benchmarks.fault_drills import COMPARED, first_difference
from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.corpora.manifest import read_manifest
from spectrostream_cli import main

pytestmark = pytest.mark.processes

UPDATES = 2


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A codec and discriminator that train in seconds, with a validation after each update."""
    data = {"batch_size": 1, "evaluation_segment_seconds": 0.5}
    return write_config(tmp_path, training={"max_steps": UPDATES}, trainer={"validate_every": 1}, data=data)


def final_state(run: Path, step: int) -> dict[str, object]:
    """Weights, optimizers and counters of the last checkpoint."""
    content = torch.load(run / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)
    return {key: content[key] for key in COMPARED}


def logged(run: Path, column: str) -> list[float]:
    (path,) = run.glob("logs/attempt-*/metrics.csv")
    return pandas.read_csv(path)[column].dropna().tolist()


# Tracks in the manifest that can be used, and how many of them are trained on.
CORPORA = {
    "musdb18hq": (6, 3),
    "fma": (3, 1),
    "jamendo": (5, 3),
    "maestro": (4, 2),
    "moisesdb": (3, None),
    "slakh": (4, 2),
}


def test_every_known_corpus_is_trained_on() -> None:
    assert set(CORPORA) == set(MINIATURES)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", sorted(MINIATURES))
def test_a_known_corpus_is_scanned_and_trained_on(
    corpus: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = MINIATURES[corpus](tmp_path / corpus)
    manifest, out = tmp_path / f"{corpus}.parquet", tmp_path / "run"
    assert main(["data", "scan", str(folder), "--corpus", corpus, "--workers", "1", "--out", str(manifest)]) == 0
    assert set(read_manifest(manifest)["corpus"]) == {corpus}
    assert main(["train", f"config={config}", f"data={manifest}", f"out={out}"]) == 0

    tracks, trained = CORPORA[corpus]
    said = capsys.readouterr().out
    assert f"{manifest}: {tracks} tracks, " in said
    assert f"trained: {out / 'codec.safetensors'}" in said
    run = json.loads((out / "run.json").read_text())
    if trained is not None:  # the corpus says who is held out
        held_out = float(re.search(r" ([\d.]+) s held out", run["data"])[1])  # type: ignore[index]
        assert held_out == pytest.approx((tracks - trained) * SECONDS, abs=0.3)
        assert run["validation_shares_test_music"] is False
        losses = logged(out, "validation/mel_loss")
        assert len(losses) == UPDATES
        assert all(map(math.isfinite, losses))
    assert not (out / "unreadable.txt").exists()
    assert hidden_or_unfinished(tmp_path) == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of the demo corpus, scanned and prepared by the commands: three or more shards of a megabyte."""
    folder = tmp_path_factory.mktemp("corpus")
    tracks = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))
    for number, path in enumerate(tracks):
        rate = soundfile.info(path).samplerate
        frames, _ = soundfile.read(path, 3 * rate, start=4 * rate)
        (folder / "music").mkdir(exist_ok=True)
        soundfile.write(folder / "music" / f"{number}.flac", 0.8 * frames / np.abs(frames).max(), rate)
    manifest, out = folder / "music.parquet", folder / "shards"
    assert main(["data", "scan", str(folder / "music"), "--workers", "1", "--out", str(manifest)]) == 0
    words = ["--out", str(out), "--format", "shards", "--shard-megabytes", "1", "--workers", "1"]
    assert main(["data", "prepare", str(manifest), *words]) == 0
    assert len(list(out.glob("*.tar"))) >= 3
    return out


def wait_for_checkpoint(process: object, out: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not (out / "checkpoints" / f"step-{step:08d}.ckpt").exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[attr-defined]
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_training_from_a_server_resumes_to_the_same_weights(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, out, undisturbed = 8, tmp_path / "killed", tmp_path / "undisturbed"
    config = write_config(tmp_path, training={"max_steps": steps}, data={"window_shards": 1, "window_passes": 0.2})
    with served(shards) as server:
        words = ["train", f"config={config}", f"data={server.url}", f"data.shard_cache={tmp_path / 'cache'}"]
        words += ["data.split=end", f"out={out}"]
        with started(*words) as process:
            wait_for_checkpoint(process, out, 2)
            process.kill()
        assert not (out / "trained.json").exists()
        assert not (out / "codec.safetensors").exists()
        assert main(words) == 0
        assert f"{server.url}: 6 tracks, " in capsys.readouterr().out
        fetched = [name for name, count in server.asked.items() if name.endswith(".tar") and count]
    assert len(fetched) >= 3, "it went from window to window"
    assert len(list((out / "logs").iterdir())) == 2, "it was begun twice"
    # The same shards from the folder they lie in: where music comes from does not matter either.
    assert main([*words[:2], f"data={shards}", "data.split=end", f"out={undisturbed}"]) == 0
    assert first_difference(final_state(out, steps), final_state(undisturbed, steps)) is None
    codecs = [load_file(run / "codec.safetensors") for run in (out, undisturbed)]
    assert first_difference(*codecs) is None
    assert first_difference(final_state(out, steps - 1), final_state(undisturbed, steps)) is not None


@pytest.mark.slow
def test_moved_shards_are_the_same_run_and_other_shards_are_not(
    shards: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, out = Path(shutil.copytree(shards, tmp_path / "moved")), tmp_path / "run"
    words = ["train", f"config={config}", "data.split=end", f"out={out}"]
    assert main([*words, f"data={shards}"]) == 0
    before = (out / "codec.safetensors").stat().st_mtime_ns
    assert main([*words, f"data={moved}"]) == 0
    assert (out / "codec.safetensors").stat().st_mtime_ns == before
    manifest = shards.parent / "music.parquet"
    other = tmp_path / "other"
    more = ["--out", str(other), "--format", "shards", "--shard-megabytes", "100", "--workers", "1"]
    assert main(["data", "prepare", str(manifest), *more]) == 0
    assert main([*words, f"data={other}"]) == 1
    assert "another configuration or corpus: the corpus' fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "data.shards={tmp}/nowhere",
            "error: data.shards='{tmp}/nowhere': its index.parquet cannot be read: No such file",
        ),
        ("data=http://127.0.0.1:1/music", "error: data.shards='http://127.0.0.1:1/music': its index.parquet cannot be"),
        ("data=htp://music", "error: data.shards='htp://music': htp:// is not known; allowed are a folder, http://"),
        ("data={tmp}/nowhere", "does not exist. Type data.root="),
        (
            "data={tmp}/nowhere.parquet",
            "nowhere.parquet' does not exist; write it with `spectrostream data scan FOLDER",
        ),
    ],
)
def test_a_wrong_place_is_explained_before_anything_is_written(
    word: str,
    expected: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("datamodules.shards.transfer._LONGEST_PAUSE_SECONDS", 0.001)
    out = tmp_path / "run"
    assert main(["train", f"config={config}", word.format(tmp=tmp_path), f"out={out}"]) == 1
    error = capsys.readouterr().err
    assert expected.format(tmp=tmp_path) in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not out.exists()
