"""Weighs the gradients of the losses instead of the losses (EnCodec's balancer, arXiv:2210.13438)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spectrostream.collectives import process_count, summed

_SMALLEST = 1e-12


class LossBalancer(nn.Module):
    """The gradient at the decoder's output is `sum of w_i / sum(w) * g_i / average |g_i|` over the losses i.

    So each loss has the share of the gradient that its weight says, whatever its size. |g_i| is the mean of a
    gradient's norm over the examples of all processes; the moving averages are in the state dict.

    Args:
        weights: w_i by the loss's name; a loss of weight 0 is left out.
        decay: Decay of the moving averages of |g_i|.
    """

    averages: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float], decay: float = 0.999) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.decay = decay
        # Sums of norms and of their weights, both decaying: the average is right from the first update on.
        self.register_buffer("averages", torch.zeros(len(self.weights)))
        self.register_buffer("counts", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """Balance the gradients of the losses that are given.

        Args:
            losses: Scalars by name; those without a weight are ignored.
            output: `[batch, ..]`, the tensor from which every loss was computed.

        Returns:
            The gradient for `output.backward`, shaped as `output`.
        """
        names = [name for name in self.weights if name in losses]
        gradients = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in names]
        index = torch.tensor([list(self.weights).index(name) for name in names], device=output.device)
        # A norm over whole examples grows with their length, as the gradient of a mean shrinks with the batch.
        norms = torch.stack([gradient.flatten(1).norm(dim=1).mean() for gradient in gradients])
        usual = self._usual(norms.float(), index)
        total = sum(self.weights[name] for name in names)
        balanced = torch.zeros_like(output)
        for position, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
            balanced += self.weights[name] / total * gradient / usual[position]
        return balanced

    @torch.no_grad()
    def _usual(self, norms: Tensor, index: Tensor) -> Tensor:
        summed(norms)
        norms = norms / process_count()
        is_finite = norms.isfinite()  # a bad batch must not affect those after it
        self.averages[index] = self.decay * self.averages[index] + norms.where(is_finite, 0)
        self.counts[index] = self.decay * self.counts[index] + is_finite
        return (self.averages[index] / self.counts[index].clamp(min=_SMALLEST)).clamp(min=_SMALLEST)
