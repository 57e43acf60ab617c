from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from training_setup import LIGHTNING_WARNINGS, SAMPLES, Batches, cpu_config, noise, tiny_module

from lightning_modules.fit import FitResult, fit

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]

SPEEDS = ["train/steps_per_second", "train/audio_seconds_per_second", "train/data_wait_share"]
WAIT = 0.2


def slow_batch(index: int) -> torch.Tensor:
    time.sleep(WAIT)
    return noise(index)


class Dawdles(Callback):
    """Takes its time after each batch and in each validation, as samples and checkpoints do."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(WAIT)

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        time.sleep(WAIT)


def run(folder: Path, *, steps: int = 4, accumulate: int = 1, **options: Any) -> tuple[pd.DataFrame, FitResult]:
    """Logged rows with speeds, and the result."""
    data = Batches(options.pop("batch_at", noise), accumulate=accumulate, held_out=(noise(99),))
    config = cpu_config(log_every=2, **options.pop("config", {}))
    result = fit(tiny_module(max_steps=steps, accumulate=accumulate), data, config, folder, **options)
    attempts = sorted((folder / "logs").iterdir())
    return pd.read_csv(attempts[-1] / "metrics.csv").dropna(subset=SPEEDS), result


@pytest.mark.parametrize("accumulate", [1, 2])
def test_speeds_are_logged_with_the_losses_and_agree(tmp_path: Path, accumulate: int) -> None:
    reported: dict[int, dict[str, float]] = {}
    rows, result = run(tmp_path, accumulate=accumulate, report=lambda step, m: reported.update({step: m} if m else {}))
    assert rows["step"].tolist() == [2, 4]
    assert rows["train/mel_loss"].notna().all()
    # A step's audio is the same however fast it goes.
    per_step = rows["train/audio_seconds_per_second"] / rows["train/steps_per_second"]
    assert per_step.tolist() == pytest.approx([accumulate * 2 * SAMPLES / 48000] * 2)
    # The windows together are the whole training.
    assert float((2 / rows["train/steps_per_second"]).sum()) == pytest.approx(result.seconds, rel=1e-3)
    assert sorted(reported) == [2, 4]
    for step, row in zip((2, 4), rows.to_dict("records"), strict=True):
        assert [reported[step][name] for name in SPEEDS] == pytest.approx([row[name] for name in SPEEDS])


def test_waiting_for_data_is_measured(tmp_path: Path) -> None:
    rows, result = run(tmp_path, batch_at=slow_batch)
    waited = 2 * rows["train/data_wait_share"] / rows["train/steps_per_second"]  # seconds in each window
    assert (waited >= 2 * WAIT * 0.95).all()
    assert (rows["train/data_wait_share"] < 1).all()
    assert result.seconds >= 4 * WAIT


def test_what_happens_between_batches_is_neither_training_nor_waiting(tmp_path: Path) -> None:
    began = time.monotonic()
    rows, result = run(tmp_path, callbacks=(Dawdles(),), config={"validate_every": 1})
    assert time.monotonic() - began >= result.seconds + 8 * WAIT  # four batches, four validations
    waited = 2 * rows["train/data_wait_share"] / rows["train/steps_per_second"]
    assert (waited < WAIT).all()


def test_a_resumed_run_counts_its_speed_from_where_it_starts(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    rows, result = run(tmp_path, steps=6)
    # From 3 to 4 and from 4 to 6; the mark lies at the resumed step, not at 0.
    assert rows["step"].tolist() == [4, 6]
    per_step = rows["train/audio_seconds_per_second"] / rows["train/steps_per_second"]
    assert per_step.tolist() == pytest.approx([2 * SAMPLES / 48000] * 2)
    assert result.audio_seconds == pytest.approx(6 * 2 * SAMPLES / 48000)
