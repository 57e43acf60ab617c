"""A loss is one function and one entry in the catalog: configuration, training, logs and identity follow."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from training_setup import LIGHTNING_WARNINGS, Batches, Updates, is_same, noise, tiny_module, train

from ablations.compose import ConfigError, load_experiment
from ablations.signature import signature
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial import loss_catalog
from spectrostream.adversarial.contract import DiscriminatorOutput
from spectrostream.adversarial.loss_catalog import LossWeights, ReconstructionLoss

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS]


def waveform_distance(decoded: Tensor, original: Tensor) -> Tensor:
    return (decoded - original).abs().mean()


def logit_spread(real: DiscriminatorOutput, fake: DiscriminatorOutput) -> Tensor:
    assert not real.logits[0].requires_grad
    return (real.logits[0].mean() - fake.logits[0].mean()).abs()


@pytest.fixture
def toy_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    reconstruction = ReconstructionLoss(lambda sample_rate: waveform_distance, shortest_audio=9600)
    monkeypatch.setitem(loss_catalog.RECONSTRUCTION_LOSSES, "waveform", reconstruction)
    monkeypatch.setitem(loss_catalog.ADVERSARIAL_LOSSES, "spread", logit_spread)


class Logged(Callback):
    """Logged values after each batch."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: object, batch: object, batch_index: int
    ) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def trained(loss: LossWeights, **training: Any) -> tuple[Updates, Logged, dict[str, Tensor]]:
    """Two steps, the discriminator from the second on."""
    module = tiny_module(max_steps=2, adversarial_start=1, loss=loss, **training)
    updates, logged = Updates(), Logged()
    train(module, Batches(), updates, logged)
    return updates, logged, module.state_dict()


@pytest.mark.usefixtures("toy_losses")
def test_a_loss_of_the_catalog_trains_with_the_weight_that_a_configuration_gives_it() -> None:
    config = load_experiment("tiny", ["training.loss.waveform=50", "training.loss.spread=3"]).training
    updates, logged, _ = trained(config.loss)
    plain, plain_logged, _ = trained(LossWeights())
    first, second = logged.metrics
    # the weights are those before the first update, so the first losses are those of a run without the toys
    assert first["train/mel_loss"] == plain_logged.metrics[0]["train/mel_loss"]
    assert first["train/waveform_loss"] > 0
    added = 50 * first["train/waveform_loss"]
    assert first["train/generator_loss"] == pytest.approx(
        plain_logged.metrics[0]["train/generator_loss"] + added, rel=1e-5
    )
    assert ("train/spread_loss" in first, "train/spread_loss" in second) == (False, True)
    for side in (0, 1):
        assert not is_same(updates.gradients[side], plain.gradients[side])


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
def test_a_loss_without_weight_leaves_everything_exactly_as_it_was(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, balance: bool
) -> None:
    plain, plain_logged, plain_state = trained(LossWeights(), balance=balance)
    config, before = TrainingConfig(), signature(load_experiment("tiny"), "music")
    request.getfixturevalue("toy_losses")
    for loss in (LossWeights(), LossWeights(waveform=0.0, spread=0.0)):
        updates, logged, state = trained(loss, balance=balance)
        assert is_same(updates.gradients, plain.gradients)
        assert logged.metrics == plain_logged.metrics
        assert is_same(state, plain_state)
    assert TrainingConfig().shortest_audio == config.shortest_audio
    assert signature(load_experiment("tiny"), "music") == before
    assert signature(load_experiment("tiny", ["training.loss.waveform=0"]), "music") == before
    assert signature(load_experiment("tiny", ["training.loss.waveform=1"]), "music") != before


@pytest.mark.usefixtures("toy_losses")
def test_two_balanced_losses_share_the_gradient() -> None:
    weights = LossWeights(adversarial=0, feature_matching=0, mel=0, commitment=0, waveform=1.0)
    both = LossWeights(adversarial=0, feature_matching=0, mel=0, commitment=0, waveform=7.0)
    one, other = (trained(loss, balance=True)[0] for loss in (weights, both))
    # a loss that is alone has the whole gradient, whatever its weight
    for first, second in zip(one.gradients[0][0], other.gradients[0][0], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.usefixtures("toy_losses")
def test_the_shortest_crop_is_that_of_the_losses_in_use() -> None:
    assert TrainingConfig(loss=LossWeights(waveform=1.0)).shortest_audio == 9600
    with pytest.raises(ConfigError, match=r"mel loss, 9600 samples; allowed: 0\.200 or more"):
        load_experiment("tiny", ["training.loss.waveform=1", "data.crop_seconds=0.1"])


@pytest.mark.usefixtures("toy_losses")
def test_wrong_weights_of_added_losses_are_named() -> None:
    with pytest.raises(ConfigError, match=r"training\.loss\.wavform is not a key.*did you mean training.loss.waveform"):
        load_experiment("tiny", ["training.loss.wavform=1"])
    with pytest.raises(ConfigError, match=r"training\.loss\.waveform is -1\.0; allowed: a finite number"):
        load_experiment("tiny", ["training.loss.waveform=-1"])
    with pytest.raises(ConfigError, match=r"training\.loss\.waveform = 'much' is not possible; allowed: a number"):
        load_experiment("tiny", ["training.loss.waveform=much"])


def test_without_an_entry_there_is_no_such_key() -> None:
    with pytest.raises(ConfigError, match=r"training\.loss\.waveform is not a key"):
        load_experiment("tiny", ["training.loss.waveform=1"])
    assert type(LossWeights()) is LossWeights
    assert waveform_distance(noise(0), noise(0)) == 0
