import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reports.codebook_usage import FEWEST_TOKENS, codebook_usage


def test_evenly_used_entries_carry_every_bit() -> None:
    usage = codebook_usage(torch.arange(16).repeat(2, 400), 16)
    assert usage.tokens == 6400
    assert [level.used_entries for level in usage.levels] == [16, 16]
    assert [level.entropy.value for level in usage.levels] == pytest.approx([4, 4])  # corrected, but never above log2 K
    assert usage.levels[0].perplexity.value == pytest.approx(16)
    assert usage.bitrate_efficiency.value == pytest.approx(1)


def test_half_the_entries_carry_one_bit_less() -> None:
    level = torch.arange(8).repeat(800)
    usage = codebook_usage(torch.stack([level, torch.zeros_like(level)]), 16)
    correction = 7 / (2 * 6400 * math.log(2))  # Miller-Madow, in bits
    assert usage.levels[0].entropy.value == pytest.approx(3 + correction)
    assert usage.levels[1].used_entries == 1
    assert usage.levels[1].entropy.value == 0
    assert usage.levels[1].perplexity.value == 1
    assert usage.bitrate_efficiency.value == pytest.approx((3 + correction) / 8)


def test_the_correction_removes_most_of_the_bias() -> None:
    codes = torch.randint(0, 1024, (1, 6000))
    plain = torch.bincount(codes[0]).double() / 6000
    plain_entropy = float(-(plain[plain > 0] * plain[plain > 0].log2()).sum())
    assert abs(codebook_usage(codes, 1024).levels[0].entropy.value - 10) < 0.2 * abs(plain_entropy - 10)


def test_few_tokens_are_refused_but_counted() -> None:
    usage = codebook_usage(torch.zeros(3, FEWEST_TOKENS - 1, dtype=torch.int64), 8)
    for score in (usage.levels[0].entropy, usage.levels[0].perplexity, usage.bitrate_efficiency):
        assert math.isnan(score.value)
        assert score.reason == "4999 tokens; at least 5000 are needed"
    assert usage.levels[0].used_entries == 1
    assert not codebook_usage(torch.zeros(1, FEWEST_TOKENS, dtype=torch.int64), 8).bitrate_efficiency.reason


@given(batch=st.integers(1, 4), levels=st.integers(1, 3), seed=st.integers(0, 99))
def test_leading_axes_are_only_more_tokens(batch: int, levels: int, seed: int) -> None:
    codes = torch.randint(0, 32, (batch, levels, 1300), generator=torch.Generator().manual_seed(seed))
    assert repr(codebook_usage(codes, 32)) == repr(codebook_usage(torch.cat(list(codes), dim=-1), 32))


@pytest.mark.parametrize(
    ("codes", "complaint"),
    [
        (torch.zeros(2, 6000), "int64"),
        (torch.zeros(6000, dtype=torch.int64), "int64"),
        (torch.full((1, 6000), 8), r"codes lie in \[0, 8\); given 8 .. 8"),
        (torch.full((1, 6000), -1), r"given -1 .. -1"),
    ],
)
def test_codes_of_another_kind_are_refused(codes: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        codebook_usage(codes, 8)
