"""Several processes train one model: they start from the same weights and average their gradients in each update.

Lightning's own strategy wraps the module in DistributedDataParallel, which expects all parameters in each backward
pass. A GAN's backward pass uses either the generator or the discriminator, and the search for unused parameters walks
through the graph each time. Averaging by hand needs no search and happens once per update, whatever is accumulated. The
processes exchange the discriminator's gradients while the generator's are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

BUCKET_ELEMENTS = 8 * 1024 * 1024  # 32 MiB of float32: few messages, and the first one starts early


class AveragingStrategy(DDPStrategy):
    """One process per device; all start from rank 0's weights. `GradientAverage` averages the gradients."""

    def configure_ddp(self) -> None:
        """Copy rank 0's parameters and buffers to every process, without wrapping the module."""
        assert isinstance(self.model, nn.Module)
        for tensor in self.model.state_dict().values():
            distributed.broadcast(tensor, src=0)


class GradientAverage:
    """An average over all processes that runs in the background; `finish` writes it into the gradients.

    A parameter without a gradient takes part with zeros, also in a single process, so that all processes do the same.

    Args:
        parameters: Those of the generator or of the discriminator; frozen ones are left out.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._buckets: list[tuple[list[Tensor], Tensor, distributed.Work]] = []
        gradients = [_gradient(parameter) for parameter in parameters if parameter.requires_grad]
        if not distributed.is_available() or not distributed.is_initialized():
            return
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            work = distributed.all_reduce(flat, async_op=True)
            assert work is not None
            self._buckets.append((bucket, flat, work))

    def finish(self) -> None:
        """Wait for the other processes and write the averages into the gradients."""
        for gradients, flat, work in self._buckets:
            work.wait()
            flat /= distributed.get_world_size()
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))
        self._buckets.clear()


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
