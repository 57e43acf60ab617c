"""What a training run computes, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_modules.optimization import OptimizerConfig
from spectrostream.adversarial.losses import LossWeights
from spectrostream.adversarial.objectives import RECIPES

FREEZABLE = ("encoder", "codebooks", "decoder")


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Steps are generator updates everywhere.

    recipe: the losses' formulas: "spectrostream" (hinge, the paper's mel loss) or "dac" (least squares, Descript's).
    accumulate: batches whose gradients are averaged for one update of each side.
    adversarial_start: first update in which the judge learns and is obeyed; before it only mel and commitment losses
        act.
    discriminator_every: the judge learns in every n-th update, and is obeyed in each.
    balance: each loss's share of the gradient that reaches the decoder's output is its weight, whatever its size
        (EnCodec's balancer); `balance_decay` is that of the moving averages of the sizes.
    ema_decay: of the averaged generator weights, which are validated and exported; 0 is off.
    start_from: trained weights to start from: a path or hub id, as `SpectroStream.from_pretrained` takes it.
    freeze: parts that do not learn: "encoder", "codebooks", "decoder".
    explosion_factor: an update is skipped, as one that is not finite is, if a side's gradient norm is so many times the
        largest so far; 0 is off.
    max_skipped_updates: skipped ones without 100 good ones between them that are tolerated; one more ends the run.
    seed: of everything random in the step.
    """

    max_steps: int = 500_000
    seed: int = 0
    recipe: str = "spectrostream"
    accumulate: int = 1
    adversarial_start: int = 0
    discriminator_every: int = 1
    balance: bool = False
    balance_decay: float = 0.999
    ema_decay: float = 0.0
    start_from: str | None = None
    freeze: tuple[str, ...] = ()
    explosion_factor: float = 100.0
    max_skipped_updates: int = 10
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", tuple(self.freeze))
        lowest = {"max_steps": 1, "accumulate": 1, "adversarial_start": 0, "seed": 0, "discriminator_every": 1}
        lowest |= {"explosion_factor": 0, "max_skipped_updates": 0}
        for key, value in lowest.items():
            _require(getattr(self, key) >= value, key, getattr(self, key), f"{value} or more")
        _require(self.recipe in RECIPES, "recipe", self.recipe, ", ".join(RECIPES))
        for key in ("ema_decay", "balance_decay"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "0 or more, below 1")
        known = set(self.freeze) <= set(FREEZABLE)
        _require(known, "freeze", list(self.freeze), f"a list of {', '.join(FREEZABLE)}")


def _require(condition: bool, key: str, given: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"training.{key} = {given!r} is not possible; allowed: {allowed}")
