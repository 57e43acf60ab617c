from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_modules.optimization import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 0, 1.0),
        ({}, 10**9, 1.0),
        ({"warmup_steps": 4}, 0, 0.25),
        ({"warmup_steps": 4}, 2, 0.75),
        ({"warmup_steps": 4}, 3, 1.0),
        ({"warmup_steps": 4}, 50, 1.0),
        ({"schedule": "exponential", "decay": 0.5}, 0, 1.0),
        ({"schedule": "exponential", "decay": 0.5}, 3, 0.125),
        ({"schedule": "exponential", "decay": 0.5, "warmup_steps": 4}, 1, 0.25),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 25, 0.5 + 0.5 * math.sqrt(0.5)),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine"}, 100, 0.0),
        ({"schedule": "cosine"}, 130, 0.0),
    ],
)
def test_learning_rates_of_each_schedule(changes: dict[str, Any], step: int, expected: float) -> None:
    config = OptimizerConfig(learning_rate=3.0, **changes)
    assert learning_rate(config, step, max_steps=100) == pytest.approx(3 * expected, abs=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schedule", "linear", "schedule = 'linear' is not known; allowed: constant, exponential, cosine"),
        ("learning_rate", 0.0, "learning_rate = 0.0 is not possible; allowed: above 0"),
        ("learning_rate", math.nan, "learning_rate = nan is not possible"),
        ("gradient_clip_norm", -1.0, "gradient_clip_norm = -1.0 is not possible; allowed: 0 [(]off[)] or above"),
        ("warmup_steps", -5, "warmup_steps = -5 is not possible; allowed: 0 [(]off[)] or more"),
        ("decay", 1.5, "decay = 1.5 is not possible; allowed: above 0, at most 1"),
        ("decay", 0.0, "decay = 0.0 is not possible"),
    ],
)
def test_impossible_values_are_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(OptimizerConfig(), **{key: value})


def test_a_list_from_yaml_becomes_the_betas() -> None:
    assert OptimizerConfig(betas=[0.8, 0.99]).betas == (0.8, 0.99)  # type: ignore[arg-type]


def test_the_optimizer_is_adam_where_nothing_decays_and_decoupled_otherwise() -> None:
    """AdamW's decay shrinks a weight by rate * decay, on top of Adam's step."""
    moved = {}
    for decay in (0.0, 0.1):
        config = OptimizerConfig(learning_rate=0.01, weight_decay=decay)
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = build_optimizer(config, [weight])
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
        weight.grad = torch.tensor([3.0])
        optimizer.step()
        moved[decay] = weight.item()
    # The first step of Adam is the rate itself.
    assert moved[0.0] == pytest.approx(2 - 0.01)
    assert moved[0.1] == pytest.approx(2 * (1 - 0.01 * 0.1) - 0.01)


def test_every_group_gets_the_rate() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def with_gradients(*values: float) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor([value])
    return parameters


@pytest.mark.parametrize(("limit", "left"), [(1.0, [0.6, -0.8]), (5.5, [3.0, -4.0]), (0.0, [3.0, -4.0])])
def test_clipping_scales_the_whole_gradient_and_reports_it_as_it_was(limit: float, left: list[float]) -> None:
    parameters = with_gradients(3.0, -4.0)
    norm = clip_gradients(iter(parameters), limit)
    assert norm.item() == pytest.approx(5.0)
    assert [parameter.grad.item() for parameter in parameters] == pytest.approx(left, rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_norm_of_a_gradient_that_is_not_finite_is_not_finite(limit: float, value: float) -> None:
    assert not math.isfinite(clip_gradients(with_gradients(1.0, value), limit).item())


def test_frozen_parameters_are_neither_optimized_nor_measured() -> None:
    learning, frozen = with_gradients(3.0, 4.0)
    frozen.requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(), [learning, frozen])
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    assert clip_gradients([learning, frozen], 0.0).item() == pytest.approx(3.0)


def test_a_fused_step_is_the_plain_one_but_for_rounding() -> None:
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(50))
        optimizer = build_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.01, fused=fused), [weight])
        for _ in range(20):
            weight.grad = weight.detach().sin()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=1e-6)


def test_a_fused_step_without_gradients_changes_nothing() -> None:
    """So a skipped update is one."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.1), [weight])
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state
