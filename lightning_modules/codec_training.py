"""The GAN step: when the judge learns, when the codec learns. What they compute is the codec room's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from lightning_modules.execution import Precision
from lightning_modules.gradient_averaging import GradientAverage
from lightning_modules.gradient_guard import UpdateGuard
from lightning_modules.optimization import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from lightning_modules.training_config import TrainingConfig
from lightning_modules.weight_ema import WeightAverage
from spectrostream.adversarial.discriminators import Discriminator
from spectrostream.adversarial.loss_balancer import LossBalancer
from spectrostream.adversarial.losses import MultiScaleMelLoss
from spectrostream.adversarial.objectives import build_objective
from spectrostream.codebook_learning import summed
from spectrostream.codec import SpectroStream
from spectrostream.interface import Reconstruction
from spectrostream.registry import Codec

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class OtherModelError(ValueError):
    """A checkpoint that does not fit the model that is to go on from it."""


class CodecTraining(lightning.LightningModule):
    """Trains any codec that returns a `Reconstruction` against a judge that returns a `Judgement`.

    One reconstruction serves both turns, and both sides are updated after both turns are computed: neither sees the
    other's new weights, so gradients accumulated over several batches equal those of one large batch. The codebooks are
    no part of this: they learn, and decay, with every batch.

    precision_name: as `trainer.precision`, read when training starts. bad_batches: where the batches of skipped updates
    are kept, or None.
    """

    def __init__(self, codec: Codec, discriminator: Discriminator, config: TrainingConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.discriminator = discriminator
        self.config = config
        self.precision_name = "32-true"
        self.bad_batches: Path | None = None
        self.objective = build_objective(config.recipe, codec.sample_rate)
        self.mel_loss = MultiScaleMelLoss(codec.sample_rate)
        weights = {name: getattr(config.loss, name) for name in ("mel", "adversarial", "feature_matching")}
        self.balancer = LossBalancer(weights, config.balance_decay) if config.balance else None
        self.average: WeightAverage | None = None
        self._restored: Mapping[str, Any] = {}
        self._batches: list[Tensor] = []  # of the update in progress
        self._losses: list[Tensor] = []  # likewise, both sides'
        self._validating: AbstractContextManager[None] = nullcontext()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Generator first, discriminator second."""
        return [
            build_optimizer(self.config.generator, self.codec.parameters()),
            build_optimizer(self.config.discriminator, self.discriminator.parameters()),
        ]

    def on_fit_start(self) -> None:
        """What a run carries besides weights and optimizers; checkpoints lie between updates, never within one."""
        self._batches, self._losses = [], []
        self.precision = Precision(self.precision_name, self.device)
        self.guard = UpdateGuard(
            explosion_factor=self.config.explosion_factor,
            max_skipped=self.config.max_skipped_updates,
            folder=self.bad_batches,
        )
        self.average = WeightAverage(self.codec, self.config.ema_decay) if self.config.ema_decay else None
        for name, part in self._carried().items():
            if name in self._restored:
                part.load_state_dict(self._restored[name])
        self._restored = {}

    def _carried(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"precision": self.precision, "guard": self.guard}
        return parts if self.average is None else {**parts, "weight_average": self.average}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Scalers, counts and averaged weights."""
        checkpoint["carried"] = {name: part.state_dict() for name, part in self._carried().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another model's checkpoint, with the first difference instead of all of them."""
        saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        for name in sorted(saved.keys() | own.keys()):
            if saved.get(name) != own.get(name):
                raise OtherModelError(
                    f"the checkpoint is of another model: its {name} is {_shape_in_words(saved.get(name))}, here it is "
                    f"{_shape_in_words(own.get(name))}; train in a new folder, or with the configuration of this one"
                )
        self._restored = checkpoint.get("carried", {})

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within it `codec` has the averaged weights, if they are averaged at all."""
        with nullcontext() if self.average is None else self.average.swapped_in():
            yield

    def adopt_averaged_weights(self) -> None:
        """Gives the codec the averaged weights for good: the training is over."""
        if self.average is not None:
            self.average.adopt()

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """batch: `[batch, channels, samples]`. Both turns; on the last batch of an update also both optimizers."""
        self._count_generator_updates_only()
        self.precision.check(self.codec, self.discriminator, batch[:1])
        self._seed_batch()
        self._batches.append(batch)
        is_last = len(self._batches) == self.config.accumulate
        since_start = self.global_step - self.config.adversarial_start
        learns = since_start >= 0 and since_start % self.config.discriminator_every == 0
        with self.precision.autocast():
            reconstruction = self.codec(batch)
        real_features = judge_gradients = None
        if since_start >= 0:
            real_features = self._discriminator_turn(batch, reconstruction.audio.detach(), learns=learns)
        if learns and is_last:
            judge_gradients = GradientAverage(self.discriminator.parameters())  # they travel during the other turn
        self._generator_turn(batch, reconstruction, real_features)
        if is_last:
            self._update(judge_gradients)
            self._batches, self._losses = [], []

    def on_validation_epoch_start(self) -> None:
        """The averaged weights are validated."""
        self._validating = self.averaged_weights()
        self._validating.__enter__()

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Mel loss of held-out audio coded at the full rate."""
        decoded = self.codec.decode(self.codec.encode(batch), length=batch.shape[-1])
        self.log("validation/mel_loss", self.mel_loss(decoded, batch).total, sync_dist=True, batch_size=len(batch))
        # The maximum of equal numbers is exact; their mean rounds, and the loggers cut it to an integer.
        self.log("step", float(self.global_step), reduce_fx="max", sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """How the codebooks are used, on average over the levels; codebooks that learn by gradients do not count it."""
        self._validating.__exit__(None, None, None)
        if isinstance(self.codec, SpectroStream) and self.codec.quantizer.learning.is_started:
            statistics = self.codec.quantizer.learning.statistics()
            self.log("validation/codebook_perplexity", statistics.perplexity.mean(), sync_dist=True)
            self.log("validation/codebook_used", statistics.used.mean(), sync_dist=True)

    def _discriminator_turn(self, real: Tensor, fake: Tensor, *, learns: bool) -> list[list[Tensor]]:
        """The judge hears both, and learns if it is its turn; returns what it notices in the original."""
        with self.precision.autocast(), torch.set_grad_enabled(learns):
            judged_real, judged_fake = self.discriminator(real), self.discriminator(fake)
            loss = self.objective.discriminator_loss(judged_real.logits, judged_fake.logits)
        if learns:
            self.manual_backward(self.precision.scaled(loss / self.config.accumulate, DISCRIMINATOR))
            self._losses.append(loss.detach())
        right_of_real, right_of_fake = self.objective.accuracy(judged_real.logits, judged_fake.logits)
        self.log("train/discriminator_loss", loss.detach())
        self.log("train/discriminator_accuracy_real", right_of_real)
        self.log("train/discriminator_accuracy_fake", right_of_fake)
        return judged_real.features

    def _generator_turn(
        self, real: Tensor, reconstruction: Reconstruction, real_features: list[list[Tensor]] | None
    ) -> None:
        # The judge's weights take no gradient in this turn.
        self.discriminator.requires_grad_(False)
        audio = reconstruction.audio
        losses = {"mel": self.objective.reconstruction_loss(audio, real)}
        if real_features is not None:
            with self.precision.autocast():
                judged = self.discriminator(audio)
                losses["adversarial"] = self.objective.adversarial_loss(judged.logits)
                losses["feature_matching"] = self.objective.feature_matching_loss(real_features, judged.features)
        total = self._descend(losses, reconstruction)
        self._losses.append(total.detach())
        self.discriminator.requires_grad_(True)
        losses["commitment"] = reconstruction.commitment_loss
        self.log_dict({f"train/{name}_loss": loss.detach() for name, loss in losses.items()})
        self.log("train/generator_loss", total.detach())
        # The loggers' x axis, in completed generator updates; Lightning's own counts batches here.
        self.log("step", float(self.global_step + 1))

    def _descend(self, losses: Mapping[str, Tensor], reconstruction: Reconstruction) -> Tensor:
        """Adds the codec's gradients; returns the weighted loss."""
        weights, share = self.config.loss, 1 / self.config.accumulate
        weighted = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
        commitment = weights.commitment * reconstruction.commitment_loss
        if self.balancer is None:
            self.manual_backward(self.precision.scaled(share * (weighted + commitment), GENERATOR))
        else:
            gradient = share * self.balancer(losses, reconstruction.audio)
            ends, gradients = [reconstruction.audio], [gradient]
            if commitment.requires_grad:  # where only the decoder learns, it is a plain number
                ends.append(share * commitment)
                gradients.append(torch.ones_like(commitment))
            torch.autograd.backward(ends, gradients)
        return weighted + commitment

    def _update(self, judge_gradients: GradientAverage | None) -> None:
        """Both sides' optimizers, or neither where a gradient is not what it should be."""
        generator, discriminator = self._both_optimizers()
        sides: dict[str, tuple[nn.Module, Any, OptimizerConfig]]
        sides = {GENERATOR: (self.codec, generator, self.config.generator)}
        travelling = {GENERATOR: GradientAverage(self.codec.parameters())}
        if judge_gradients is not None:
            sides[DISCRIMINATOR] = (self.discriminator, discriminator, self.config.discriminator)
            travelling[DISCRIMINATOR] = judge_gradients
        norms = {}
        for name, (side, optimizer, config) in sides.items():
            travelling[name].finish()
            self.precision.unscale(optimizer.optimizer, name)
            norms[name] = clip_gradients(side.parameters(), config.gradient_clip_norm)
            self.log(f"train/{name}_gradient_norm", norms[name])
        step = self.global_step  # the generator's optimizer counts it up
        is_good = self._is_good(norms)
        for name, (_, optimizer, config) in sides.items():
            if not is_good:
                optimizer.zero_grad()  # without gradients the step below changes nothing and counts
            set_learning_rate(optimizer, learning_rate(config, step, self.config.max_steps))
            optimizer.step()
            optimizer.zero_grad()
            self.precision.update(name)
        if is_good and self.average is not None:
            self.average.update()

    def _is_good(self, norms: Mapping[str, Tensor]) -> bool:
        """Whether the update is to be applied; the one place in a step that waits for the device."""
        loss = torch.stack(self._losses).sum()
        summed(loss)  # the verdict is everybody's
        *values, total = torch.stack([*norms.values(), loss]).tolist()
        problem = self.guard.problem(dict(zip(norms, values, strict=True)))
        is_overflow = math.isfinite(total) and any(self.precision.can_overflow(name) for name in norms)
        if problem and not is_overflow:
            self.guard.skip(problem, step=self.global_step, rank=self.global_rank, batches=self._batches)
        self.log("train/skipped_updates", float(self.guard.skipped))
        return problem is None

    def _count_generator_updates_only(self) -> None:
        # Lightning counts every optimizer's step in `global_step`, which max_steps, checkpoints and loggers follow. It
        # installs the counting hooks anew for each batch; without the discriminator's, one count is one generator
        # update.
        _, discriminator = self._both_optimizers()
        discriminator._on_before_step = discriminator._on_after_step = _do_nothing

    def _both_optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers

    def _seed_batch(self) -> None:
        """Random draws depend on the position alone, so that a resumed run draws the same.

        Processes draw alike, each for the examples of all: a batch is the same, however many share it. DAC draws for
        its own examples only.
        """
        batch = self.global_step * self.config.accumulate + len(self._batches)
        rank = 0 if isinstance(self.codec, SpectroStream) else self.global_rank
        torch.manual_seed(_stable_seed(self.config.seed, batch, rank))


def _shape_in_words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"


def _do_nothing() -> None:
    pass


def _stable_seed(*parts: int) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
