"""The adversarial recipes as data: which losses belong together, and their weights as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from spectrostream.adversarial.dac_losses import (
    LogMelLoss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    summed_feature_matching_loss,
)
from spectrostream.adversarial.losses import (
    LossWeights,
    MultiScaleMelLoss,
    feature_matching_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    shortest_for,
)
from spectrostream.errors import UserError

Logits = Sequence[Tensor]
Features = Sequence[Sequence[Tensor]]


class UnknownRecipeError(UserError, ValueError):
    """A name that is no recipe; the message says which there are."""


@dataclass(frozen=True)
class Recipe:
    """The losses of one published training.

    discriminator_loss, adversarial_loss: of logits, for the judge and for the codec. feature_matching_loss: of the
    judge's hidden features. reconstruction_loss: of audio; built with a sample rate in Hz, has `windows` in samples.
    boundary: logits above it say "real".
    weights: as published; a configuration states its own in `training.loss`.
    """

    discriminator_loss: Callable[[Logits, Logits], Tensor]
    adversarial_loss: Callable[[Logits], Tensor]
    feature_matching_loss: Callable[[Features, Features], Tensor]
    reconstruction_loss: type[MultiScaleMelLoss] | type[LogMelLoss]
    boundary: float
    weights: LossWeights

    @property
    def shortest_audio(self) -> int:
        """Fewest samples whose reconstruction loss can be computed."""
        return shortest_for(max(self.reconstruction_loss.windows))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # arXiv:2508.05207: hinge; all losses are means over scales.
        "spectrostream": Recipe(
            discriminator_loss=hinge_discriminator_loss,
            adversarial_loss=hinge_generator_loss,
            feature_matching_loss=feature_matching_loss,
            reconstruction_loss=MultiScaleMelLoss,
            boundary=0.0,
            weights=LossWeights(),
        ),
        # arXiv:2306.06546: least squares; all losses are sums. DAC's own commitment loss arrives as
        # 0.25 * commitment + 1 * codebook, so its weight is 1 here.
        "dac": Recipe(
            discriminator_loss=least_squares_discriminator_loss,
            adversarial_loss=least_squares_generator_loss,
            feature_matching_loss=summed_feature_matching_loss,
            reconstruction_loss=LogMelLoss,
            boundary=0.5,
            weights=LossWeights(adversarial=1.0, feature_matching=2.0, mel=15.0, commitment=1.0),
        ),
    }
)


class Objective(nn.Module):
    """What a training minimises, by its recipe. All losses are float32 scalars, also under autocast.

    Logits and features are those of a `Judgement`: a list with one entry per judge. The module has buffers, which move
    with it to a device, but nothing to learn or to save.
    """

    def __init__(self, recipe: Recipe, sample_rate: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.reconstruction = recipe.reconstruction_loss(sample_rate)

    def discriminator_loss(self, real_logits: Logits, fake_logits: Logits) -> Tensor:
        """What the judge minimises; logits for original and for decoded audio."""
        with _float32(fake_logits[0]):
            return self.recipe.discriminator_loss(real_logits, fake_logits)

    def adversarial_loss(self, fake_logits: Logits) -> Tensor:
        """What the codec minimises to pass for real; logits for decoded audio."""
        with _float32(fake_logits[0]):
            return self.recipe.adversarial_loss(fake_logits)

    def feature_matching_loss(self, real_features: Features, fake_features: Features) -> Tensor:
        """Distance of what the judge notices in decoded and in original audio; no gradient into the real ones."""
        with _float32(fake_features[0][0]):
            return self.recipe.feature_matching_loss(real_features, fake_features)

    def reconstruction_loss(self, decoded: Tensor, original: Tensor) -> Tensor:
        """Distance of audio `[batch, channels, samples]`; no gradient into the original.

        ValueError if the shapes differ or if there are fewer samples than `recipe.shortest_audio`.
        """
        loss = self.reconstruction(decoded, original)
        return loss if isinstance(loss, Tensor) else loss.total

    @torch.no_grad()
    def accuracy(self, real_logits: Logits, fake_logits: Logits) -> tuple[Tensor, Tensor]:
        """Shares in [0, 1] of the logits of original and of decoded audio judged rightly; judges count alike."""
        boundary = self.recipe.boundary
        real = torch.stack([(logits > boundary).float().mean() for logits in real_logits]).mean()
        fake = torch.stack([(logits < boundary).float().mean() for logits in fake_logits]).mean()
        return real, fake


def build_objective(recipe: str, sample_rate: int) -> Objective:
    """The objective of a recipe, one of `RECIPES`, for audio at `sample_rate` Hz. Raises UnknownRecipeError."""
    if recipe not in RECIPES:
        raise UnknownRecipeError(f"training.recipe = {recipe!r} is not known; allowed: {', '.join(RECIPES)}")
    return Objective(RECIPES[recipe], sample_rate)


def _float32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
