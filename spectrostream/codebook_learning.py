"""How the quantizer's codebooks learn: k-means start over collected vectors, moving averages, revival of dead entries.

Everything is agreed between the processes of a distributed run: vectors for k-means are gathered, and one sum over all
processes carries the sufficient statistics and a few vectors of each process, to which dead entries are moved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

_SMOOTHING = 1e-5  # keeps an average over almost no vectors finite
# So many entries of a level can be revived in one update. All 1024 at once would double what is exchanged.
_SPARE_VECTORS = 16


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
    is_frozen: see `freeze`; no part of the state, but of how a run is configured.
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
        self.is_frozen = False
        levels, codebook_size, dim = shape
        self.register_buffer("usage", torch.zeros(levels, codebook_size))
        self.register_buffer("sums", torch.zeros(shape))
        self.register_buffer("collected", torch.zeros(initial_vectors, dim))
        # -1: started. A tensor for the state dict; read on the host only while collecting.
        self.register_buffer("collected_count", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_read_started)

    @torch.no_grad()
    def collect(self, vectors: Tensor, codebooks: Tensor) -> None:
        """Keeps `[n, dim]` vectors of this and, in a distributed run, every process; starts the codebooks when full.

        Vectors that are not finite are left out.
        """
        vectors = gathered(vectors)
        vectors = vectors[_are_finite(vectors)]
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

    def freeze(self, codebooks: Tensor) -> None:
        """Leaves the codebooks as they are from now on: `update` does nothing, and nothing is collected."""
        if not self.is_started:
            self.adopt(codebooks)
        self.is_frozen = True

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

        indices: `[levels, n]`; residuals: `[levels, n, dim]`, what each level quantized. Those that are not finite
        count as absent.
        """
        if self.is_frozen:
            return
        is_present = _are_finite(residuals)
        residuals = residuals.masked_fill(~is_present[..., None], 0)
        shared = _Shared.zeros(self.sums.shape, like=residuals)
        levels, size = self.usage.shape
        slot = (indices + size * torch.arange(levels, device=indices.device)[:, None]).flatten()
        shared.counts.view(-1).index_add_(0, slot, is_present.flatten().to(residuals))
        shared.sums.view(-1, residuals.shape[-1]).index_add_(0, slot, residuals.flatten(0, 1))
        shared.offer_spare_vectors(residuals, is_present)
        summed(shared.numbers)
        self.usage.lerp_(shared.counts, 1 - self.decay)
        self.sums.lerp_(shared.sums, 1 - self.decay)
        self._revive(*shared.spare_vectors())
        codebooks.copy_(self.sums / self.usage.clamp(min=_SMOOTHING)[..., None])

    def _revive(self, vectors: Tensor, is_there: Tensor) -> None:
        """Moves dead entries to the vectors `[levels, n, dim]` that are there, one each; the rest wait for a turn."""
        # An equal share of what the level sees; in the same units as `usage`, whatever the batch size.
        share = self.usage.mean(1, keepdim=True)
        is_dead = self.usage < self.revival_threshold * share
        turn = (is_dead.cumsum(1) - 1).clamp(0, vectors.shape[1] - 1)
        is_dead &= is_dead.cumsum(1) <= is_there.sum(1, keepdim=True)
        moved = vectors.gather(1, turn[..., None].expand(-1, -1, vectors.shape[-1]))
        self.usage.copy_(torch.where(is_dead, share, self.usage))
        self.sums.copy_(torch.where(is_dead[..., None], moved * share[..., None], self.sums))


class _Shared(NamedTuple):
    """What the processes add up in one update: views into `numbers`, so that one exchange serves all.

    counts: `[levels, codebook_size]`, of vectors that chose an entry; sums: `[levels, codebook_size, dim]` of them.
    spare: `[levels, processes, n, dim]`, a few vectors for dead entries, of which each process fills its own; lots:
    `[levels, processes, n]`, a random number above 0 for each that is there.
    """

    numbers: Tensor
    counts: Tensor
    sums: Tensor
    spare: Tensor
    lots: Tensor

    @classmethod
    def zeros(cls, shape: torch.Size, *, like: Tensor) -> _Shared:
        levels, size, dim = shape
        spare = (levels, process_count(), _SPARE_VECTORS)
        shapes = ((levels, size), (levels, size, dim), (*spare, dim), spare)
        lengths = [math.prod(one) for one in shapes]
        numbers = like.new_zeros(sum(lengths))
        parts = zip(numbers.split(lengths), shapes, strict=True)
        return cls(numbers, *(part.view(one) for part, one in parts))

    def offer_spare_vectors(self, vectors: Tensor, is_present: Tensor) -> None:
        """Fills this process's part with different ones of `[levels, n, dim]`, drawn at random."""
        levels, count, dim = vectors.shape
        # Above 0; drawn as one process with the vectors of all would draw them.
        lots = 1 - own_share(torch.rand(count * process_count(), levels, device=vectors.device)).T
        drawn = (lots * is_present).topk(min(_SPARE_VECTORS, count), dim=1)
        place = drawn.indices.shape[1]
        self.lots[:, _rank(), :place] = drawn.values
        self.spare[:, _rank(), :place] = vectors.gather(1, drawn.indices[..., None].expand(-1, -1, dim))

    def spare_vectors(self) -> tuple[Tensor, Tensor]:
        """`[levels, n, dim]` with the highest lots among those of all processes; `[levels, n]`, which are there."""
        best = self.lots.flatten(1).topk(_SPARE_VECTORS, dim=1)
        index = best.indices[..., None].expand(-1, -1, self.spare.shape[-1])
        return self.spare.flatten(1, 2).gather(1, index), best.values > 0


def _are_finite(vectors: Tensor) -> Tensor:
    """`[.., dim]` to `[..]`: whether a vector's squared length is a finite number, so that sums of vectors are too."""
    return vectors.square().sum(-1).isfinite()


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


def process_count() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _rank() -> int:
    return distributed.get_rank() if process_count() > 1 else 0


def own_share(values: Tensor) -> Tensor:
    """This process's part of what stands for the examples of all, in the order of their ranks."""
    return values.chunk(process_count())[_rank()]


def summed(tensor: Tensor) -> None:
    """Replaces `tensor` by its sum over all processes."""
    if process_count() > 1:
        distributed.all_reduce(tensor)


def gathered(vectors: Tensor) -> Tensor:
    """`[n, dim]` of every process, in the order of their ranks: `[world * n, dim]`."""
    if process_count() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(process_count())]
    distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def from_first_process(tensor: Tensor) -> None:
    """Replaces `tensor` by that of rank 0."""
    if process_count() > 1:
        distributed.broadcast(tensor, src=0)
