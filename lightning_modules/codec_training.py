"""The GAN step: when the judge learns, when the codec learns. What they compute is the codec room's."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from lightning_modules.optimization import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from lightning_modules.training_config import TrainingConfig
from spectrostream.codec import SpectroStream
from spectrostream.interface import Reconstruction
from spectrostream.losses import (
    MultiScaleMelLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from spectrostream.registry import Codec


class OtherModelError(ValueError):
    """A checkpoint that does not fit the model that is to go on from it."""


class CodecTraining(lightning.LightningModule):
    """Trains any codec that returns a `Reconstruction` against a judge that returns a `Judgement`.

    One reconstruction serves both turns, and both sides are updated after both turns are computed: neither sees the
    other's new weights, so gradients accumulated over several batches equal those of one large batch. The codebooks are
    no part of this: they learn, and decay, with every batch.
    """

    def __init__(self, codec: Codec, discriminator: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.codec = codec
        self.discriminator = discriminator
        self.config = config
        self.mel_loss = MultiScaleMelLoss(codec.sample_rate)
        self._batches_in_step = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Generator first, discriminator second."""
        return [
            build_optimizer(self.config.generator, self.codec.parameters()),
            build_optimizer(self.config.discriminator, self.discriminator.parameters()),
        ]

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

    def on_fit_start(self) -> None:
        """Checkpoints lie between updates, so a run never starts within one."""
        self._batches_in_step = 0

    def training_step(self, batch: Tensor, batch_index: int) -> None:
        """batch: `[batch, channels, samples]`. Both turns; on the last batch of an update also both optimizers."""
        self._count_generator_updates_only()
        self._seed_batch()
        reconstruction = self.codec(batch)
        plays = self.global_step >= self.config.adversarial_start
        if plays:
            real_features = self._discriminator_turn(batch, reconstruction.audio.detach())
            self._generator_turn(batch, reconstruction, real_features)
        else:
            self._generator_turn(batch, reconstruction, None)
        self._batches_in_step += 1
        if self._batches_in_step == self.config.accumulate:
            self._update(discriminator_too=plays)
            self._batches_in_step = 0

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Mel loss of held-out audio coded at the full rate."""
        decoded = self.codec.decode(self.codec.encode(batch), length=batch.shape[-1])
        self.log("validation/mel_loss", self.mel_loss(decoded, batch).total, sync_dist=True, batch_size=len(batch))
        # The maximum of equal numbers is exact; their mean rounds, and the loggers cut it to an integer.
        self.log("step", float(self.global_step), reduce_fx="max", sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """How the codebooks are used, on average over the levels; codebooks that learn by gradients do not count it."""
        if isinstance(self.codec, SpectroStream) and self.codec.quantizer.learning.is_started:
            statistics = self.codec.quantizer.learning.statistics()
            self.log("validation/codebook_perplexity", statistics.perplexity.mean(), sync_dist=True)
            self.log("validation/codebook_used", statistics.used.mean(), sync_dist=True)

    def _discriminator_turn(self, real: Tensor, fake: Tensor) -> list[list[Tensor]]:
        judged_real, judged_fake = self.discriminator(real), self.discriminator(fake)
        loss = hinge_discriminator_loss(judged_real.logits, judged_fake.logits)
        self.manual_backward(loss / self.config.accumulate)
        self.log("train/discriminator_loss", loss.detach())
        return judged_real.features

    def _generator_turn(
        self, real: Tensor, reconstruction: Reconstruction, real_features: list[list[Tensor]] | None
    ) -> None:
        weights = self.config.loss
        mel = self.mel_loss(reconstruction.audio, real)
        losses = {"mel": mel.total, "commitment": reconstruction.commitment_loss}
        if real_features is not None:
            # The judge's weights take no gradient in this turn.
            self.discriminator.requires_grad_(False)
            judged = self.discriminator(reconstruction.audio)
            losses["adversarial"] = hinge_generator_loss(judged.logits)
            losses["feature_matching"] = feature_matching_loss(real_features, judged.features)
        total = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
        self.manual_backward(total / self.config.accumulate)
        self.discriminator.requires_grad_(True)
        self.log_dict({f"train/{name}_loss": loss.detach() for name, loss in losses.items()})
        self.log("train/generator_loss", total.detach())
        # The loggers' x axis, in completed generator updates; Lightning's own counts batches here.
        self.log("step", float(self.global_step + 1))

    def _update(self, *, discriminator_too: bool) -> None:
        config, step = self.config, self.global_step
        generator, discriminator = self._both_optimizers()
        self._update_side(generator, self.codec, config.generator, "generator", step)
        if discriminator_too:
            self._update_side(discriminator, self.discriminator, config.discriminator, "discriminator", step)

    def _update_side(self, optimizer: Any, side: nn.Module, config: OptimizerConfig, name: str, step: int) -> None:
        norm = clip_gradients(side.parameters(), config.gradient_clip_norm, side=name, step=step)
        set_learning_rate(optimizer, learning_rate(config, step, self.config.max_steps))
        optimizer.step()
        optimizer.zero_grad()
        self.log(f"train/{name}_gradient_norm", norm)

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
        # Random draws depend on the position alone, so that a resumed run draws the same.
        batch = self.global_step * self.config.accumulate + self._batches_in_step
        torch.manual_seed(_stable_seed(self.config.seed, batch, self.global_rank))


def _shape_in_words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {list(shape)}"


def _do_nothing() -> None:
    pass


def _stable_seed(*parts: int) -> int:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
