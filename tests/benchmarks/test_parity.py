import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parity import (
    UNIT_ROUNDOFF,
    ShapeDisagreementError,
    compare_arrays,
    compare_codes,
    gap_to_bound,
)

TOKENS, LEVELS, ENTRIES, DIM = 30, 6, 64, 16


def quantized(embeddings, codebooks, dtype):
    codes = np.empty((len(embeddings), len(codebooks)), np.int64)
    residual = embeddings.astype(dtype)
    for level, codebook in enumerate(codebooks.astype(dtype)):
        distances = np.square(codebook).sum(1) - 2 * residual @ codebook.T
        codes[:, level] = distances.argmin(1)
        residual = residual - codebook[codes[:, level]]
    return codes


def drawn(seed):
    generator = np.random.default_rng(seed)
    codebooks = generator.standard_normal((LEVELS, ENTRIES, DIM)) * 0.8 ** np.arange(LEVELS)[:, None, None]
    return generator.standard_normal((TOKENS, DIM)).astype(np.float32), codebooks.astype(np.float32)


def compared(actual, expected, embeddings, codebooks, error=0.0):
    return compare_codes(
        "codes",
        actual,
        expected,
        embeddings=embeddings,
        embedding_error=np.full(len(embeddings), error),
        codebooks=codebooks,
    )


def test_errors_are_relative_to_the_expected_peak():
    expected = np.array([[1.0, -4.0], [2.0, 0.0]], np.float32)
    actual = expected.copy()
    actual[1, 1] = 0.5
    parity = compare_arrays("x", actual, expected, limit=0.125)
    assert parity.max_error == 0.125
    assert parity.rms_error == 0.0625
    assert parity.passes
    assert not compare_arrays("x", actual, expected, limit=0.124).passes
    assert compare_arrays("x", expected, expected, limit=0.0).passes
    assert "1.2e-01" in parity.cells()[1]


def test_silence_is_compared_absolutely_and_nan_never_passes():
    silence = np.zeros(4, np.float32)
    assert compare_arrays("x", silence + 0.25, silence, limit=1).max_error == 0.25
    assert not compare_arrays("x", np.full(4, np.nan), np.ones(4), limit=1e9).passes
    assert not compare_arrays("x", np.ones(4), np.full(4, np.nan), limit=1e9).passes


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_shapes_must_agree(a, b, c, d):
    if (a, b) == (c, d):
        assert compare_arrays("x", np.ones((a, b)), np.ones((c, d)), 0).passes
        return
    with pytest.raises(ShapeDisagreementError, match="x: ours is"):
        compare_arrays("x", np.ones((a, b)), np.ones((c, d)), 0)
    with pytest.raises(ShapeDisagreementError):
        compared(np.zeros((a, b), int), np.zeros((c, d), int), np.zeros((c, 3)), np.zeros((d, 2, 3)))


def test_the_gap_equals_a_hand_computed_value():
    # x = 1, candidates 0 and 2: D(0) = 0, D(2) = 4 - 4 = 0. At 1 + t: D(2) = -4t.
    assert gap_to_bound(np.array([1.0]), np.array([[0.0], [2.0]]), 0.0) == 0
    rounding = 4 * math.sqrt(1) * UNIT_ROUNDOFF * (4 + 2 * 1.001 * 2)
    assert gap_to_bound(np.array([1.001]), np.array([[0.0], [2.0]]), 0.0) == pytest.approx(0.004 / rounding)
    # An error e of x moves the gap by 2 e |c1 - c2| = 4 e, so e = 0.001 explains it.
    explained = gap_to_bound(np.array([1.001]), np.array([[0.0], [2.0]]), 0.001)
    assert 0.99 < explained < 1


@given(st.integers(0, 10_000))
def test_rounding_in_another_order_is_at_most_a_tie(seed):
    embeddings, codebooks = drawn(seed)
    exact, rounded = quantized(embeddings, codebooks, np.float64), quantized(embeddings, codebooks, np.float32)
    assert compared(rounded, exact, embeddings, codebooks).passes


@given(st.integers(0, 10_000), st.integers(0, TOKENS - 1), st.integers(0, LEVELS - 1), st.integers(1, ENTRIES - 1))
def test_another_entry_is_a_split(seed, token, level, shift):
    embeddings, codebooks = drawn(seed)
    codes = quantized(embeddings, codebooks, np.float64)
    changed = codes.copy()
    changed[token, level] = (changed[token, level] + shift) % ENTRIES
    parity = compared(changed, codes, embeddings, codebooks)
    assert (parity.splits, parity.ties, parity.equal) == (1, 0, codes.size - 1)
    assert parity.gap_to_bound > 1
    assert not parity.passes


def test_only_the_first_disagreement_of_a_token_counts():
    embeddings, codebooks = drawn(0)
    codebooks[2, 7] = codebooks[2, 9]  # the same entry twice: a perfect tie
    codes = quantized(embeddings, codebooks, np.float64)
    codes[4, 2] = 7
    changed = codes.copy()
    changed[4, 2] = 9
    changed[4, 3:] = (changed[4, 3:] + 1) % ENTRIES
    parity = compared(changed, codes, embeddings, codebooks)
    assert (parity.ties, parity.splits, parity.gap_to_bound) == (1, 0, 0.0)
    assert parity.equal == codes.size - (LEVELS - 2)
    assert parity.passes
    assert "1 ties, 0 not" in parity.cells()[1]


def test_other_embeddings_explain_other_codes():
    embeddings, codebooks = drawn(3)
    moved = embeddings + np.float32(0.02) * np.random.default_rng(4).standard_normal(embeddings.shape).astype(
        np.float32
    )
    expected, actual = quantized(embeddings, codebooks, np.float64), quantized(moved, codebooks, np.float64)
    assert (expected != actual).any()
    assert not compared(actual, expected, embeddings, codebooks).passes
    assert compared(actual, expected, embeddings, codebooks, error=0.3).passes
