"""The GAN step: when the discriminator learns, when the codec learns. `spectrostream` computes what they learn from."""

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
from spectrostream.adversarial.contract import Discriminator, DiscriminatorOutput
from spectrostream.adversarial.loss_balancer import LossBalancer
from spectrostream.adversarial.losses import MultiScaleMelLoss
from spectrostream.adversarial.objectives import CODEC_LOSS, build_objective
from spectrostream.collectives import summed
from spectrostream.interface import Reconstruction, TrainableCodec

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class OtherModelError(ValueError):
    """A checkpoint is of another model than the one that should resume from it."""


class CodecTraining(lightning.LightningModule):
    """Trains any codec against any discriminator.

    Each step has a discriminator's turn and a generator's turn, which share one reconstruction. Both are updated after
    both turns, so neither sees the other's new weights, and gradients accumulated over several batches equal those of
    one large batch. The codebooks learn with every batch instead.

    Args:
        codec: The generator; returns a `Reconstruction` in training.
        discriminator: Tells original from decoded audio.
        config: What the training computes.

    Attributes:
        precision_name: As `trainer.precision`; read when training starts.
        bad_batches: Where the batches of skipped updates are kept, or None.
    """

    def __init__(self, codec: TrainableCodec, discriminator: Discriminator, config: TrainingConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.discriminator = discriminator
        self.config = config
        self.precision_name = "32-true"
        self.bad_batches: Path | None = None
        self.objective = build_objective(config.recipe, codec.sample_rate, config.loss)
        self.mel_loss = MultiScaleMelLoss(codec.sample_rate)
        weights = {name: getattr(config.loss, name) for name in self.objective.names}
        self.balancer = LossBalancer(weights, config.balance_decay) if config.balance else None
        self.average: WeightAverage | None = None
        self._restored: Mapping[str, Any] = {}
        self._batches: list[Tensor] = []  # of the current update
        self._losses: list[Tensor] = []  # likewise, of generator and discriminator
        self._validating: AbstractContextManager[None] = nullcontext()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Build both optimizers: the generator's first, the discriminator's second."""
        return [
            build_optimizer(self.config.generator, self.codec.parameters()),
            build_optimizer(self.config.discriminator, self.discriminator.parameters()),
        ]

    def on_fit_start(self) -> None:
        """Set up what a run has besides weights and optimizers; a checkpoint is always between two updates."""
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
        """Add scalers, counts and averaged weights."""
        checkpoint["carried"] = {name: part.state_dict() for name, part in self._carried().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model.

        Raises:
            OtherModelError: It is not; the message names the first difference.
        """
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
        """Give `codec` the averaged weights within the context, if they are averaged at all."""
        with nullcontext() if self.average is None else self.average.swapped_in():
            yield

    def adopt_averaged_weights(self) -> None:
        """Give the codec the averaged weights permanently, after training."""
        if self.average is not None:
            self.average.adopt()

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """Compute both turns, and with the last batch of an update both optimizers' steps.

        Args:
            batch: `[batch, channels, samples]`.
            batch_index: Not used; Lightning passes it.
        """
        self._count_generator_updates_only()
        self.precision.check(self.codec, self.discriminator, batch[:1])
        self._seed_batch()
        self._batches.append(batch)
        is_last = len(self._batches) == self.config.accumulate
        since_start = self.global_step - self.config.adversarial_start
        learns = since_start >= 0 and since_start % self.config.discriminator_every == 0
        with self.precision.autocast():
            reconstruction = self.codec(batch)
        real_output = discriminator_gradients = None
        if since_start >= 0:
            real_output = self._discriminator_turn(batch, reconstruction.audio.detach(), learns=learns)
        if learns and is_last:
            # The processes exchange them during the generator's turn.
            discriminator_gradients = GradientAverage(self.discriminator.parameters())
        self._generator_turn(batch, reconstruction, real_output)
        if is_last:
            self._update(discriminator_gradients)
            self._batches, self._losses = [], []

    def on_validation_epoch_start(self) -> None:
        """Swap the averaged weights in, to validate them."""
        self._validating = self.averaged_weights()
        self._validating.__enter__()

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Log the mel loss of held-out audio coded at the full rate.

        Args:
            batch: `[batch, channels, samples]`.
            batch_index: Not used; Lightning passes it.
        """
        decoded = self.codec.decode(self.codec.encode(batch), length=batch.shape[-1])
        self.log("validation/mel_loss", self.mel_loss(decoded, batch), sync_dist=True, batch_size=len(batch))
        # The maximum of equal numbers is exact; their mean rounds, and the loggers cut it to an integer.
        self.log("step", float(self.global_step), reduce_fx="max", sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log how the codebooks are used, averaged over the levels; only codebooks with moving averages count it."""
        self._validating.__exit__(None, None, None)
        statistics = self.codec.codebook_statistics()
        if statistics is not None:
            self.log("validation/codebook_perplexity", statistics.perplexity.mean(), sync_dist=True)
            self.log("validation/codebook_used", statistics.used.mean(), sync_dist=True)

    def _discriminator_turn(self, real: Tensor, fake: Tensor, *, learns: bool) -> DiscriminatorOutput:
        """Add the discriminator's gradients if it learns.

        Args:
            real: Original audio `[batch, channels, samples]`.
            fake: Decoded audio, the same shape, without a graph.
            learns: Whether the discriminator learns in this update.

        Returns:
            The discriminator's output for the original, without a graph.
        """
        with self.precision.autocast(), torch.set_grad_enabled(learns):
            real_output, fake_output = self.discriminator(real), self.discriminator(fake)
            loss = self.objective.discriminator_loss(real_output.logits, fake_output.logits)
        if learns:
            self.manual_backward(self.precision.scaled(loss / self.config.accumulate, DISCRIMINATOR))
            self._losses.append(loss.detach())
        right_of_real, right_of_fake = self.objective.accuracy(real_output.logits, fake_output.logits)
        self.log("train/discriminator_loss", loss.detach())
        self.log("train/discriminator_accuracy_real", right_of_real)
        self.log("train/discriminator_accuracy_fake", right_of_fake)
        output: DiscriminatorOutput = real_output.detach()
        return output

    def _generator_turn(
        self, real: Tensor, reconstruction: Reconstruction, real_output: DiscriminatorOutput | None
    ) -> None:
        """Add the codec's gradients and log all of its losses.

        Args:
            real: Original audio `[batch, channels, samples]`.
            reconstruction: What the codec made of it.
            real_output: The discriminator's output for the original; None before `adversarial_start`.
        """
        # The discriminator's weights take no gradient in this turn.
        self.discriminator.requires_grad_(False)
        audio = reconstruction.audio
        losses = self.objective.reconstruction_losses(audio, real)
        if real_output is not None:
            with self.precision.autocast():
                losses |= self.objective.adversarial_losses(real_output, self.discriminator(audio))
        total = self._descend(losses, reconstruction)
        self._losses.append(total.detach())
        self.discriminator.requires_grad_(True)
        losses[CODEC_LOSS] = reconstruction.commitment_loss
        self.log_dict({f"train/{name}_loss": loss.detach() for name, loss in losses.items()})
        self.log("train/generator_loss", total.detach())
        # The loggers' x axis, in completed generator updates; Lightning's own counts batches here.
        self.log("step", float(self.global_step + 1))

    def _descend(self, losses: Mapping[str, Tensor], reconstruction: Reconstruction) -> Tensor:
        """Add the codec's gradients.

        Args:
            losses: Scalars of the decoded audio, by name.
            reconstruction: The decoded audio, and the codec's own loss.

        Returns:
            The weighted sum of all losses, a scalar.
        """
        weights, share = self.config.loss, 1 / self.config.accumulate
        weighted = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
        commitment = getattr(weights, CODEC_LOSS) * reconstruction.commitment_loss
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

    def _update(self, discriminator_gradients: GradientAverage | None) -> None:
        """Step both optimizers, or neither if a gradient is not finite or explodes."""
        generator, discriminator = self._both_optimizers()
        sides: dict[str, tuple[nn.Module, Any, OptimizerConfig]]
        sides = {GENERATOR: (self.codec, generator, self.config.generator)}
        travelling = {GENERATOR: GradientAverage(self.codec.parameters())}
        if discriminator_gradients is not None:
            sides[DISCRIMINATOR] = (self.discriminator, discriminator, self.config.discriminator)
            travelling[DISCRIMINATOR] = discriminator_gradients
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
                optimizer.zero_grad()  # without gradients the step below changes nothing, but counts
            set_learning_rate(optimizer, learning_rate(config, step, self.config.max_steps))
            optimizer.step()
            optimizer.zero_grad()
            self.precision.update(name)
        if is_good and self.average is not None:
            self.average.update()

    def _is_good(self, norms: Mapping[str, Tensor]) -> bool:
        """Whether the update is applied; the only place in a step that waits for the device."""
        loss = torch.stack(self._losses).sum()
        summed(loss)  # all processes decide alike
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
        """Seed random draws by the position in the run alone, so that a resumed run draws the same.

        Where the codec draws for the examples of all processes, all processes have the same seed, and a batch is the
        same however many share it. Otherwise each process has its own.
        """
        batch = self.global_step * self.config.accumulate + len(self._batches)
        rank = 0 if self.codec.draws_for_all_processes else self.global_rank
        torch.manual_seed(_stable_seed(self.config.seed, batch, rank))


def _shape_in_words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"


def _do_nothing() -> None:
    pass


def _stable_seed(*parts: int) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
