"""The generator's losses by name. Whoever adds one writes a function and one entry here.

The entry's name is the key of its weight, `training.loss.<name>`, and of its curve, `train/<name>_loss`. A loss that is
not one of the four of `LossWeights` has weight 0 unless a configuration gives it another; it is computed only then.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from typing import Any, Self

from torch import Tensor

from spectrostream.added_keys import added
from spectrostream.adversarial.contract import DiscriminatorOutput
from spectrostream.adversarial.losses import (
    MultiScaleMelLoss,
    feature_matching_loss,
    hinge_generator_loss,
    shortest_for,
)
from spectrostream.errors import require

AudioDistance = Callable[[Tensor, Tensor], Tensor]
AdversarialLoss = Callable[[DiscriminatorOutput, DiscriminatorOutput], Tensor]


@dataclass(frozen=True)
class ReconstructionLoss:
    """A distance between decoded and original audio.

    Attributes:
        build: From the sample rate in Hz to the distance: a function, or a module with buffers, of decoded and original
            audio `[batch, channels, samples]` that returns a scalar.
        shortest_audio: Fewest samples that it compares.
    """

    build: Callable[[int], AudioDistance]
    shortest_audio: int = 1


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {
    "mel": ReconstructionLoss(MultiScaleMelLoss, shortest_for(max(MultiScaleMelLoss.windows))),
}
# Scalars of what the discriminator returns for original audio (without a graph) and for decoded audio.
ADVERSARIAL_LOSSES: dict[str, AdversarialLoss] = {
    "adversarial": lambda real, fake: hinge_generator_loss(fake.logits),
    "feature_matching": lambda real, fake: feature_matching_loss(real.features, fake.features),
}


@dataclass(frozen=True)
class LossWeights:
    """Weights of the generator's losses; the defaults are the paper's."""

    adversarial: float = 1.0
    """Weight of the adversarial loss. Allowed: 0 (off) or more. Source: paper."""
    feature_matching: float = 100.0
    """Weight of the feature matching loss. Allowed: 0 (off) or more. Source: paper; DAC has 2."""
    mel: float = 1.0
    """Weight of the reconstruction loss, the multi-scale mel loss. Allowed: 0 (off) or more. Source: paper; DAC has 15.
    """
    commitment: float = 1.0
    """Weight of the codec's commitment loss. Allowed: 0 (off) or more. Source: paper."""

    def __new__(cls, **weights: Any) -> Self:
        """Give each further loss of the catalog a field too, with weight 0 unless it is named."""
        further = (RECONSTRUCTION_LOSSES | ADVERSARIAL_LOSSES).keys() - {field.name for field in fields(LossWeights)}
        schema: Any = _with_fields(tuple(sorted(further))) if further else cls
        return object.__new__(schema)

    def __post_init__(self) -> None:
        for field in fields(self):
            weight = getattr(self, field.name)
            is_possible = math.isfinite(weight) and weight >= 0
            require(is_possible, f"training.loss.{field.name} is {weight!r}", "a finite number, 0 (off) or more")


@functools.cache
def _with_fields(names: tuple[str, ...]) -> type[LossWeights]:
    further = [(name, float, added(0.0, neutral=0.0)) for name in names]
    return make_dataclass("LossWeights", further, bases=(LossWeights,), frozen=True)
