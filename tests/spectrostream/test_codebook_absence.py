"""Vectors that are not finite are absent; dead entries move to vectors of this batch, few in one update."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_quantizer import gaussian, quantizer_of, started
from torch import Tensor

from spectrostream.codebook_learning import _SPARE_VECTORS, CodebookLearning

BAD = (math.nan, math.inf, -math.inf, 1e30)  # the last is finite, but its squared length is not


def spoilt(embeddings: Tensor, rows: list[tuple[int, int]], value: float) -> Tensor:
    """One number of each (example, frame) replaced."""
    embeddings = embeddings.clone()
    for example, frame in rows:
        embeddings[example, 1, frame] = value
    return embeddings


def is_finite(quantizer: torch.nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in quantizer.state_dict().values())


def learning_of_eight(revival_threshold: float) -> tuple[CodebookLearning, Tensor]:
    """Two levels of eight entries in four dimensions, used equally often so far."""
    learning = CodebookLearning(
        (2, 8, 4), decay=0.5, initial_vectors=8, kmeans_iterations=1, revival_threshold=revival_threshold
    )
    codebooks = gaussian(2, 8, 4)
    learning.adopt(codebooks)
    return learning, codebooks


@settings(max_examples=25)
@given(
    value=st.sampled_from(BAD),
    bad=st.sets(st.integers(0, 63), max_size=64),
)
def test_an_update_with_bad_rows_is_the_update_without_them(value, bad):
    indices, residuals = torch.randint(8, (2, 64)), gaussian(2, 64, 4, seed=1)
    good = [row for row in range(64) if row not in bad]
    learning, codebooks = learning_of_eight(revival_threshold=0.0)
    with_bad = residuals.clone()
    with_bad[:, sorted(bad), 2] = value
    learning.update(codebooks, indices, with_bad)
    other, expected = learning_of_eight(revival_threshold=0.0)
    other.update(expected, indices[:, good], residuals[:, good])
    torch.testing.assert_close(codebooks, expected)
    torch.testing.assert_close(learning.usage, other.usage)


@settings(max_examples=25)
@given(value=st.sampled_from(BAD), good=st.sets(st.integers(0, 63), max_size=12))
def test_dead_entries_come_back_at_rows_that_are_present_only(value, good):
    # All rows choose the first entry, so that the seven others are below half of an equal share.
    learning, codebooks = learning_of_eight(revival_threshold=0.5)
    learning.usage.zero_()[:, 0] = 100.0
    residuals = torch.full((2, 64, 4), value)
    residuals[:, sorted(good)] = 10 + gaussian(2, len(good), 4)
    learning.update(codebooks, torch.zeros(2, 64, dtype=torch.int64), residuals)
    assert codebooks.isfinite().all()
    for level in range(2):
        distances = torch.cdist(codebooks[level, 1:], residuals[level, sorted(good)]) < 1e-3
        assert int(distances.any(1).sum()) == min(7, len(good))


@pytest.mark.parametrize("value", BAD)
def test_a_whole_bad_batch_leaves_codebooks_finite_and_where_they_are(value):
    quantizer = started(gaussian(4, 4, 64), revival_threshold=0.5)
    before = quantizer.codebooks.clone()
    for _ in range(5):
        quantizer(torch.full((4, 4, 16), value))
    assert is_finite(quantizer)
    torch.testing.assert_close(quantizer.codebooks, before)
    quantizer(gaussian(4, 4, 16, seed=3))
    assert is_finite(quantizer)


@pytest.mark.parametrize("value", BAD)
def test_bad_rows_are_not_collected_for_the_start(value):
    quantizer = quantizer_of(initial_vectors=40)
    quantizer(spoilt(gaussian(2, 4, 10), [(0, 3), (1, 9)], value))
    assert int(quantizer.learning.collected_count) == 18
    quantizer(torch.full((2, 4, 10), value))
    assert int(quantizer.learning.collected_count) == 18
    for step in range(2):
        quantizer(gaussian(2, 4, 10, seed=1 + step))
    assert quantizer.learning.is_started
    assert is_finite(quantizer)


def dead_learning(size: int) -> tuple[CodebookLearning, Tensor]:
    """One level whose first entry has all the usage."""
    learning = CodebookLearning((1, size, 2), decay=0.9, initial_vectors=1, kmeans_iterations=1, revival_threshold=0.5)
    codebooks = torch.zeros(1, size, 2)
    learning.adopt(codebooks)
    learning.usage.zero_()[:, 0] = 1000.0
    return learning, codebooks


@pytest.mark.parametrize(("size", "rows"), [(4, 100), (64, 100), (64, 5)])
def test_dead_entries_move_to_different_vectors_and_the_rest_wait(size, rows):
    learning, codebooks = dead_learning(size)
    vectors = 1 + gaussian(1, rows, 2).abs()
    learning.update(codebooks, torch.zeros(1, rows, dtype=torch.int64), vectors)
    moved = [tuple(entry) for entry in codebooks[0, 1:].tolist() if entry != [0.0, 0.0]]
    assert len(moved) == min(size - 1, rows, _SPARE_VECTORS)
    assert len(set(moved)) == len(moved)
    near = torch.cdist(torch.tensor(moved), vectors[0], compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    assert near.max() < 1e-5


def test_entries_that_waited_come_back_in_later_updates():
    learning, codebooks = dead_learning(64)
    for step in range(8):
        learning.update(codebooks, torch.zeros(1, 100, dtype=torch.int64), 5 + gaussian(1, 100, 2, seed=step))
    assert (codebooks[0].abs().sum(1) > 1).all()
