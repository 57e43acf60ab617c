"""Matched widths: costs against the whole codec's and the official numbers, known answers, and what cannot be."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.metrics.cost import count_parameters, macs_per_second
from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.frontends import FRONT_ENDS
from spectrostream.width_matching import (
    HalfMatch,
    MatchError,
    encoder_and_decoder_macs,
    encoder_and_decoder_parameters,
    matched_widths,
)

RELEASED = SpectroStreamConfig()
OTHERS = {
    "waveform": {"frontend": "waveform"},
    "mdct": {"frontend": "mdct"},
    "fused at the input": {"fusion": "input", "split": "output"},
    "never fused": {"fusion": "never", "split": "never"},
    "mono": {"channels": 1},
    "pairs": {"channels": 4, "channel_groups": [[0, 1], [2, 3]]},
}
SMALL = SpectroStreamConfig(
    encoder_width=6,
    decoder_width=8,
    embedding_dim=16,
    quantizer=QuantizerConfig(levels=2, codebook_size=4, initial_vectors=4),
)


def test_costs_of_the_released_layout():
    assert encoder_and_decoder_parameters(RELEASED) == (9_251_904, 35_684_546)
    encoder, decoder = encoder_and_decoder_macs(RELEASED)
    # of the official implementation: 12.07 and 47.66 G
    assert encoder == pytest.approx(12.07e9, rel=0.001)
    assert decoder == pytest.approx(47.66e9, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_costs_are_those_of_the_whole_codec_when_it_runs(changes):
    config = dataclasses.replace(SMALL, **changes)
    codec = SpectroStream(config)
    assert sum(encoder_and_decoder_parameters(config)) == count_parameters(codec).parameters
    encoder, decoder = encoder_and_decoder_macs(config)
    # a decoded second has one token more than its 25, and the quantizer compares each token with 4 entries a level
    counted = macs_per_second(codec)
    assert encoder + decoder < counted
    assert counted == pytest.approx(encoder + decoder * 26 / 25, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "by"), [*((name, "parameters") for name in OTHERS), ("waveform", "macs"), ("pairs", "macs")]
)
def test_no_other_width_is_nearer(name, by):
    variant = SpectroStreamConfig(**OTHERS[name])
    match = matched_widths(variant, RELEASED, by)
    widths = {"encoder_width": match.encoder.width, "decoder_width": match.decoder.width}
    assert match.config == dataclasses.replace(variant, **widths)
    cost = encoder_and_decoder_macs if by == "macs" else encoder_and_decoder_parameters
    assert cost(match.config) == (match.encoder.cost, match.decoder.cost)
    assert cost(RELEASED) == (match.encoder.reference, match.decoder.reference)
    for step in (-1, 1):
        beside = cost(dataclasses.replace(match.config, **{key: width + step for key, width in widths.items()}))
        for half, other in zip((match.encoder, match.decoder), beside, strict=True):
            assert (half.cost - other) * step < 0
            assert abs(half.cost - half.reference) <= abs(other - half.reference)
            assert abs(half.excess) < 0.03


@pytest.mark.slow
@settings(max_examples=25)
@given(
    encoder=st.integers(1, 40), decoder=st.integers(1, 70), start=st.integers(1, 90),
    frontend=st.sampled_from([*FRONT_ENDS]),
)  # fmt: skip
def test_a_codec_finds_its_own_widths_again(encoder, decoder, start, frontend):
    config = SpectroStreamConfig(frontend=frontend, encoder_width=encoder, decoder_width=decoder)
    variant = dataclasses.replace(config, encoder_width=start, decoder_width=start)
    match = matched_widths(variant, config, "parameters")
    assert match.config == config
    assert match.encoder.excess == match.decoder.excess == 0


@pytest.mark.slow
def test_only_the_widths_change_and_each_half_is_matched_to_its_own():
    variant = dataclasses.replace(SMALL, frontend="waveform", encoder_width=30)
    reference = dataclasses.replace(SMALL, encoder_width=64, decoder_width=16)
    match = matched_widths(variant, reference)
    assert match.by == "macs"
    assert dataclasses.replace(match.config, encoder_width=30, decoder_width=8) == variant
    # the waveform stack of one width costs about half: both halves grow, each from its own reference
    assert 80 < match.encoder.width < 100
    assert 20 < match.decoder.width < 26


def test_excess_is_a_fraction_of_the_reference():
    assert HalfMatch(width=3, cost=110, reference=100).excess == pytest.approx(0.1)
    assert HalfMatch(width=3, cost=75, reference=100).excess == pytest.approx(-0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half", "reference"),
    [("encoder", {"encoder_width": 2, "decoder_width": 64}), ("decoder", {"encoder_width": 64, "decoder_width": 2})],
)
def test_a_match_out_of_reach_is_refused_with_how_near_it_comes(half, reference):
    variant = SpectroStreamConfig(frontend="waveform")
    with pytest.raises(MatchError) as caught:
        matched_widths(variant, SpectroStreamConfig(**reference), tolerance=0.01)
    assert re.search(
        rf"^match = 'macs': the nearest model\.{half}_width, \d, makes the {half} cost [\d,]+ multiply-accumulates per "
        rf"second, [+-]\d+% of the reference's [\d,]+; allowed: 1% either way\. .* a larger model\.{half}_width",
        str(caught.value),
    )
    assert matched_widths(variant, SpectroStreamConfig(**reference), tolerance=1.0).config.frontend == "waveform"


def test_a_reference_below_the_narrowest_codec_is_refused():
    wide = dataclasses.replace(SMALL, channels=12, channel_groups=[list(range(12))])
    with pytest.raises(
        MatchError, match=r"match = 'parameters': the nearest model.encoder_width, 1, makes the encoder"
    ):
        matched_widths(wide, dataclasses.replace(SMALL, encoder_width=1, decoder_width=1), "parameters")


def test_another_word_is_refused():
    with pytest.raises(MatchError, match=r"match = 'flops' is not known; allowed: macs, parameters"):
        matched_widths(SMALL, SMALL, "flops")
