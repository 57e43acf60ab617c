from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor
from training_setup import LIGHTNING_WARNINGS, SAMPLES, Batches, cpu_config, is_same, noise, tiny_module

from lightning_modules.codec_training import CodecTraining
from lightning_modules.fit import fit
from lightning_modules.samples import Pictures, Samples, undisturbed
from spectrostream.codebook_learning import CodebookStatistics

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]

SEGMENTS = [noise(50)[0], noise(51)[0]]
COLOR = (10, 200, 30)


def no_scores(decoded: Tensor, original: Tensor) -> Mapping[str, float]:
    return {}


def pictures() -> Pictures:
    """One pixel each; drawing takes random numbers, as any library may."""

    def segment(original: Tensor, decoded: Tensor) -> Image.Image:
        torch.rand(3)
        assert original.shape == decoded.shape == (2, SAMPLES)
        return Image.new("RGB", (1, 1), COLOR)

    def codebooks(statistics: CodebookStatistics, entries: int) -> Image.Image:
        assert entries == 16
        return Image.new("RGB", (1, 1), COLOR)

    return Pictures(segment, codebooks)


def samples(folder: Path, every: int = 2, score: Any = no_scores) -> Samples:
    return Samples(SEGMENTS, folder / "samples", every=every, score=score, pictures=pictures())


def run(folder: Path, *callbacks: Callback, steps: int = 5, **training: Any) -> CodecTraining:
    module = tiny_module(max_steps=steps, **training)
    data = Batches(accumulate=training.get("accumulate", 1))
    fit(module, data, cpu_config(checkpoint_every=2), folder, callbacks=callbacks)
    return module


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "samples").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"accumulate": 2}, {"ema_decay": 0.9}])
def test_the_training_is_the_same_with_and_without(tmp_path: Path, training: dict[str, Any]) -> None:
    """Weights, codebooks and averages, bit for bit."""
    without = run(tmp_path / "without", **training)
    sampled = run(tmp_path / "with", samples(tmp_path / "with"), **training)
    assert is_same(dict(sampled.state_dict()), dict(without.state_dict()))
    assert steps_of(tmp_path / "with") == [2, 4, 5]  # every two updates, and the end


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_overwrites_repeated_samples(tmp_path: Path) -> None:
    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise KeyError("stopped")

    whole = run(tmp_path / "whole", samples(tmp_path / "whole", every=1))
    with pytest.raises(KeyError, match="stopped"):
        run(tmp_path / "resumed", samples(tmp_path / "resumed", every=1), Stops())
    assert steps_of(tmp_path / "resumed") == [1, 2, 3]
    resumed = run(tmp_path / "resumed", samples(tmp_path / "resumed", every=1))
    assert is_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert steps_of(tmp_path / "resumed") == [1, 2, 3, 4, 5]
    for path in (tmp_path / "whole" / "samples").rglob("*.flac"):
        other = tmp_path / "resumed" / path.relative_to(tmp_path / "whole")
        assert np.array_equal(soundfile.read(path)[0], soundfile.read(other)[0])


