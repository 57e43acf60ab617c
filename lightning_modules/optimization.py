"""Optimizers, learning-rate schedules and gradient clipping, for generator and discriminator alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCHEDULES = ("constant", "exponential", "cosine")


class TrainingDivergedError(RuntimeError):
    """Updates are not finite or explode; the run cannot continue."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for the generator or for the discriminator."""

    learning_rate: float = 1e-4
    """Highest learning rate. Allowed: above 0. Source: public re-implementation; DAC has the same."""
    betas: tuple[float, float] = (0.5, 0.9)
    """AdamW's decay of the mean and of the square of the gradient. Allowed: two numbers, 0 or more, below 1. Source:
    public re-implementation; DAC has [0.8, 0.99]."""
    weight_decay: float = 0.0
    """AdamW's weight decay; 0 makes it Adam. Allowed: 0 or more."""
    gradient_clip_norm: float = 0.0
    """Largest norm of the whole gradient of this optimizer; 0 turns clipping off. Allowed: 0 or more. Source: DAC clips
    the generator at 1000, the discriminator at 10."""
    schedule: str = "constant"
    """Course of the learning rate: "exponential" multiplies it by `decay` in each generator update, "cosine" lowers it
    to zero at `training.max_steps`. Allowed: constant, exponential, cosine."""
    warmup_steps: int = 0
    """Generator updates over which the learning rate rises linearly; 0 turns this off. Allowed: 0 or more."""
    decay: float = 0.999996
    """Factor of the learning rate per generator update, with schedule "exponential". Allowed: above 0, at most 1.
    Source: DAC."""
    fused: bool = True
    """Whether one kernel updates all parameters: the same formula, other rounding."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule = {self.schedule!r} is not known; allowed: {', '.join(SCHEDULES)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate = {self.learning_rate} is not possible; allowed: above 0")
        if self.gradient_clip_norm < 0:
            given = f"gradient_clip_norm = {self.gradient_clip_norm}"
            raise ValueError(f"{given} is not possible; allowed: 0 (off) or above")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps = {self.warmup_steps} is not possible; allowed: 0 (off) or more")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay = {self.decay} is not possible; allowed: above 0, at most 1")


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build AdamW (Adam where weight_decay is 0) for the parameters that learn."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=config.fused,
    )


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The learning rate of generator update `step` (from 0); it depends on the step alone, also in a resumed run."""
    factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "exponential":
        factor *= config.decay**step
    elif config.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(step / max_steps, 1.0)))
    return config.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the same learning rate for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a largest norm, without waiting for the device.

    Args:
        parameters: Those of the generator or of the discriminator.
        max_norm: Largest norm of all gradients together; 0 leaves them unchanged.

    Returns:
        Their norm before, a scalar; it may be infinite or not a number.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return nn.utils.clip_grad_norm_(learning, max_norm if max_norm > 0 else math.inf)
