"""How the quantizer's codebooks learn: a start by k-means, moving averages, and revival of dead entries.

All processes of a distributed run have the same codebooks. They gather the vectors for k-means. After that, each update
adds up the counts and sums of vectors over all processes. It also shares a few vectors of each process, to which dead
entries are moved.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spectrostream.collectives import from_first_process, gathered, own_share, process_count, rank, summed

_SMOOTHING = 1e-5  # keeps an average over almost no vectors finite
# Entries of a level that one update can revive; all 1024 at once would double the exchanged data.
_SPARE_VECTORS = 16


class CodebookStatistics(NamedTuple):
    """How the entries of each level are used, by their moving averages.

    Attributes:
        perplexity: `[levels]`, exp of the entropy in nats: this many equally used entries carry as much information.
        used: `[levels]`, share of entries that are chosen at least `revival_threshold` times as often as on average.
    """

    perplexity: Tensor
    used: Tensor


class CodebookLearning(nn.Module):
    """The state of the codebooks' learning. The state dict holds all of it, so that a run resumes exactly.

    Args:
        shape: (levels, codebook_size, embedding_dim).
        decay: Decay of the moving averages per update.
        initial_vectors: Vectors that are collected before k-means.
        kmeans_iterations: Iterations of k-means.
        revival_threshold: An entry is dead if its usage is below this fraction of an equal share.

    Attributes:
        usage: `[levels, codebook_size]`, moving average of each entry's count.
        sums: `[levels, codebook_size, embedding_dim]`, moving average of each entry's sum of vectors.
        is_started: True after k-means or `adopt`.
        is_frozen: True after `freeze`. It is not saved, because the run's configuration determines it.
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
        # -1 after the start. It is a tensor, so that the state dict holds it; the host reads it only while collecting.
        self.register_buffer("collected_count", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_read_started)

    @torch.no_grad()
    def collect(self, vectors: Tensor, codebooks: Tensor) -> None:
        """Collect the vectors of every process, and start the codebooks when there are enough.

        Args:
            vectors: `[n, dim]`; vectors that are not finite are left out.
            codebooks: `[levels, codebook_size, dim]`, changed in place.
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
        # In vectors per step, like the moving averages. With the count of all collected vectors, the codebooks would
        # move too slowly away from the outputs of an early encoder.
        self.usage *= vectors_per_step / self.initial_vectors
        from_first_process(codebooks)
        from_first_process(self.usage)
        self.sums.copy_(codebooks * self.usage[..., None])
        self._set_started()

    @torch.no_grad()
    def adopt(self, codebooks: Tensor) -> None:
        """Start from given codebooks as if each entry were used once per step; nothing is collected any more."""
        self.usage.fill_(1.0)
        self.sums.copy_(codebooks)
        self._set_started()

    def freeze(self, codebooks: Tensor) -> None:
        """Keep the codebooks as they are; `update` then does nothing, and nothing is collected."""
        if not self.is_started:
            self.adopt(codebooks)
        self.is_frozen = True

    def statistics(self) -> CodebookStatistics:
        """Return how the entries have been used so far; all processes return the same."""
        share = self.usage / self.usage.sum(1, keepdim=True).clamp(min=_SMOOTHING)
        entropy = -torch.xlogy(share, share).sum(1)
        used = share * share.shape[1] >= self.revival_threshold
        return CodebookStatistics(entropy.exp(), (used & (share > 0)).float().mean(1))

    def _set_started(self) -> None:
        self.collected_count.fill_(-1)
        self.is_started = True

    @torch.no_grad()
    def update(self, codebooks: Tensor, indices: Tensor, residuals: Tensor) -> None:
        """Move each entry towards the mean of the vectors that chose it.

        Args:
            codebooks: `[levels, codebook_size, dim]`, changed in place.
            indices: `[levels, n]`, the chosen entries.
            residuals: `[levels, n, dim]`, the vectors that each level quantized; vectors that are not finite are left
                out.
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

    def _revive(self, vectors: Tensor, is_present: Tensor) -> None:
        """Move each dead entry to a vector of its own; if there are too few, the rest waits for the next update.

        Args:
            vectors: `[levels, n, dim]`.
            is_present: `[levels, n]`, which of them exist; those come first.
        """
        # An equal share of the level's vectors, in the same units as `usage`, for any batch size.
        share = self.usage.mean(1, keepdim=True)
        is_dead = self.usage < self.revival_threshold * share
        turn = (is_dead.cumsum(1) - 1).clamp(0, vectors.shape[1] - 1)
        is_dead &= is_dead.cumsum(1) <= is_present.sum(1, keepdim=True)
        moved = vectors.gather(1, turn[..., None].expand(-1, -1, vectors.shape[-1]))
        self.usage.copy_(torch.where(is_dead, share, self.usage))
        self.sums.copy_(torch.where(is_dead[..., None], moved * share[..., None], self.sums))


