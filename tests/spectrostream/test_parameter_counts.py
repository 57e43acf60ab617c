"""How many parameters the released widths have, for every fusion and split: those of the official model, and ours."""

import pytest
import torch
from tiny_codec import FUSIONS, SPLITS

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig

# SPEC.md: parameters of the released layout by fusion and split point. The official code builds neither decoder 7 nor
# "never"; those counts are ours, worked out below.
ENCODER_PARAMETERS = {
    0: 6_614_560, 1: 6_732_480, 2: 6_814_208, 3: 7_236_416, 4: 7_236_416, 5: 7_498_176, 6: 9_251_904, 7: 9_055_296,
    "input": 6_567_552,
    # The encoder of one channel: nothing is joined, so nothing is wider.
    "never": 6_564_416,
}  # fmt: skip
DECODER_PARAMETERS = {
    0: 25_135_362, 1: 25_606_850, 2: 25_950_658, 3: 27_622_594, 4: 27_688_386, 5: 28_736_194, 6: 35_684_546,
    # Mono's 24,934,594, with a bottleneck that puts out 1024: 3x3 512->1024 (as many as its two 3x3 512->512 together,
    # 4,719,616), plus 3x3 1024->1024 (1024 * 1024 * 9 + 1024), 1x1 512->1024 (512 * 1024 + 1024), and in the next block
    # the quirk's 1x1 512->512 (512 * 512 + 512).
    7: 35_160_770,
    "output": 24_940_868,
    # Mono's with 5120 columns instead of 2560: from the 256 of the token and from the hidden 2560, each with 2560 more.
    "never": 24_934_594 + (256 + 1) * 2560 + (2560 + 1) * 2560,
}  # fmt: skip


def released_size(**changes: object) -> SpectroStream:
    """At the released widths, without memory for the weights."""
    quantizer = QuantizerConfig(levels=1, codebook_size=2, initial_vectors=2)
    with torch.device("meta"):
        return SpectroStream(SpectroStreamConfig(**{"quantizer": quantizer} | changes))


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_encoder_parameters_of_the_released_widths(fusion):
    assert parameter_count(released_size(fusion=fusion).encoder) == ENCODER_PARAMETERS[fusion]


@pytest.mark.parametrize("split", SPLITS)
def test_decoder_parameters_of_the_released_widths(split):
    assert parameter_count(released_size(split=split).decoder) == DECODER_PARAMETERS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_decoder_parameters_where_each_channel_has_its_token(split):
    # Twice 256 in: 256 * 2560 more in both of the projection's first layers; with its own decoder each channel is mono.
    wider = {"never": 24_934_594 - DECODER_PARAMETERS["never"]}.get(split, 2 * 256 * 2560)
    codec = released_size(fusion="never", split=split)
    assert parameter_count(codec.decoder) == DECODER_PARAMETERS[split] + wider


def test_parameters_of_mono():
    for position in (0, 6, "never"):
        mono = released_size(channels=1, fusion=position, split=position)
        assert parameter_count(mono.encoder) == 6_564_416
        assert parameter_count(mono.decoder) == 24_934_594


def test_fusion_and_split_are_independent():
    for fusion, split in ((1, 5), (5, 1), ("input", 6), (6, "output"), ("input", "never")):
        codec = released_size(fusion=fusion, split=split)
        assert parameter_count(codec.encoder) == ENCODER_PARAMETERS[fusion]
        assert parameter_count(codec.decoder) == DECODER_PARAMETERS[split]


def test_codebooks_of_the_released_model():
    with torch.device("meta"):
        codec = SpectroStream(SpectroStreamConfig())
    assert codec.codebook_parameters == 16_777_216
    assert (codec.levels, codec.codebook_size, codec.channels, codec.sample_rate) == (64, 1024, 2, 48000)
