"""Levels of each example, several tokens that share the levels, and the host that never waits for the device."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_quantizer import gaussian, quantizer_of, started
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectrostream.quantizer import ABSENT, trainable_levels

# Levels for each example.


def test_levels_of_each_example_are_those_of_each_alone_and_the_rest_is_absent():
    embeddings, levels = gaussian(5, 4, 6), torch.tensor([2, 0, 3, 1, 3])
    quantizer = started(gaussian(4, 4, 64))
    codes = quantizer.encode(embeddings, levels)
    assert codes.shape == (5, 3, 6)
    for example, own in enumerate(levels.tolist()):
        alone = quantizer.encode(embeddings[example : example + 1], own)
        assert torch.equal(codes[example : example + 1, :own], alone)
        assert (codes[example, own:] == ABSENT).all()
        torch.testing.assert_close(quantizer.decode(codes)[example : example + 1], quantizer.decode(alone))


def test_there_are_as_many_levels_as_the_highest_asked_for():
    quantizer = quantizer_of()
    assert quantizer.encode(gaussian(2, 4, 6), torch.tensor([0, 2])).shape == (2, 2, 6)
    assert quantizer.encode(gaussian(2, 4, 6), torch.tensor([0, 0])).shape == (2, 0, 6)


@settings(max_examples=30)
@given(data=st.data(), token_groups=st.integers(1, 3), levels=st.integers(1, 5))
def test_absent_codes_add_nothing_wherever_they_are(data, token_groups, levels):
    quantizer = quantizer_of(token_groups=token_groups, levels=levels)
    codes = torch.randint(16, (2, levels, 3))
    missing = data.draw(st.lists(st.booleans(), min_size=codes.numel(), max_size=codes.numel()))
    is_absent = torch.tensor(missing).reshape(codes.shape)
    expected = torch.zeros(2, token_groups, 4, 3)
    for level in range(levels):
        entries = quantizer.codebooks[level // token_groups][codes[:, level]].transpose(1, 2)
        expected[:, level % token_groups] += entries * ~is_absent[:, level, None]
    decoded = quantizer.decode(codes.masked_fill(is_absent, ABSENT))
    torch.testing.assert_close(decoded, expected.flatten(1, 2))


# Several tokens that share the levels.


def test_tokens_take_turns_with_the_codebooks_of_their_depth():
    quantizer = quantizer_of(token_groups=2, levels=5)
    assert quantizer.codebooks.shape == (3, 16, 4)
    left, right = gaussian(3, 4, 6), gaussian(3, 4, 6, seed=1)
    alone = quantizer_of(levels=3)
    alone.codebooks.copy_(quantizer.codebooks)
    codes = quantizer.encode(torch.cat((left, right), dim=1), 5)
    assert codes.shape == (3, 5, 6)
    assert torch.equal(codes[:, 0::2], alone.encode(left, 3))
    assert torch.equal(codes[:, 1::2], alone.encode(right, 2))
    decoded = quantizer.decode(codes)
    torch.testing.assert_close(decoded[:, :4], alone.decode(codes[:, 0::2]))
    torch.testing.assert_close(decoded[:, 4:], alone.decode(codes[:, 1::2]))


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_in_training_two_tokens_share_their_examples_draw(levels):
    # every entry is one: each token's quantization is its own number of levels
    quantizer = quantizer_of(1, token_groups=2, levels=levels, codebook_size=2, initial_vectors=2)
    quantizer(torch.zeros(1, 2, 1))
    quantizer.codebooks.fill_(1)
    result = quantizer(torch.zeros(200, 2, 1))
    left, right = result.embeddings.flatten(1).round().long().unbind(1)
    assert set((left + right).tolist()) == set(trainable_levels(levels))
    assert ((left - right == 0) | (left - right == 1)).all()
    assert result.codes.shape == (200, levels, 1)


def test_in_training_two_tokens_are_quantized_as_in_use():
    embeddings = gaussian(16, 8, 3, seed=1)
    quantizer = quantizer_of(token_groups=2, levels=4)
    quantizer(gaussian(4, 8, 64))
    codes = quantizer.encode(embeddings, 4)
    partial = torch.stack([quantizer.decode(codes[:, :n]) for n in range(1, 5)])
    result = quantizer(embeddings)
    assert torch.equal(result.codes, codes)
    is_match = (partial - result.embeddings).abs().amax((2, 3)) < 1e-5
    assert (is_match.sum(0) == 1).all()


def test_bypass_is_drawn_for_all_tokens_of_an_example():
    quantizer = quantizer_of(1, token_groups=2, levels=2, codebook_size=2, initial_vectors=2, bypass_probability=0.5)
    quantizer(torch.zeros(1, 2, 1))
    quantizer.codebooks.fill_(1)
    seen = quantizer(torch.full((2000, 2, 1), 0.25)).embeddings.flatten(1)
    is_bypassed = seen[:, 0] == 0.25
    assert 0.45 < is_bypassed.float().mean() < 0.55
    assert (seen[is_bypassed] == 0.25).all()
    assert not (seen[~is_bypassed] == 0.25).any()


def test_both_tokens_teach_the_codebooks_and_receive_gradients():
    quantizer = quantizer_of(token_groups=2, levels=4)
    embeddings = gaussian(4, 8, 16)
    quantizer(embeddings)
    usage = quantizer.learning.usage.sum(1)
    torch.testing.assert_close(usage, torch.full((2,), 128.0))  # 4 examples x 2 tokens x 16 frames
    embeddings, direction = gaussian(8, 8, 3, seed=1).requires_grad_(), gaussian(8, 8, 3, seed=2)
    (quantizer(embeddings).embeddings * direction).sum().backward()
    torch.testing.assert_close(embeddings.grad, direction)


# The host never waits for the device, level by level.

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "_unique2", "equal", "is_nonzero"}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}  # a mask's positions have to be counted


class Waits(TorchDispatchMode):
    """Counts the operations whose result or whose shape the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in WAITS or (name in BY_INDEX and any(is_mask(index) for index in args[1]))
        return func(*args, **(kwargs or {}))


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def waits_of(run: Callable[[], object]) -> int:
    with Waits() as waits:
        run()
    return waits.count