class _Shared(NamedTuple):
    """What the processes add up in one update: views into one tensor, so that one exchange is enough.

    Attributes:
        numbers: One-dimensional, everything below.
        counts: `[levels, codebook_size]`, number of vectors that chose an entry.
        sums: `[levels, codebook_size, dim]`, sum of the vectors that chose an entry.
        spare: `[levels, processes, n, dim]`, vectors for dead entries; each process fills its own part.
        priorities: `[levels, processes, n]`, a random number above 0 for each spare vector that exists.
    """

    numbers: Tensor
    counts: Tensor
    sums: Tensor
    spare: Tensor
    priorities: Tensor

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
        """Fill this process's part with vectors that are drawn at random, without repetition.

        Args:
            vectors: `[levels, n, dim]`.
            is_present: `[levels, n]`, which of them are finite.
        """
        levels, count, dim = vectors.shape
        # Above 0. Each process draws for all, so that one process with all vectors would draw the same.
        priorities = 1 - own_share(torch.rand(count * process_count(), levels, device=vectors.device)).T
        drawn = (priorities * is_present).topk(min(_SPARE_VECTORS, count), dim=1)
        filled = drawn.indices.shape[1]
        self.priorities[:, rank(), :filled] = drawn.values
        self.spare[:, rank(), :filled] = vectors.gather(1, drawn.indices[..., None].expand(-1, -1, dim))

    def spare_vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of highest priority, `[levels, n, dim]`, and which of them exist, `[levels, n]`."""
        best = self.priorities.flatten(1).topk(_SPARE_VECTORS, dim=1)
        index = best.indices[..., None].expand(-1, -1, self.spare.shape[-1])
        return self.spare.flatten(1, 2).gather(1, index), best.values > 0


def _are_finite(vectors: Tensor) -> Tensor:
    """Map `[.., dim]` to `[..]`: True if a vector's squared length is finite, because then sums of vectors are too."""
    return vectors.square().sum(-1).isfinite()


def _read_started(module: nn.Module, _incompatible: object) -> None:
    assert isinstance(module, CodebookLearning)
    module.is_started = int(module.collected_count) < 0


@torch.no_grad()
def kmeans(vectors: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm, started from distinct random vectors.

    A cluster that loses all its vectors restarts from a random one.

    Args:
        vectors: `[n, dim]`.
        clusters: Number of centroids.
        iterations: Number of times that vectors are assigned and centroids are computed.

    Returns:
        Centroids `[clusters, dim]`, and for each vector the index of the nearest one, `[n]`.
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
    """Return the index of the nearest entry: argmin of |c|^2 - 2 x.c, the lowest index on a tie.

    Distances are float32 also under autocast. In bfloat16, training would choose other entries than encoding does.

    Args:
        vectors: `[n, dim]`.
        codebook: `[k, dim]`.
        squared_norms: `[k]`, |c|^2.

    Returns:
        `[n]`, int64.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.addmm(squared_norms, vectors, codebook.T, alpha=-2).argmin(1)
