"""How the quantizer's codebooks learn: k-means start over collected vectors, moving averages, revival of dead entries.

Everything is agreed between the processes of a distributed run: vectors for k-means are gathered, sufficient statistics
are summed, and revived entries come from the first process.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

_SMOOTHING = 1e-5  # keeps an average over almost no vectors finite


class CodebookStatistics(NamedTuple):
    """How the entries of each level are used, by their moving averages.

    perplexity: `[levels]`, 2 to the entropy: as many entries, equally used, would inform as much.
    used: `[levels]`, share of entries that are chosen at least `revival_threshold` times as often as the average one.
    """

    perplexity: Tensor
    used: Tensor


class CodebookLearning(nn.Module):
    """State of the codebooks' learning; all of it is in the state dict, so that a resumed run goes on exactly.

    shape: (levels, codebook_size, embedding_dim). usage, sums: moving averages of each entry's count and vector sum.
    """

    usage: Tensor
    sums: Tensor
    collected: Tensor
    collected_count: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        decay: float,
        initial_vectors: int,
        kmeans_iterations: int,
        revival_threshold: float,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.initial_vectors = initial_vectors
        self.kmeans_iterations = kmeans_iterations
        self.revival_threshold = revival_threshold
        self.is_started = False
        levels, codebook_size, dim = shape
        self.register_buffer("usage", torch.zeros(levels, codebook_size))
        self.register_buffer("sums", torch.zeros(shape))
        self.register_buffer("collected", torch.zeros(initial_vectors, dim))
        # -1: started. A tensor for the state dict; read on the host only while collecting.
        self.register_buffer("collected_count", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_read_started)

    @torch.no_grad()
    def collect(self, vectors: Tensor, codebooks: Tensor) -> None:
        """Keeps `[n, dim]` vectors of this and, in a distributed run, every process; starts the codebooks when full."""
        vectors = gathered(vectors)
        count = int(self.collected_count)
        taken = vectors[: self.initial_vectors - count]
        self.collected[count : count + len(taken)] = taken
        self.collected_count += len(taken)
        if count + len(taken) == self.initial_vectors:
            self._start(codebooks, vectors_per_step=len(vectors))

    def _start(self, codebooks: Tensor, vectors_per_step: int) -> None:
        residuals = self.collected.clone()
        for level in range(codebooks.shape[0]):
            centroids, indices = kmeans(residuals, codebooks.shape[1], self.kmeans_iterations)
            codebooks[level] = centroids
            residuals -= centroids[indices]
            self.usage[level] = torch.bincount(indices, minlength=codebooks.shape[1]).to(self.usage)
        # In vectors per step, as the moving average counts: a start with the mass of all collected vectors would hold
        # the codebooks where a long gone encoder put them.
        self.usage *= vectors_per_step / self.initial_vectors
        from_first_process(codebooks)
        from_first_process(self.usage)
        self.sums.copy_(codebooks * self.usage[..., None])
        self._set_started()

    @torch.no_grad()
    def adopt(self, codebooks: Tensor) -> None:
        """Goes on from given codebooks, as if each entry had been used once a step; nothing is collected any more."""
        self.usage.fill_(1.0)
        self.sums.copy_(codebooks)
        self._set_started()

    def statistics(self) -> CodebookStatistics:
        """Of the entries' use so far; the same on every process."""
        share = self.usage / self.usage.sum(1, keepdim=True).clamp(min=_SMOOTHING)
        entropy = -torch.xlogy(share, share).sum(1)
        used = share * share.shape[1] >= self.revival_threshold
        return CodebookStatistics(entropy.exp(), (used & (share > 0)).float().mean(1))

    def _set_started(self) -> None:
        self.collected_count.fill_(-1)
        self.is_started = True

    @torch.no_grad()
    def update(self, codebooks: Tensor, indices: Tensor, residuals: Tensor) -> None:
        """Moves `codebooks` towards the mean of what each entry was chosen for.

        indices: `[levels, n]`; residuals: `[levels, n, dim]`, what each level quantized.
        """
        levels, size, dim = codebooks.shape
        slot = (indices + size * torch.arange(levels, device=indices.device)[:, None]).flatten()
        counts = torch.zeros(levels * size, device=residuals.device).index_add_(
            0, slot, torch.ones(slot.shape, device=residuals.device)
        )
        sums = torch.zeros(levels * size, dim, device=residuals.device).index_add_(0, slot, residuals.reshape(-1, dim))
        summed(counts)
        summed(sums)
        self.usage.lerp_(counts.view(levels, size), 1 - self.decay)
        self.sums.lerp_(sums.view(levels, size, dim), 1 - self.decay)
        self._revive(residuals)
        codebooks.copy_(self.sums / self.usage.clamp(min=_SMOOTHING)[..., None])

    def _revive(self, residuals: Tensor) -> None:
        # An equal share of what the level sees; in the same units as `usage`, whatever the batch size.
        share = self.usage.mean(1, keepdim=True)
        is_dead = self.usage < self.revival_threshold * share
        levels, size = self.usage.shape
        picks = torch.randint(residuals.shape[1], (levels, size), device=residuals.device)
        candidates = residuals.gather(1, picks[..., None].expand(-1, -1, residuals.shape[-1]))
        from_first_process(candidates)
        self.usage.copy_(torch.where(is_dead, share, self.usage))
        self.sums.copy_(torch.where(is_dead[..., None], candidates * share[..., None], self.sums))


def _read_started(module: nn.Module, _incompatible: object) -> None:
    assert isinstance(module, CodebookLearning)
    module.is_started = int(module.collected_count) < 0


@torch.no_grad()
def kmeans(vectors: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random distinct vectors. `[n, dim]` to centroids `[clusters, dim]` and indices `[n]`.

    A cluster that loses all its vectors restarts from a random one.
    """
    centroids = vectors[torch.randperm(len(vectors), device=vectors.device)[:clusters]].clone()
    for _ in range(iterations):
        indices = nearest_entries(vectors, centroids, centroids.square().sum(1))
        counts = torch.bincount(indices, minlength=clusters).to(vectors)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, indices, vectors)
        restarts = vectors[torch.randint(len(vectors), (clusters,), device=vectors.device)]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), restarts)
    return centroids, nearest_entries(vectors, centroids, centroids.square().sum(1))


def nearest_entries(vectors: Tensor, codebook: Tensor, squared_norms: Tensor) -> Tensor:
    """Index of the nearest entry: argmin of |c|^2 - 2 x.c, the lowest index on a tie. `[n, dim]`, `[k, dim]` to `[n]`.

    squared_norms: `[k]`, |c|^2. In float32 under autocast too: distances in bfloat16 would choose other entries in
    training than in use.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.addmm(squared_norms, vectors, codebook.T, alpha=-2).argmin(1)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def summed(tensor: Tensor) -> None:
    """Replaces `tensor` by its sum over all processes."""
    if _is_distributed():
        distributed.all_reduce(tensor)


def gathered(vectors: Tensor) -> Tensor:
    """`[n, dim]` of every process, in the order of their ranks: `[world * n, dim]`."""
    if not _is_distributed():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def from_first_process(tensor: Tensor) -> None:
    """Replaces `tensor` by that of rank 0."""
    if _is_distributed():
        distributed.broadcast(tensor, src=0)
