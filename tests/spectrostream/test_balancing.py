from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrostream.adversarial.loss_balancer import LossBalancer


def output(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()


def losses(x: torch.Tensor, sizes: dict[str, float]) -> dict[str, torch.Tensor]:
    """Of gradients that differ by direction, and in size by what is given."""
    return {name: size * (x * (index + 1)).sin().mean() for index, (name, size) in enumerate(sizes.items())}


@given(st.floats(1e-4, 1e4), st.floats(1e-4, 1e4), st.floats(0.1, 10), st.floats(0.1, 10))
def test_shares_are_the_weights_whatever_the_sizes(first: float, second: float, weight: float, other: float) -> None:
    x = output()
    one = losses(x, {"a": first, "b": second})
    found = LossBalancer({"a": weight, "b": other})(one, x)
    expected = torch.zeros_like(x)
    for name, share in (("a", weight), ("b", other)):
        (gradient,) = torch.autograd.grad(one[name], x, retain_graph=True)
        expected += share / (weight + other) * gradient / gradient.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_larger_than_usual_pulls_more_and_the_usual_follows() -> None:
    """The average of sizes 1 and 3 with decay 1/2 is (0.5 * 1 + 3) / (0.5 + 1)."""
    balancer = LossBalancer({"a": 1.0}, decay=0.5)
    x = output()
    (unit,) = torch.autograd.grad(losses(x, {"a": 1.0})["a"], x)
    size = unit.flatten(1).norm(dim=1).mean()
    balancer(losses(x, {"a": 1.0}), x)
    found = balancer(losses(x, {"a": 3.0}), x)
    torch.testing.assert_close(found, 3 * unit / (size * (0.5 + 3) / 1.5))


def test_losses_of_weight_zero_and_absent_ones_are_left_out() -> None:
    balancer = LossBalancer({"a": 1.0, "b": 0.0, "c": 5.0})
    x = output()
    found = balancer(losses(x, {"a": 2.0, "b": 7.0}), x)
    alone = LossBalancer({"a": 1.0})(losses(x, {"a": 2.0}), x)
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_spoilt_batch_does_not_spoil_the_next(bad: float) -> None:
    x = output()
    balancer, undisturbed = LossBalancer({"a": 1.0}), LossBalancer({"a": 1.0})
    balancer(losses(x, {"a": bad}), x)
    torch.testing.assert_close(balancer(losses(x, {"a": 2.0}), x), undisturbed(losses(x, {"a": 2.0}), x))


def test_a_loss_that_does_not_move_gives_no_gradient_and_no_nan() -> None:
    x = output()
    assert LossBalancer({"a": 1.0})({"a": (x * 0).sum()}, x).abs().max() == 0


def test_a_restored_balancer_goes_on() -> None:
    x = output()
    one, other = LossBalancer({"a": 1.0, "b": 2.0}), LossBalancer({"a": 1.0, "b": 2.0})
    one(losses(x, {"a": 4.0, "b": 1.0}), x)
    other.load_state_dict(one.state_dict())
    later = losses(x, {"a": 1.0, "b": 3.0})
    assert torch.equal(one(later, x), other(later, x))
