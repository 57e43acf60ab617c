"""The adversarial recipes as data: which losses belong together, and their weights as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn

from spectrostream.adversarial.contract import DiscriminatorOutput
from spectrostream.adversarial.dac_losses import (
    LogMelLoss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    summed_feature_matching_loss,
)
from spectrostream.adversarial.loss_catalog import (
    ADVERSARIAL_LOSSES,
    RECONSTRUCTION_LOSSES,
    AdversarialLoss,
    LossWeights,
    ReconstructionLoss,
)
from spectrostream.adversarial.losses import hinge_discriminator_loss, shortest_for
from spectrostream.errors import UserError

Logits = Sequence[Tensor]
Loss = TypeVar("Loss")
CODEC_LOSS = "commitment"  # the weight of the loss that the codec itself returns


class UnknownRecipeError(UserError, ValueError):
    """A name that is no recipe; the message says which there are."""


@dataclass(frozen=True)
class Recipe:
    """The losses of one published training.

    Attributes:
        discriminator_loss: What the discriminator minimises, of its logits for original and for decoded audio.
        boundary: Logits above it say "original".
        weights: As published; a configuration states its own in `training.loss`.
        reconstruction: Formulas that replace the catalog's of the same name.
        adversarial: Likewise.
    """

    discriminator_loss: Callable[[Logits, Logits], Tensor]
    boundary: float
    weights: LossWeights
    reconstruction: Mapping[str, ReconstructionLoss] = field(default_factory=dict)
    adversarial: Mapping[str, AdversarialLoss] = field(default_factory=dict)

    def reconstruction_losses(self, weights: LossWeights) -> dict[str, ReconstructionLoss]:
        """The reconstruction losses that a training with these weights computes."""
        return _computed({**RECONSTRUCTION_LOSSES, **self.reconstruction}, weights)

    def adversarial_losses(self, weights: LossWeights) -> dict[str, AdversarialLoss]:
        """The losses of the discriminator's output that a training with these weights computes."""
        return _computed({**ADVERSARIAL_LOSSES, **self.adversarial}, weights)

    def shortest_audio(self, weights: LossWeights) -> int:
        """Fewest samples whose reconstruction losses can be computed."""
        return max(loss.shortest_audio for loss in self.reconstruction_losses(weights).values())


def _computed(losses: Mapping[str, Loss], weights: LossWeights) -> dict[str, Loss]:
    """The losses that every run logs, whatever their weights, and all others that have a weight."""
    logged = {one.name for one in fields(LossWeights)}
    return {name: loss for name, loss in losses.items() if name in logged or getattr(weights, name, False)}


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # arXiv:2508.05207: hinge; all losses are means over scales. The formulas are the catalog's.
        "spectrostream": Recipe(discriminator_loss=hinge_discriminator_loss, boundary=0.0, weights=LossWeights()),
        # arXiv:2306.06546: least squares; all losses are sums. DAC returns 0.25 * commitment + 1 * codebook as its
        # commitment loss, so its weight is 1 here.
        "dac": Recipe(
            discriminator_loss=least_squares_discriminator_loss,
            boundary=0.5,
            weights=LossWeights(adversarial=1.0, feature_matching=2.0, mel=15.0, commitment=1.0),
            reconstruction={"mel": ReconstructionLoss(LogMelLoss, shortest_for(max(LogMelLoss.windows)))},
            adversarial={
                "adversarial": lambda real, fake: least_squares_generator_loss(fake.logits),
                "feature_matching": lambda real, fake: summed_feature_matching_loss(real.features, fake.features),
            },
        ),
    }
)


class Objective(nn.Module):
    """What a training minimises, by its recipe and weights. All losses are float32 scalars, also under autocast.

    The module has buffers, which move with it to a device, but nothing to learn or to save.

    Attributes:
        names: The generator's losses in the order of their sum, without the codec's own.
    """

    def __init__(self, recipe: Recipe, sample_rate: int, weights: LossWeights) -> None:
        super().__init__()
        self.recipe = recipe
        losses = recipe.reconstruction_losses(weights)
        self._reconstruction = {name: loss.build(sample_rate) for name, loss in losses.items()}
        self._adversarial = recipe.adversarial_losses(weights)
        self.names = (*self._reconstruction, *self._adversarial)
        # Only registered modules move to a device.
        self._modules_with_buffers = nn.ModuleList(
            distance for distance in self._reconstruction.values() if isinstance(distance, nn.Module)
        )

    def discriminator_loss(self, real_logits: Logits, fake_logits: Logits) -> Tensor:
        """What the discriminator minimises.

        Args:
            real_logits: One tensor `[examples, positions]` per scale, for original audio.
            fake_logits: The same for decoded audio.
        """
        with _float32(fake_logits[0]):
            return self.recipe.discriminator_loss(real_logits, fake_logits)

    def reconstruction_losses(self, decoded: Tensor, original: Tensor) -> dict[str, Tensor]:
        """Distances between decoded and original audio by name; no gradient flows into the original.

        Args:
            decoded: `[batch, channels, samples]`.
            original: The same shape.

        Raises:
            ValueError: The shapes differ, or there are fewer samples than `Recipe.shortest_audio`.
        """
        return {name: distance(decoded, original) for name, distance in self._reconstruction.items()}

    def adversarial_losses(self, real: DiscriminatorOutput, fake: DiscriminatorOutput) -> dict[str, Tensor]:
        """What the codec minimises of the discriminator's output, by name.

        Args:
            real: For original audio; no gradient flows into it.
            fake: For decoded audio.
        """
        with _float32(fake.logits[0]):
            return {name: loss(real, fake) for name, loss in self._adversarial.items()}

    @torch.no_grad()
    def accuracy(self, real_logits: Logits, fake_logits: Logits) -> tuple[Tensor, Tensor]:
        """Shares in [0, 1] of the logits of original and of decoded audio that are right; scales count alike."""
        boundary = self.recipe.boundary
        real = torch.stack([(logits > boundary).float().mean() for logits in real_logits]).mean()
        fake = torch.stack([(logits < boundary).float().mean() for logits in fake_logits]).mean()
        return real, fake


def build_objective(recipe: str, sample_rate: int, weights: LossWeights | None = None) -> Objective:
    """Build the objective of a recipe.

    Args:
        recipe: One of `RECIPES`.
        sample_rate: Of the audio, in Hz.
        weights: Those that the losses will get, which say what is computed; the recipe's unless given.

    Raises:
        UnknownRecipeError: There is no such recipe.
    """
    if recipe not in RECIPES:
        raise UnknownRecipeError(f"training.recipe = {recipe!r} is not known; allowed: {', '.join(RECIPES)}")
    return Objective(RECIPES[recipe], sample_rate, weights or RECIPES[recipe].weights)


def _float32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
