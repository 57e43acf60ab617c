from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lightning_modules.gradient_guard import FORGIVEN_AFTER, KEPT_BATCHES, LEARNING_UPDATES, UpdateGuard
from lightning_modules.optimization import TrainingDivergedError


def guard(folder: Path | None = None, *, explosion_factor: float = 10.0, max_skipped: int = 3) -> UpdateGuard:
    return UpdateGuard(explosion_factor=explosion_factor, max_skipped=max_skipped, folder=folder)


def skip(one: UpdateGuard, step: int = 0) -> None:
    one.skip("the gradient of the generator is not finite", step=step, rank=0, batches=[torch.zeros(1, 2, 4)])


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_a_problem_of_its_side(norm: float) -> None:
    assert (
        guard().problem({"generator": 1.0, "discriminator": norm}) == "the gradient of the discriminator is not finite"
    )


def test_an_explosion_is_measured_against_the_largest_so_far() -> None:
    one = guard()
    for norm in [2.0, *[0.5] * LEARNING_UPDATES]:
        assert one.problem({"generator": norm}) is None
    assert one.problem({"generator": 19.0}) is None
    assert "exploded: its norm is 191, before at most 19" in (one.problem({"generator": 191.0}) or "")
    assert one.problem({"generator": 189.0}) is None


def test_a_discriminator_that_won_for_long_may_learn_again() -> None:
    """The hinge loss of a discriminator that wins has no gradient at all; found in a training of half an hour."""
    one = guard(explosion_factor=100.0)
    for norm in [75.0, *[0.0] * 1000, 74.0]:
        assert one.problem({"discriminator": norm}) is None
    only_zeros = guard(explosion_factor=100.0)
    for norm in [*[0.0] * 1000, 74.0]:
        assert only_zeros.problem({"discriminator": norm}) is None


def test_the_first_updates_are_never_explosions() -> None:
    one = guard()
    assert [one.problem({"generator": 10.0**k}) for k in range(LEARNING_UPDATES)] == [None] * LEARNING_UPDATES


def test_without_a_factor_no_update_is_an_explosion() -> None:
    one = guard(explosion_factor=0)
    assert all(one.problem({"generator": norm}) is None for norm in [1.0] * 50 + [1e30])


def test_too_many_skipped_updates_end_the_run() -> None:
    one = guard(max_skipped=2)
    skip(one)
    skip(one)
    with pytest.raises(TrainingDivergedError, match="not finite at step 9, and 3 updates had to be skipped"):
        skip(one, step=9)


def test_a_run_that_ends_with_skipped_updates_failed() -> None:
    """One may be a spoilt batch; after more the weights are suspect."""
    one = guard()
    one.require_good_end()
    skip(one)
    one.require_good_end()
    skip(one, step=8)
    with pytest.raises(TrainingDivergedError, match="not finite at step 8, and the last 2 updates had to be skipped"):
        one.require_good_end()
    assert one.problem({"generator": 1.0}) is None
    one.require_good_end()


def test_good_updates_reset_the_count_of_skipped_ones() -> None:
    one = guard(max_skipped=1)
    for _ in range(5):
        skip(one)
        for _ in range(FORGIVEN_AFTER):
            assert one.problem({"generator": 1.0}) is None
    assert one.skipped == 5


def test_the_batch_is_kept_with_what_was_wrong(tmp_path: Path) -> None:
    audio = torch.tensor([[[0.5, math.nan]]])
    problem = "the gradient of the discriminator is not finite"
    guard(tmp_path).skip(problem, step=12, rank=1, batches=[audio, torch.ones(1, 1, 2)])
    with safe_open(tmp_path / "step-00000012-rank-1.safetensors", framework="pt") as file:
        assert file.metadata()["problem"] == problem
        assert json.loads(file.metadata()["audio_is_finite"]) == [False, True]
        torch.testing.assert_close(file.get_tensor("batch_0"), audio, rtol=0, atol=0, equal_nan=True)
    (tmp_path / "usual").touch()
    assert (tmp_path / "step-00000012-rank-1.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_folder_does_not_grow_without_end(tmp_path: Path) -> None:
    one = guard(tmp_path, max_skipped=1000)
    for step in range(KEPT_BATCHES + 5):
        skip(one, step)
    assert len(list(tmp_path.iterdir())) == KEPT_BATCHES


def test_a_folder_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = guard(tmp_path)
    (tmp_path / "step-00000000-rank-0.safetensors").mkdir()
    skip(one)
    assert "the batch of step 0 cannot be kept" in caplog.text


@given(st.lists(st.just(math.nan) | st.floats(min_value=0), max_size=200), st.integers(0, 199))
def test_a_restored_guard_decides_as_the_one_that_was_saved(norms: list[float], at: int) -> None:
    one, other = guard(max_skipped=10**6), guard(max_skipped=10**6)
    for index, norm in enumerate(norms):
        if index == at:
            other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for each in (one, other) if index >= at else (one,):
            problem = each.problem({"generator": norm})
            if problem:
                each.skip(problem, step=index, rank=0, batches=[])
    if len(norms) > at:
        assert one.state_dict() == other.state_dict()
