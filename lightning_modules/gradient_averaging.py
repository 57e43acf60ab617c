"""Several processes, one model: the same weights at the start, gradients averaged where the training step says so.

Lightning's own strategy wraps the module in DistributedDataParallel, which expects all parameters in each backward
pass; a GAN's turns use one side each, and searching for the unused ones costs a walk through the graph in every turn.
Averaging by hand needs no search and happens once per update, whatever is accumulated; the judge's gradients travel
during the generator's turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

BUCKET_ELEMENTS = 8 * 1024 * 1024  # 32 MiB of float32: few messages, and the first is on its way early


class AveragingStrategy(DDPStrategy):
    """One process per device that starts from rank 0's weights; see `GradientAverage`."""

    def configure_ddp(self) -> None:
        """Wraps nothing; every process gets rank 0's parameters and buffers."""
        assert isinstance(self.model, nn.Module)
        for tensor in self.model.state_dict().values():
            distributed.broadcast(tensor, src=0)


class GradientAverage:
    """The gradients of one side on their way between all processes; `finish` puts the average in their place.

    A parameter without gradient takes part with zeros, in one process as in many: all do the same.
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
        """Waits, and writes the averages into the gradients."""
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
