from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from small_study import write_config, write_music

from ablations.assembly import data_module
from ablations.compose import load_experiment
from ablations.schema import ExperimentConfig
from ablations.signature import signature
from ablations.training_samples import SegmentScores, sampling
from reports.metrics.score import Score
from reports.metrics.spectral import mel_distance, si_sdr
from reports.metrics.stereo import cue_errors
from spectrostream_cli import main

pytestmark = pytest.mark.processes


def segment(seconds: float = 1.5, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, round(48000 * seconds), generator=torch.Generator().manual_seed(seed))


def small(tmp_path: Path, *words: str) -> ExperimentConfig:
    music = write_music(tmp_path / "music", tracks=1)
    return load_experiment(str(write_config(tmp_path)), [f"data.root={music}", *words])


def test_scores_are_those_of_reports() -> None:
    original, decoded = segment(seed=0), segment(seed=1)
    with SegmentScores(visqol_workers=0) as score:
        scores = score(decoded, original)
    expected = {"mel_distance": mel_distance(original, decoded).value, "si_sdr": si_sdr(original, decoded).value}
    assert scores == {**expected, "ipd_error": cue_errors(original, decoded).ipd.value}


def test_missing_scores_are_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    original = segment()
    with SegmentScores(visqol_workers=0) as score:
        for _ in range(2):
            assert set(score(original, original)) == {"mel_distance", "ipd_error"}  # an exact copy has no finite SI-SDR
        assert score(torch.full_like(original, torch.nan), original) == {}
        assert set(score(segment(seed=1)[:1], original[:1])) == {"mel_distance", "si_sdr"}  # mono
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "samples: a segment has no si_sdr: infinite: the estimate equals the reference"
    assert len(messages) == len(set(messages)) == 4


def test_a_lost_visqol_worker_costs_one_score_and_the_next_segment_starts_a_new_pool(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from reports.metrics.visqol import VisqolWorkerError

    class Waiting:
        def __init__(self, is_lost: bool) -> None:
            self.is_lost = is_lost

        def result(self) -> Score:
            if self.is_lost:
                raise VisqolWorkerError("the worker is gone")
            return Score(4.0)

    class Pool:
        made: list[Pool] = []  # noqa: RUF012

        def __init__(self, workers: int) -> None:
            self.is_open, self.index = False, len(Pool.made)
            Pool.made.append(self)

        def __enter__(self) -> Pool:
            self.is_open = True
            return self

        def __exit__(self, *_: object) -> None:
            self.is_open = False

        def submit(self, label: str, reference: object, estimate: object) -> Waiting:
            assert self.is_open
            return Waiting(is_lost=self.index == 0)

    monkeypatch.setattr("ablations.training_samples.VisqolPool", Pool)
    with SegmentScores(visqol_workers=2) as score:
        assert not Pool.made  # a training that ends before its first sample starts none
        assert "visqol" not in score(segment(seed=1), segment())
        assert score(segment(seed=1), segment())["visqol"] == 4.0
        assert [pool.is_open for pool in Pool.made] == [False, True]
    assert [pool.is_open for pool in Pool.made] == [False, False]
    assert [record.getMessage() for record in caplog.records] == [
        "samples: a segment has no visqol: the worker is gone"
    ]


def test_without_samples_no_audio_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(tmp_path)
    data = data_module(config)
    monkeypatch.setattr(data, "held_out_segments", lambda *_: pytest.fail("it was read"))
    with sampling(config, tmp_path, data) as callbacks:
        assert callbacks == ()


def test_a_corpus_without_held_out_music_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small(tmp_path, "trainer.samples_every=1", "data.held_out_fraction=0")
    with sampling(config, tmp_path, data_module(config)) as callbacks:
        assert callbacks == ()
    assert [record.getMessage() for record in caplog.records if record.name == "ablations.training_samples"] == [
        "trainer.samples_every = 1, but no held-out music is long enough for a sample"
    ]


def test_sample_keys_do_not_change_the_signature(tmp_path: Path) -> None:
    config = small(tmp_path)
    trainer = dataclasses.replace(config.trainer, samples_every=7, sample_clips=2, tensorboard=True)
    assert signature(dataclasses.replace(config, trainer=trainer), "x") == signature(config, "x")


@pytest.mark.slow
def test_a_training_writes_its_sample_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command with everything real, ViSQOL too."""
    music, out = write_music(tmp_path / "music", tracks=1), tmp_path / "run"
    words = [f"config={write_config(tmp_path)}", f"data.root={music}", f"out={out}", "evaluation.visqol=true"]
    with caplog.at_level(logging.WARNING):
        assert main(["train", *words, "trainer.samples_every=2", "trainer.sample_clips=1"]) == 0
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["step-00000002", "step-00000003"]
    audio, _ = soundfile.read(out / "samples" / "step-00000003" / "clip-0-decoded.flac")
    assert audio.shape == (2 * 48000, 2)
    picture = np.asarray(Image.open(out / "samples" / "step-00000003" / "clip-0.png"))
    assert picture.shape[0] > 400
    assert picture.std() > 20
    header = (out / "logs" / "attempt-000" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"validation/{name}" for name in ("mel_distance", "si_sdr", "ipd_error", "visqol")} <= set(header)
    said = capsys.readouterr().out
    assert "step 3/3, loss " in said
    assert said.rstrip().splitlines()[-1].startswith(f"trained: {out / 'codec.safetensors'}")
    assert str(out / "README.md") in said
    page = (out / "README.md").read_text()
    assert "| `samples/step-00000000/` |" in page
