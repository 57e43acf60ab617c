"""Two processes that see different data agree on every codebook, and on those of one process that sees all of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer

WORLD, STEPS, BATCH, DIM, FRAMES = 2, 23, 6, 3, 8
# Without revival nothing is random after the start; with it, rank 0's picks count.
REVIVAL = {"plain": 0.0, "two tokens": 0.0, "revival": 0.3}
TOKEN_GROUPS = {"plain": 1, "two tokens": 2, "revival": 1}

pytestmark = pytest.mark.slow


def global_batch(scenario: str, step: int) -> Tensor:
    """Embeddings `[BATCH, DIM * tokens, FRAMES]` of all processes; "revival" makes them collapse to a few points."""
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(BATCH, DIM * TOKEN_GROUPS[scenario], FRAMES, generator=generator)
    # the halves, one for each rank, differ in distribution too
    data[BATCH // 2 :] += 3
    return data.round() * 0.2 + 5 if scenario == "revival" and step > 5 else data


def learnt(scenario: str, rank: int, world: int, *, revival_threshold: float | None = None) -> dict[str, Tensor]:
    """The quantizer's state after the start (in the third step) and 20 updates on this rank's part of each batch."""
    torch.manual_seed(10 + rank)
    config = QuantizerConfig(
        levels=3,
        codebook_size=16,
        initial_vectors=TOKEN_GROUPS[scenario] * (2 * BATCH * FRAMES + 10),
        decay=0.8,
        revival_threshold=REVIVAL[scenario] if revival_threshold is None else revival_threshold,
    )
    quantizer = ResidualVectorQuantizer(config, DIM, TOKEN_GROUPS[scenario])
    share = BATCH // world
    for step in range(STEPS):
        quantizer(global_batch(scenario, step)[share * rank : share * (rank + 1)])
    assert quantizer.learning.is_started
    return quantizer.state_dict()


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    torch.save({scenario: learnt(scenario, rank, WORLD) for scenario in REVIVAL}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """Each rank's quantizer states by scenario, from two real processes."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(run_rank, args=(folder,), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("scenario", REVIVAL)
def test_codebooks_and_statistics_are_identical_on_every_rank(ranks, scenario):
    first, second = (rank[scenario] for rank in ranks)
    for name in ("codebooks", "learning.usage", "learning.sums", "learning.collected", "learning.collected_count"):
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("scenario", ["plain", "two tokens"])
def test_they_are_those_of_one_process_with_the_whole_batch(ranks, scenario):
    alone = learnt(scenario, 0, 1)
    for name in ("codebooks", "learning.usage", "learning.sums"):
        torch.testing.assert_close(ranks[0][scenario][name], alone[name], rtol=0, atol=1e-5)


def test_a_rank_alone_would_have_learnt_something_else(ranks):
    # so agreement is not for want of difference
    alone = learnt("plain", 1, WORLD)  # half of each batch and no process group: nothing is gathered or summed
    assert (ranks[1]["plain"]["codebooks"] - alone["codebooks"]).abs().max() > 0.1


def lowest_share(state: dict[str, Tensor]) -> float:
    """The lowest usage of an entry, in equal shares of its level."""
    usage = state["learning.usage"]
    return (usage / usage.mean(1, keepdim=True)).min().item()


def test_revival_took_place(ranks):
    # the input has left most entries behind: without revival they die
    assert lowest_share(learnt("revival", 0, 1, revival_threshold=0.0)) < 0.05
    assert lowest_share(ranks[0]["revival"]) > 0.15
