from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from training_setup import (
    FAST,
    LIGHTNING_WARNINGS,
    TOKENS,
    Batches,
    PlainGradientDescent,
    Updates,
    cpu_config,
    is_same,
    noise,
    tiny_module,
    train,
)

from lightning_modules.fit import build_trainer
from lightning_modules.optimization import OptimizerConfig, TrainingDivergedError
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.loss_catalog import LossWeights
from spectrostream.adversarial.losses import (
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS]


class Steps(Callback):
    """Weights and logged values after each batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, dict[str, Tensor]]] = []
        self.metrics: list[dict[str, float]] = []
        self.counts: list[int] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: object, batch: object, batch_index: int
    ) -> None:
        self.weights.append({side: weights_of(getattr(module, side)) for side in ("codec", "discriminator")})
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.counts.append(trainer.global_step)


def weights_of(side: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in side.named_parameters()}


def gradients_of(loss: Tensor, side: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(side.parameters()), retain_graph=True))


@pytest.mark.parametrize(
    ("key", "value", "lowest"),
    [
        ("max_steps", 0, 1),
        ("accumulate", 0, 1),
        ("adversarial_start", -1, 0),
        ("seed", -1, 0),
        ("discriminator_every", 0, 1),
        ("explosion_factor", -1, 0),
        ("max_skipped_updates", -1, 0),
    ],
)
def test_impossible_values_are_named(key: str, value: int, lowest: int) -> None:
    with pytest.raises(ValueError, match=rf"training.{key} = {value} is not possible; allowed: {lowest} or more"):
        TrainingConfig(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("recipe", "gan", "spectrostream, dac"),
        ("ema_decay", 1.0, "0 or more, below 1"),
        ("balance_decay", -0.1, "0 or more, below 1"),
        ("freeze", ("discriminator",), "a list of encoder, codebooks, decoder"),
    ],
)
def test_unknown_choices_are_named(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"training.{key} = .* is not possible; allowed: {allowed}"):
        TrainingConfig(**{key: value})


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("adversarial_start", [0, 1, 9])
def test_a_step_is_a_generator_update(accumulate: int, adversarial_start: int) -> None:
    """Lightning counts the steps of all optimizers; here neither the discriminator nor accumulation shows."""
    module = tiny_module(max_steps=2, accumulate=accumulate, adversarial_start=adversarial_start)
    batches: list[int] = []
    module.codec.register_forward_hook(lambda *_: batches.append(1))
    updates, steps = Updates(), Steps()
    trainer = train(module, Batches(), updates, steps)
    assert trainer.global_step == 2
    assert len(batches) == 2 * accumulate
    assert steps.counts == [batch // accumulate for batch in range(1, 2 * accumulate + 1)]
    assert len(updates.rates[0]) == 2
    assert len(updates.rates[1]) == max(0, 2 - adversarial_start)


@pytest.mark.slow
def test_accumulated_batches_equal_one_large_batch() -> None:
    """Before the codebooks start nothing is drawn and nothing mixes examples, so the two must agree."""
    after = {}
    for accumulate in (1, 2):
        module = PlainGradientDescent.tiny(initial_vectors=1000, max_steps=2, accumulate=accumulate)
        before = weights_of(module)
        data = Batches(lambda k, n=accumulate: noise(k // n, 4)[4 // n * (k % n) : 4 // n * (k % n + 1)])
        train(module, data)
        after[accumulate] = weights_of(module)
    for side in ("codec.", "discriminator."):
        names = [name for name in before if name.startswith(side)]
        moved = max((after[1][name] - before[name]).abs().max().item() for name in names)
        apart = max((after[1][name] - after[2][name]).abs().max().item() for name in names)
        assert moved > 1e-4
        assert apart < 1e-6


def test_the_discriminator_waits_for_its_first_step() -> None:
    module = tiny_module(max_steps=4, adversarial_start=2)
    start = {side: weights_of(getattr(module, side)) for side in ("codec", "discriminator")}
    steps = Steps()
    train(module, Batches(), steps)
    states = [start, *steps.weights]
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        assert not is_same(before["codec"], after["codec"])
        assert is_same(before["discriminator"], after["discriminator"]) == (step < 2)
    adversarial = {"train/adversarial_loss", "train/feature_matching_loss", "train/discriminator_loss"}
    assert [adversarial <= metrics.keys() for metrics in steps.metrics] == [False, False, True, True]
    assert all(not adversarial & metrics.keys() for metrics in steps.metrics[:2])
    for metrics in steps.metrics[:2]:
        minimised = metrics["train/mel_loss"] + metrics["train/commitment_loss"]
        assert metrics["train/generator_loss"] == pytest.approx(minimised, rel=1e-6)


def test_each_side_learns_from_its_own_loss_alone() -> None:
    """The gradients that the optimizers apply are those of the formulas, computed here a second time.

    A trace of the generator's loss in the discriminator's gradient, or the reverse, would show. So would a
    discriminator that is updated before the generator's turn.
    """
    weights = LossWeights(adversarial=2.0, feature_matching=30.0, mel=0.5, commitment=0.0)
    module = tiny_module(max_steps=1, initial_vectors=1000, loss=weights)
    real = noise(0)
    decoded = module.codec(real).audio
    real_output, output, detached_output = map(module.discriminator, (real, decoded, decoded.detach()))
    generator_loss = (
        2.0 * hinge_generator_loss(output.logits)
        + 30.0 * feature_matching_loss(real_output.features, output.features)
        + 0.5 * module.mel_loss(decoded, real)
    )
    discriminator_loss = hinge_discriminator_loss(real_output.logits, detached_output.logits)
    expected = (
        gradients_of(generator_loss, module.codec),
        gradients_of(discriminator_loss, module.discriminator),
    )

    module.codec.quantizer.learning.collected_count.zero_()  # the pass above was none of the training
    updates, steps = Updates(), Steps()
    train(module, Batches(), updates, steps)
    for side in (0, 1):
        largest = max(float(wanted.abs().max()) for wanted in expected[side])
        for applied, wanted in zip(updates.gradients[side][0], expected[side], strict=True):
            torch.testing.assert_close(applied, wanted, rtol=1e-4, atol=1e-5 * largest)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert steps.metrics[0]["train/generator_loss"] == pytest.approx(generator_loss.item(), rel=1e-5)
    assert steps.metrics[0]["train/discriminator_loss"] == pytest.approx(discriminator_loss.item(), rel=1e-5)


def test_each_side_is_clipped_to_its_own_limit_and_reported_before() -> None:
    limits = (0.02, 0.005)
    free, clipped, free_steps, clipped_steps = Updates(), Updates(), Steps(), Steps()
    train(tiny_module(max_steps=1), Batches(), free, free_steps)
    generator, discriminator = (replace(FAST, gradient_clip_norm=limit) for limit in limits)
    train(tiny_module(max_steps=1, generator=generator, discriminator=discriminator), Batches(), clipped, clipped_steps)
    for side, name in enumerate(("generator", "discriminator")):
        (before,), (applied,) = free.norms(side), clipped.norms(side)
        assert before > 2 * limits[side]
        assert applied == pytest.approx(limits[side], rel=1e-3)
        for steps in (free_steps, clipped_steps):
            assert steps.metrics[0][f"train/{name}_gradient_norm"] == pytest.approx(before, rel=1e-5)


def test_a_diverged_generator_ends_the_run_and_names_the_step() -> None:
    module = tiny_module(max_steps=9, max_skipped_updates=0)
    with pytest.raises(TrainingDivergedError, match="generator is not finite at step 2"):
        train(module, Batches(lambda k: noise(k) * (math.nan if k == 2 else 1)))


def test_a_diverged_discriminator_ends_the_run_and_names_the_step() -> None:
    module = tiny_module(max_steps=9, max_skipped_updates=0)
    turns: list[int] = []

    def spoil(gradient: Tensor) -> Tensor:
        turns.append(1)
        return gradient * math.nan if len(turns) == 2 else gradient

    next(module.discriminator.parameters()).register_hook(spoil)
    with pytest.raises(
        TrainingDivergedError, match=r"discriminator is not finite at step 1.*training\.discriminator\."
    ):
        train(module, Batches())
    # The generator's turn gives the discriminator no gradient: one call for each of two steps.
    assert len(turns) == 2


@pytest.mark.slow
def test_a_bad_batch_is_skipped_counted_and_kept(tmp_path: Path) -> None:
    """Both sides stay as they were, the codebooks stay finite, the step counts, and training goes on."""
    module = tiny_module(max_steps=7)
    module.bad_batches = tmp_path / "bad"
    steps = Steps()
    trainer = train(module, Batches(lambda k: noise(k) * (math.nan if k == 5 else 1)), steps)
    assert trainer.global_step == 7
    assert steps.counts == list(range(1, 8))
    assert is_same(steps.weights[4], steps.weights[5])
    assert not is_same(steps.weights[5], steps.weights[6])
    assert [metrics["train/skipped_updates"] for metrics in steps.metrics] == [0] * 5 + [1] * 2
    assert module.codec.quantizer.learning.is_started
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    (kept,) = (tmp_path / "bad").iterdir()
    assert kept.name == "step-00000005-rank-0.safetensors"
    assert bool(load_file(kept)["batch_0"].isnan().all())


def test_the_discriminator_learns_in_every_second_update_and_trains_the_codec_in_each() -> None:
    module = tiny_module(max_steps=5, adversarial_start=1, discriminator_every=2)
    steps = Steps()
    train(module, Batches(), steps)
    discriminators = [weights["discriminator"] for weights in steps.weights]
    changed = [not is_same(before, after) for before, after in itertools.pairwise(discriminators)]
    assert changed == [True, False, True, False]
    takes_part = ["train/feature_matching_loss" in metrics for metrics in steps.metrics]
    assert takes_part == [False, True, True, True, True]
    for metrics in steps.metrics[1:]:
        assert 0 <= metrics["train/discriminator_accuracy_real"] <= 1
        assert 0 <= metrics["train/discriminator_accuracy_fake"] <= 1


def test_balanced_losses_have_gradients_by_their_weights() -> None:
    """In the first update the averages are the sizes themselves, so at the output each loss has the size of its weight.

    The commitment loss does not pass there and keeps its own size.
    """
    weights = LossWeights(adversarial=1.0, feature_matching=2.0, mel=1.0)
    module = tiny_module(max_steps=1, initial_vectors=1000, balance=True, loss=weights)
    real = noise(0)
    decoded = module.codec(real).audio
    real_output, output = module.discriminator(real), module.discriminator(decoded)
    losses = {
        0.25: hinge_generator_loss(output.logits),
        0.5: feature_matching_loss(real_output.features, output.features),
        0.25 + 1e-9: module.mel_loss(decoded, real),
    }
    at_output = torch.zeros_like(decoded)
    for share, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, decoded, retain_graph=True)
        at_output += share * gradient / gradient.flatten(1).norm(dim=1).mean()
    expected = torch.autograd.grad(decoded, list(module.codec.parameters()), at_output)
    module.codec.quantizer.learning.collected_count.zero_()  # the pass above was none of the training
    updates = Updates()
    train(module, Batches(), updates)
    largest = max(float(wanted.abs().max()) for wanted in expected)
    for applied, wanted in zip(updates.gradients[0][0], expected, strict=True):
        torch.testing.assert_close(applied, wanted, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.slow
def test_balanced_training_uses_the_commitment_loss_and_lowers_the_mel_loss() -> None:
    module = tiny_module(max_steps=8, balance=True, initial_vectors=16)
    steps = Steps()
    train(module, Batches(lambda _: noise(0)), steps)
    assert steps.metrics[-1]["train/commitment_loss"] > 0
    assert steps.metrics[-1]["train/mel_loss"] < steps.metrics[0]["train/mel_loss"]


def test_averaged_weights_are_validated_and_are_the_result(tmp_path: Path) -> None:
    """After n updates the average has moved by 1 - min(decay, (1 + n) / (10 + n)) of the way to the newest weights."""
    held_out = noise(77)
    module = tiny_module(max_steps=3, ema_decay=0.9, initial_vectors=1000)
    expected = weights_of(module.codec)
    steps = Steps()

    class Validations(Callback):
        losses: ClassVar[list[float]] = []

        def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
            self.losses.append(float(trainer.callback_metrics["validation/mel_loss"]))

    trainer = build_trainer(module, cpu_config(validate_every=1), [steps, Validations()], [])
    trainer.fit(module, datamodule=Batches(held_out=(held_out,)))
    for count, weights in enumerate(steps.weights):
        decay = min(0.9, (1 + count) / (10 + count))
        for name, value in weights["codec"].items():
            expected[name] = expected[name].lerp(value, 1 - decay)
    newest = weights_of(module.codec)
    assert is_same(newest, steps.weights[-1]["codec"])  # training never saw the average
    with module.averaged_weights():
        for name, value in weights_of(module.codec).items():
            torch.testing.assert_close(value, expected[name])
        decoded = module.codec.decode(module.codec.encode(held_out), length=held_out.shape[-1])
        assert Validations.losses[-1] == pytest.approx(float(module.mel_loss(decoded, held_out)), rel=1e-5)
    assert is_same(weights_of(module.codec), newest)
    module.adopt_averaged_weights()
    for name, value in weights_of(module.codec).items():
        torch.testing.assert_close(value, expected[name])


def test_each_side_has_the_learning_rate_of_its_schedule() -> None:
    updates = Updates()
    generator = OptimizerConfig(learning_rate=1e-3, warmup_steps=4)
    discriminator = OptimizerConfig(learning_rate=4e-3, schedule="exponential", decay=0.5)
    train(tiny_module(max_steps=3, accumulate=2, generator=generator, discriminator=discriminator), Batches(), updates)
    assert updates.rates[0] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])
    assert updates.rates[1] == pytest.approx([4e-3, 2e-3, 1e-3])


@pytest.mark.slow
def test_codebooks_start_and_random_draws_follow_the_seed_alone() -> None:
    """Whatever state torch's generator is in, the run is the same; another seed is another run."""
    ends = []
    for seed, disturbance in ((3, 10), (3, 20), (4, 10)):
        module = tiny_module(max_steps=5, seed=seed)
        torch.manual_seed(disturbance)
        train(module, Batches())
        assert module.codec.quantizer.learning.is_started
        ends.append(module.state_dict())
    assert is_same(ends[0], ends[1])
    assert not is_same(ends[0], ends[2])


def test_every_batch_of_an_update_draws_its_own_numbers() -> None:
    module = tiny_module(max_steps=2, accumulate=2)
    seeds: list[int] = []
    module.codec.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    train(module, Batches())
    assert len(set(seeds)) == 4


@pytest.mark.slow
def test_training_lowers_the_mel_loss() -> None:
    """One batch again and again: the loss of its decoded audio, codes included, must fall by a half."""
    module = tiny_module(max_steps=24, adversarial_start=18, initial_vectors=4 * 2 * TOKENS)
    audio = noise(0)

    def loss() -> float:
        with torch.no_grad():
            decoded = module.codec.decode(module.codec.encode(audio), length=audio.shape[-1])
            return float(module.mel_loss(decoded, audio))

    before = loss()
    train(module, Batches(lambda _: audio))
    assert loss() < before / 2