def test_waiting_is_noticed():
    x = torch.tensor([1.0, 2.0])
    for waiting in (
        lambda: x[0].item(),
        lambda: int(x.max()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: bool(x[0]),
    ):
        assert waits_of(waiting) >= 1
    assert waits_of(lambda: x[torch.tensor([1])].where(x > 1, 0.0)) == 0


@pytest.mark.parametrize("token_groups", [1, 2])
def test_a_training_step_after_the_start_never_waits(token_groups):
    quantizer = quantizer_of(token_groups=token_groups, levels=6, bypass_probability=0.5, revival_threshold=0.5)
    embeddings = gaussian(4, 4 * token_groups, 16).requires_grad_()
    quantizer(embeddings)
    assert quantizer.learning.is_started

    def step() -> None:
        result = quantizer(embeddings)
        (result.embeddings.sum() + result.commitment_loss).backward()

    assert waits_of(step) == 0


@pytest.mark.parametrize("token_groups", [1, 2])
def test_coding_waits_equally_often_for_few_and_for_many_levels(token_groups):
    quantizer = quantizer_of(token_groups=token_groups, levels=32)
    embeddings = gaussian(3, 4 * token_groups, 5)
    codes = quantizer.encode(embeddings, 32)
    for levels in (1, 2, 32):
        assert waits_of(lambda: quantizer.encode(embeddings, levels)) == 0  # noqa: B023 called at once
        assert waits_of(lambda: quantizer.decode(codes[:, :levels])) == 0  # noqa: B023
        own = torch.tensor([levels, 0, 1])
        assert waits_of(lambda: quantizer.encode(embeddings, own)) == 1  # noqa: B023 how many there are at most
