"""Optimizers, learning-rate schedules and gradient clipping of one side of the GAN."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SCHEDULES = ("constant", "exponential", "cosine")


class TrainingDivergedError(RuntimeError):
    """A loss or gradient is no longer finite; the run cannot go on."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW for one side, generator or discriminator.

    betas: (0.5, 0.9) as the re-implementation trains.
    gradient_clip_norm: largest norm of that side's whole gradient; 0 is off.
    schedule: "constant", "exponential" (decay per generator update) or "cosine" (to zero at max_steps).
    warmup_steps: generator updates over which the rate rises linearly.
    fused: one kernel for all parameters; the same formula, other rounding.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    weight_decay: float = 0.0
    gradient_clip_norm: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    decay: float = 0.999996
    fused: bool = True

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
    """AdamW (Adam where weight_decay is 0) of the parameters that learn."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=config.fused,
    )


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of generator update `step` (from 0): a function of the step alone, so a resumed run has the same."""
    factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "exponential":
        factor *= config.decay**step
    elif config.schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(step / max_steps, 1.0)))
    return config.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same rate for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales one side's gradients down to `max_norm` (0: leaves them); returns their norm before, perhaps not finite.

    Nothing here waits for the device.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    return nn.utils.clip_grad_norm_(learning, max_norm if max_norm > 0 else math.inf)