def test_the_last_set_is_what_the_finished_codec_makes_of_the_segments(tmp_path: Path) -> None:
    module = run(tmp_path, samples(tmp_path), ema_decay=0.9)
    folder = tmp_path / "samples" / "step-00000005"
    module.codec.eval()
    for index, segment in enumerate(SEGMENTS):
        expected = module.codec.decode(module.codec.encode(segment[None]), length=SAMPLES)[0].detach()
        for name, audio in (("original", segment), ("decoded", expected)):
            path = folder / f"clip-{index}-{name}.flac"
            assert soundfile.info(path).subtype == "PCM_24"
            decoded, rate = soundfile.read(path, dtype="float32")
            assert rate == 48000
            assert np.abs(decoded.T - audio.clamp(-1, 1).numpy()).max() < 2e-6
        assert Image.open(folder / f"clip-{index}.png").getpixel((0, 0)) == COLOR
    with (folder / "codebooks.csv").open() as file:
        rows = list(csv.DictReader(file))
    statistics = module.codec.quantizer.learning.statistics()
    assert [int(row["level"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["perplexity"]) for row in rows] == pytest.approx(statistics.perplexity.tolist(), abs=1e-4)
    assert [float(row["used_share"]) for row in rows] == pytest.approx(statistics.used.tolist(), abs=1e-4)
    assert (folder / "codebooks.png").exists()


def test_codebooks_that_have_not_started_have_no_picture(tmp_path: Path) -> None:
    run(tmp_path, samples(tmp_path), steps=2, initial_vectors=1000)
    names = {path.name for path in (tmp_path / "samples" / "step-00000002").iterdir()}
    assert names == {f"clip-{index}{end}" for index in (0, 1) for end in (".png", "-original.flac", "-decoded.flac")}


def test_scores_are_logged_as_means_over_the_segments_that_have_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def score(decoded: Tensor, original: Tensor) -> Mapping[str, float]:
        if torch.equal(original, SEGMENTS[1]):
            return {"loudness": 3.0}
        return {"loudness": 1.0, "rare": 5.0}

    run(tmp_path, samples(tmp_path, score=score), steps=2)
    row = pd.read_csv(tmp_path / "logs" / "attempt-000" / "metrics.csv").dropna(subset=["validation/loudness"])
    assert row[["step", "validation/loudness", "validation/rare"]].to_numpy().tolist() == [[2, 2.0, 5.0]]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_failed_score_costs_only_its_own_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(decoded: Tensor, original: Tensor) -> Mapping[str, float]:
        if torch.equal(original, SEGMENTS[0]):
            raise RuntimeError("no such score")
        return {"loudness": 3.0}

    run(tmp_path, samples(tmp_path, score=fails), steps=2)
    (warning,) = [record for record in caplog.records if record.name == "lightning_modules.samples"]
    assert (warning.levelno, warning.getMessage()) == (logging.WARNING, "segment 0 has no scores: no such score")
    log = pd.read_csv(tmp_path / "logs" / "attempt-000" / "metrics.csv")
    assert log["validation/loudness"].dropna().tolist() == [3.0]


def test_a_full_disk_loses_the_samples_but_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_modules.samples.soundfile.write", full)
    module = run(tmp_path, samples(tmp_path), steps=2)
    assert module.codec.training
    assert not list((tmp_path / "samples").glob("step-????????"))
    messages = [record.getMessage() for record in caplog.records if record.name == "lightning_modules.samples"]
    assert messages == ["the samples of step 2 are not written: [Errno 28] No space left on device"]


def test_every_logger_gets_the_media_it_supports(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = tiny_module(max_steps=2)
    score = lambda decoded, original: {"loudness": 1.0}  # noqa: E731
    fit(module, Batches(), cpu_config(tensorboard=True), tmp_path, callbacks=(samples(tmp_path, score=score),))
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert sorted(tags["audio"]) == [
        f"samples/clip-{index}-{what}" for index in (0, 1) for what in ("decoded", "original")
    ]
    assert sorted(tags["images"]) == ["samples/clip-0", "samples/clip-1"]
    assert "validation/loudness" in tags["scalars"]


def test_each_part_keeps_its_own_mode() -> None:
    """A frozen encoder is in evaluation mode in the midst of a training."""
    module = tiny_module()
    module.train()
    module.codec.encoder.eval()
    before = {name: part.training for name, part in module.named_modules()}
    with undisturbed(module):
        assert not any(part.training for part in module.codec.modules())
        assert not torch.is_grad_enabled()
        torch.rand(9)
    assert {name: part.training for name, part in module.named_modules()} == before
    assert len(set(before.values())) == 2


@pytest.mark.parametrize(("every", "segments"), [(0, SEGMENTS), (1, [])])
def test_no_interval_or_no_segments_is_an_error(tmp_path: Path, every: int, segments: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=rf"given every = {every}, {len(segments)} segments"):
        Samples(segments, tmp_path, every=every, score=no_scores, pictures=pictures())
