"""Exchange between the processes that train together. With a single process, each function keeps its input."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def process_count() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


def own_share(values: Tensor) -> Tensor:
    """Return this process's part of values for the examples of all processes, which are in the order of the ranks."""
    return values.chunk(process_count())[rank()]


def summed(tensor: Tensor) -> None:
    """Replace `tensor` by its sum over all processes."""
    if process_count() > 1:
        distributed.all_reduce(tensor)


def gathered(vectors: Tensor) -> Tensor:
    """Return the vectors `[n, dim]` of every process, in the order of the ranks: `[processes * n, dim]`."""
    if process_count() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(process_count())]
    distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def from_first_process(tensor: Tensor) -> None:
    """Replace `tensor` by that of rank 0."""
    if process_count() > 1:
        distributed.broadcast(tensor, src=0)
