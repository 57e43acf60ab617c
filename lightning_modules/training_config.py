"""What a training run computes, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_modules.optimization import OptimizerConfig
from spectrostream.losses import LossWeights


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Steps are generator updates everywhere.

    accumulate: batches whose gradients are averaged for one update of each side.
    adversarial_start: first update in which the judge learns and is obeyed; before it only mel and commitment losses
    act.
    seed: of everything random in the step.
    """

    max_steps: int = 500_000
    seed: int = 0
    accumulate: int = 1
    adversarial_start: int = 0
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        for key, lowest in (("max_steps", 1), ("accumulate", 1), ("adversarial_start", 0), ("seed", 0)):
            if getattr(self, key) < lowest:
                raise ValueError(f"training.{key} = {getattr(self, key)} is not possible; allowed: {lowest} or more")
