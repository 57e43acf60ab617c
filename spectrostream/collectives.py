"""Exchange between the processes that train together; with a single process each function leaves its input as it is."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def process_count() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


def own_share(values: Tensor) -> Tensor:
    """This process's part of values for the examples of all processes, in the order of their ranks."""
    return values.chunk(process_count())[rank()]


def summed(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all processes."""
    if process_count() > 1:
        distributed.all_reduce(tensor)


def gathered(vectors: Tensor) -> Tensor:
    """Vectors `[n, dim]` of every process, in the order of their ranks: `[processes * n, dim]`."""
    if process_count() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(process_count())]
    distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def from_first_process(tensor: Tensor) -> None:
    """Replace `tensor` by that of rank 0."""
    if process_count() > 1:
        distributed.broadcast(tensor, src=0)
