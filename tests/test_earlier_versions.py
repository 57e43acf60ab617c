"""Runs, weights and coded files of an earlier version (tests/fixtures/from_d598b8b) stay valid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from spectrostream.weights import codec_fingerprint, load_codec, load_pretrained
from spectrostream_cli import main

EARLIER = Path(__file__).parent / "fixtures" / "from_d598b8b"
# The words in its run.json, typed in the same folder.
TRAIN = ["train", "config=minute.yaml", "data.root=music", "out=run"]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder that the earlier version worked in, as the current directory."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    monkeypatch.chdir(folder)
    return folder


def test_its_weights_load_under_the_names_and_the_fingerprint_that_they_had() -> None:
    path = EARLIER / "run" / "codec.safetensors"
    codec = load_codec(path)
    saved, state = load_file(path), codec.state_dict()
    assert saved.keys() == {name for name in state if not name.startswith("quantizer.learning.")}
    assert all(torch.equal(value, state[name]) for name, value in saved.items())
    expected = json.loads((EARLIER / "identities.json").read_text())["codec"]
    assert codec_fingerprint(codec).hex() == codec_fingerprint(load_pretrained(path.parent)).hex() == expected


def test_its_coded_file_decodes_to_the_same_audio(earlier: Path) -> None:
    assert main(["decode", "sound.sps", "decoded.wav", "--weights", "run"]) == 0
    audio, rate = soundfile.read("decoded.wav", dtype="float32")
    expected = np.load("decoded-every-16th-frame.npy")
    assert (audio.shape, rate) == ((24000, 2), 48000)
    assert np.abs(audio[::16] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_its_finished_run_is_recognised(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (earlier / "run").rglob("*") if path.is_file()}
    assert main(TRAIN) == 0
    assert "trained: run/codec.safetensors" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"signature.json"}
    assert not (earlier / "run" / "logs").exists()


@pytest.mark.slow
def test_its_stopped_run_resumes_to_the_same_weights(earlier: Path) -> None:
    finished = load_file(earlier / "run" / "codec.safetensors")
    for name in ("trained.json", "codec.safetensors"):
        (earlier / "run" / name).unlink()
    assert main(TRAIN) == 0
    (metrics,) = (earlier / "run").glob("logs/attempt-*/metrics.csv")
    assert set(pandas.read_csv(metrics)["step"]) == {3}, "it went on after step 2"
    resumed = load_file(earlier / "run" / "codec.safetensors")
    assert resumed.keys() == finished.keys()
    assert all(torch.allclose(resumed[name], finished[name], rtol=1e-3, atol=1e-5) for name in finished)
