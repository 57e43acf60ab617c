"""What a training run computes, as data."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_modules.optimization import OptimizerConfig
from spectrostream.adversarial.loss_catalog import LossWeights
from spectrostream.adversarial.objectives import RECIPES
from spectrostream.errors import require
from spectrostream.interface import PARTS


@dataclass(frozen=True)
class TrainingConfig:
    """What one training run computes. Steps are generator updates everywhere."""

    max_steps: int = 500_000
    """Generator updates in the whole run. Allowed: 1 or more."""
    seed: int = 0
    """Seed of everything random in a training step. Allowed: 0 or more."""
    recipe: str = "spectrostream"
    """The formulas of the losses: "spectrostream" is hinge and the paper's mel loss, "dac" is least squares and DAC's
    log mel loss. Allowed: spectrostream, dac. Source: the two papers."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one update of the generator and of the discriminator. Allowed: 1 or
    more."""
    adversarial_start: int = 0
    """First update in which the discriminator learns and its losses train the generator; before it only the mel and
    commitment losses do. Allowed: 0 or more."""
    discriminator_every: int = 1
    """The discriminator learns in every n-th update; its losses train the generator in every update. Allowed: 1 or
    more."""
    balance: bool = False
    """Whether each loss's share of the gradient at the decoder's output equals its weight, whatever the size of the
    loss. Source: EnCodec's loss balancer."""
    balance_decay: float = 0.999
    """Decay of the moving averages of gradient sizes that the balancer uses. Allowed: 0 or more, below 1. Source:
    EnCodec."""
    ema_decay: float = 0.0
    """Decay per update of the moving average of the generator's weights, which is validated and exported; 0 turns it
    off. Allowed: 0 or more, below 1."""
    start_from: str | None = None
    """Trained weights to start from. Allowed: null, a path, or a hub id, as `SpectroStream.from_pretrained` takes it.
    """
    freeze: tuple[str, ...] = ()
    """Parts of the codec that do not learn. Allowed: a list of encoder, codebooks, decoder."""
    explosion_factor: float = 100.0
    """An update is skipped when a gradient norm is this many times the largest norm so far; 0 turns this off. Updates
    that are not finite are always skipped. Allowed: 0 or more."""
    max_skipped_updates: int = 10
    """Skipped updates, without 100 good ones between them, after which one more ends the run. Allowed: 0 or more."""
    generator: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the codec. Allowed: the keys of the optimizer."""
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the discriminator. Allowed: the keys of the optimizer."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Weights of the generator's losses. Allowed: the keys of the losses."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", tuple(self.freeze))
        lowest = {"max_steps": 1, "accumulate": 1, "adversarial_start": 0, "seed": 0, "discriminator_every": 1}
        lowest |= {"explosion_factor": 0, "max_skipped_updates": 0}
        for key, value in lowest.items():
            self._require(key, getattr(self, key) >= value, f"{value} or more")
        self._require("recipe", self.recipe in RECIPES, ", ".join(RECIPES))
        for key in ("ema_decay", "balance_decay"):
            self._require(key, 0 <= getattr(self, key) < 1, "0 or more, below 1")
        known = set(self.freeze) <= set(PARTS)
        require(known, f"training.freeze = {list(self.freeze)!r} is not possible", f"a list of {', '.join(PARTS)}")

    @property
    def shortest_audio(self) -> int:
        """Fewest samples of a crop whose losses can be computed."""
        return RECIPES[self.recipe].shortest_audio(self.loss)

    def _require(self, key: str, is_possible: bool, allowed: str) -> None:
        require(is_possible, f"training.{key} = {getattr(self, key)!r} is not possible", allowed)
