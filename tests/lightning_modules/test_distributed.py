from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fit_process import shared_batches
from process_start import start
from torch import nn
from training_setup import LIGHTNING_WARNINGS, is_same, load

from lightning_modules.gradient_averaging import BUCKET_ELEMENTS, GradientAverage, _buckets

pytestmark = [pytest.mark.processes, *(pytest.mark.filterwarnings(warning) for warning in LIGHTNING_WARNINGS)]


def test_the_first_losses_do_not_depend_on_how_many_processes_share_a_batch(tmp_path: Path) -> None:
    """Draws, k-means, revival, commitment loss and codebooks included: the mean of two processes' losses is one's."""
    ended = start("share", tmp_path / "run", "10")
    assert ended.returncode == 0, ended.stderr[-4000:]
    of_two = torch.stack([load(tmp_path / f"rank-{rank}.pt")["losses"] for rank in (0, 1)])
    assert not is_same(of_two[0], of_two[1])
    _, losses = shared_batches(tmp_path / "alone", processes=1, max_steps=10)
    torch.testing.assert_close(of_two.mean(0), torch.tensor(losses.rows), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_processes_agree_bit_for_bit_after_a_hundred_updates(tmp_path: Path) -> None:
    """Codebooks, their statistics, both sides' weights: nothing is sent again that would hide a difference."""
    ended = start("share", tmp_path / "run", "100")
    assert ended.returncode == 0, ended.stderr[-4000:]
    first, second = (dict(load(tmp_path / f"rank-{rank}.pt")["state"]) for rank in (0, 1))
    assert int(first["codec.quantizer.learning.collected_count"]) == -1
    assert is_same(first, second)


def test_a_parameter_without_gradient_takes_part_with_zeros() -> None:
    with_gradient, without, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    with_gradient.grad = torch.full((2,), 3.0)
    frozen.requires_grad_(False)
    GradientAverage([with_gradient, without, frozen]).finish()
    assert with_gradient.grad.tolist() == [3.0, 3.0]
    assert without.grad is not None
    assert without.grad.tolist() == [0.0, 0.0]
    assert frozen.grad is None


@pytest.mark.parametrize("sizes", [[], [1], [BUCKET_ELEMENTS + 1], [BUCKET_ELEMENTS, 1, 2], [1, BUCKET_ELEMENTS, 1]])
def test_gradients_are_averaged_in_order_in_few_messages(sizes: list[int]) -> None:
    gradients = [torch.empty(1).expand(size) for size in sizes]
    buckets = list(_buckets(gradients))
    assert [tensor.numel() for bucket in buckets for tensor in bucket] == sizes
    assert all(len(bucket) == 1 or sum(t.numel() for t in bucket) <= BUCKET_ELEMENTS for bucket in buckets)
    assert len(buckets) <= 1 + sum(sizes) // (BUCKET_ELEMENTS // 2)
