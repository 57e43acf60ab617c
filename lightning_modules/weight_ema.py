"""A moving average of the generator's weights, which is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the parameters that learn; all of its state is in `state_dict`.

    Codebooks are not among the parameters: they are moving averages already.

    Args:
        module: Whose parameters are averaged.
        decay: 0.999 averages over about 1000 updates. After n updates it is at most (1 + n) / (10 + n), so that the
            random initial weights soon do not count.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [value.detach() for value in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), current, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the module the averages as weights within the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            # By value: optimizers and compiled code refer to the parameter's memory.
            kept = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(kept)

    @torch.no_grad()
    def adopt(self) -> None:
        """Give the module the averages permanently."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._averages[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": self.updates, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.updates = state["updates"]
        averages: Mapping[str, Tensor] = state["averages"]
        for name, value in self._averages.items():
            value.copy_(averages[name])
