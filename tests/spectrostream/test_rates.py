"""Rates and levels: kbps of levels, levels of a rate, levels of each example, the bits that codes cost."""

import math
import re

import numpy as np
import pytest
import torch
from tiny_codec import assert_same_audio, tiny_codec

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig


def released() -> SpectroStream:
    with torch.device("meta"):
        return SpectroStream(SpectroStreamConfig())


def test_rates():
    assert [released().kbps(levels) for levels in (1, 16, 64)] == [0.25, 4, 16]
    assert tiny_codec().kbps(1) == pytest.approx(4 * 25 / 1000)


def test_levels_at_a_rate():
    codec = released()
    rates = {8.0: 32, 16.0: 64, 4.0: 16, 8.1: 32, 8.2499: 32, 8.25: 33, 0.25: 1, 0.4999: 1, 12: 48}
    assert {kbps: codec.levels_at(kbps) for kbps in rates} == rates
    assert [codec.levels_at(codec.kbps(levels)) for levels in range(1, 65)] == [*range(1, 65)]


def test_levels_at_a_rate_whose_levels_have_no_whole_bits():
    quantizer = QuantizerConfig(levels=64, codebook_size=1000, initial_vectors=1000)
    codec = tiny_codec(quantizer=quantizer)
    assert [codec.levels_at(codec.kbps(levels)) for levels in range(1, 65)] == [*range(1, 65)]


@pytest.mark.parametrize("kbps", [0, 0.24, 16.25, -8.0, float("nan"), float("inf")])
def test_a_rate_outside_the_trained_levels_is_refused_with_both_ends(kbps):
    message = f"kbps = {kbps:g} is not possible with this codec; allowed: 0.25..16"
    with pytest.raises(ValueError, match=re.escape(message)):
        released().levels_at(kbps)


def test_a_rate_chooses_the_levels_of_a_call():
    codec, audio = tiny_codec(), torch.randn(1, 2, 4000)
    # 4 bits at 25 tokens/s: 0.1 kbps a level
    for kbps, levels in ((0.1, 1), (0.25, 2), (0.4, 4)):
        assert torch.equal(codec.encode(audio, kbps=kbps), codec.encode(audio, levels=levels))
    with pytest.raises(ValueError, match=r"kbps = 0\.5 is not possible with this codec; allowed: 0\.1\.\.0\.4"):
        codec.encode(audio, kbps=0.5)
    with pytest.raises(ValueError, match=r"levels = 2 and kbps = 0\.2 are both given; give one of them"):
        codec.encode(audio, levels=2, kbps=0.2)


@pytest.mark.slow
def test_levels_of_each_example_are_those_of_each_alone():
    codec, audio, levels = tiny_codec(), torch.randn(4, 2, 4000), [3, 0, 4, 1]
    codes = codec.encode(audio, levels=torch.tensor(levels))
    assert codes.shape == (4, 4, 3)
    decoded = codec.decode(codes, length=4000)
    for index, own in enumerate(levels):
        alone = codec.encode(audio[index : index + 1], levels=own)
        assert torch.equal(codes[index : index + 1, :own], alone)
        assert (codes[index, own:] == -1).all()
        assert codec.bits(codes[index : index + 1]) == codec.bits(alone) == own * 4 * 3
        assert_same_audio(decoded[index : index + 1], codec.decode(alone, length=4000))


def test_codes_have_as_many_levels_as_the_example_with_the_most():
    codes = tiny_codec().encode(torch.randn(2, 2, 100), levels=torch.tensor([1, 2]))
    assert codes.shape == (2, 2, 1)
    assert tiny_codec().encode(torch.randn(2, 2, 100), levels=torch.tensor([0, 0])).shape == (2, 0, 1)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (torch.tensor([1, 5]), "levels = 5 is not possible: this codec was trained with 4; allowed: 0..4"),
        (torch.tensor([-1, 4]), "levels = -1 is not possible: this codec was trained with 4; allowed: 0..4"),
        (torch.tensor([1.0, 2.0]), "levels are torch.float32 [2]; allowed: a number, or int64 [batch]"),
        (torch.tensor([[1, 2]]), "levels are torch.int64 [1, 2]; allowed: a number, or int64 [batch]"),
        (torch.zeros(0, dtype=torch.int64), "levels are torch.int64 [0]; allowed: a number, or int64 [batch]"),
        (torch.tensor([1, 2, 3]), "levels are given for 3 examples; the audio has 2"),
        (torch.tensor([1]), "levels are given for 1 examples; the audio has 2"),
    ],
)
def test_wrong_levels_of_the_examples_are_refused(levels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_codec().encode(torch.zeros(2, 2, 100), levels=levels)


@pytest.mark.parametrize("levels", [2.5, 2.0, math.nan, "2"])
def test_levels_that_are_no_whole_number_are_refused(levels):
    codec = tiny_codec()
    message = re.escape(f"levels = {levels!r} is not a whole number; allowed: 0..4, or int64 [batch]")
    for use in (lambda: codec.encode(torch.zeros(1, 2, 100), levels=levels), lambda: codec.streaming(levels=levels)):
        with pytest.raises(ValueError, match=message):
            use()


def test_whole_numbers_of_another_type_are_levels():
    audio = torch.randn(1, 2, 100)
    assert torch.equal(tiny_codec().encode(audio, levels=np.int64(2)), tiny_codec().encode(audio, levels=2))


def test_fewer_levels_is_a_prefix():
    codec = tiny_codec()
    audio = torch.randn(2, 2, 4000)
    codes = codec.encode(audio)
    for levels in range(5):
        assert torch.equal(codec.encode(audio, levels=levels), codes[:, :levels])


def test_bits_are_those_of_one_example():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(3, 2, 48000), levels=3)
    assert codec.bits(codes) == 3 * 25 * 4
    assert codec.bits(codes) == codec.kbps(3) * 1000


@pytest.mark.parametrize("levels", [5, -1])
def test_levels_that_were_not_trained_are_refused(levels):
    message = rf"levels = {levels} is not possible: this codec was trained with 4; allowed: 0\.\.4"
    with pytest.raises(ValueError, match=message):
        tiny_codec().encode(torch.zeros(1, 2, 100), levels=levels)
