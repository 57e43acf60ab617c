from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_setup import LIGHTNING_WARNINGS, Batches, tiny_module, train

from lightning_modules.gan_monitor import PATIENCE, CollapseWatch

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS]


def trainer(*, is_logged: bool = True, **metrics: float) -> Any:
    values = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    connector = SimpleNamespace(should_update_logs=is_logged)
    return SimpleNamespace(callback_metrics=values, _logger_connector=connector)


def trainer_with(real: float, fake: float, **more: Any) -> Any:
    return trainer(train__discriminator_accuracy_real=real, train__discriminator_accuracy_fake=fake, **more)


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [(1.0, 1.0, "without fail"), (0.4, 0.3, "less than half"), (1.0, 0.9, None), (0.6, 0.1, None)],
)
def test_a_discriminator_that_always_wins_or_loses_is_one_warning(
    real: float, fake: float, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    watch = CollapseWatch()
    for _ in range(3 * PATIENCE):
        watch.on_train_batch_end(trainer_with(real, fake), None, None, None, 0)
    assert [record.levelname for record in caplog.records] == (["WARNING"] if words else [])
    assert (words or "") in caplog.text


def test_one_balanced_update_resets_the_count(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    for count in range(4 * PATIENCE):
        watch.on_train_batch_end(trainer_with(1.0, 0.9 if count % PATIENCE == 0 else 1.0), None, None, None, 0)
    assert caplog.text == ""


def test_the_monitor_reads_only_logged_values(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    for _ in range(3 * PATIENCE):
        watch.on_train_batch_end(trainer_with(1.0, 1.0, is_logged=False), None, None, None, 0)
        watch.on_train_batch_end(trainer(), None, None, None, 0)
    assert caplog.text == ""


def test_unused_codebooks_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    # Just filled by k-means; then in use; then not.
    for used in (0.04, 0.5, 0.04):
        watch.on_validation_end(trainer(validation__codebook_used=used), None)
        assert caplog.text == ""
    for _ in range(3):
        watch.on_validation_end(trainer(validation__codebook_used=0.04), None)
    assert caplog.text.count("only 4% of the codebooks' entries are used") == 1


def test_the_monitor_finds_its_metrics_in_a_real_training(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning_modules.gan_monitor.PATIENCE", 2)
    monkeypatch.setattr("lightning_modules.gan_monitor.LOST", 1.0)  # whatever the discriminator says
    train(tiny_module(max_steps=3), Batches(), CollapseWatch())
    assert "right in less than half" in caplog.text
