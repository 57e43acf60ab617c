"""Parity with the official inference code: codes exactly, everything else within 1e-5 of the array's peak."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spectrostream.codec import SpectroStream
from spectrostream.weights import from_official

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ("stereo_m2", "stereo_0", "stereo_m1_encoder", "mono")
DECODED = ("stereo_m2", "stereo_0", "mono")


class Fixture:
    def __init__(self, name: str) -> None:
        self.arrays = dict(np.load(FIXTURES / f"oracle_{name}.npz"))
        self.meta = json.loads(bytes(self.arrays["meta"]).decode())
        params = {key.removeprefix("param/"): value for key, value in self.arrays.items() if key.startswith("param/")}
        self.params = params
        self.codec: SpectroStream = from_official(params)
        self.audio = torch.from_numpy(self.arrays["in/audio"]).T[None]

    def out(self, name: str) -> torch.Tensor:
        """Time last: `[features, time]` or `[channels * 2, frames, bins]`."""
        value = torch.from_numpy(self.arrays[f"out/{name}"])
        return value.permute(2, 0, 1) if value.ndim == 3 else value.reshape(len(value), -1).T


@pytest.fixture(scope="module")
def fixtures() -> dict[str, Fixture]:
    return {name: Fixture(name) for name in NAMES}


def assert_within_peak(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_configuration_is_inferred_from_shapes(fixtures, name):
    config, meta = fixtures[name].codec.config, fixtures[name].meta
    assert config.channels == meta["channels"]
    assert config.encoder_width == meta["encoder_base"]
    assert config.embedding_dim == meta["num_features"]
    assert (config.quantizer.levels, config.quantizer.codebook_size) == (meta["num_quantizers"], meta["num_embeddings"])
    expected = {"stereo_m2": 6, "stereo_0": 0, "stereo_m1_encoder": 7, "mono": "input"}[name]
    assert config.fusion == expected
    if name in DECODED:
        assert config.decoder_width == meta["decoder_base"]
        assert config.split == ("output" if name == "mono" else expected)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_encoder_and_codes(fixtures, name):
    fixture = fixtures[name]
    assert_within_peak(fixture.codec.frontend.analysis(fixture.audio)[0], fixture.out("stft"))
    assert_within_peak(fixture.codec.embed(fixture.audio)[0], fixture.out("embeddings"))
    torch.testing.assert_close(fixture.codec.encode(fixture.audio)[0], fixture.out("codes").long(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODED)
@torch.no_grad()
def test_decoder(fixtures, name):
    fixture = fixtures[name]
    codec, codes = fixture.codec, fixture.out("codes").long()[None]
    dequantized = codec.quantizer.decode(codes)
    assert_within_peak(dequantized[0], fixture.out("dequantized"))
    features = codec.decoder(dequantized)[..., codec.frames_per_token :, :]
    assert_within_peak(features[0], fixture.out("decoder_features"))
    assert_within_peak(codec.frontend.synthesis(features)[0], fixture.out("waveform"))
    # One appended zero embedding: what `decode` gives, here for a whole number of tokens.
    padded = fixture.out("waveform_padded")
    assert_within_peak(codec.decode(codes, length=padded.shape[-1])[0], padded)
    aligned = fixture.out("waveform")
    assert_within_peak(codec.decode(codes, length=padded.shape[-1])[0, :, : aligned.shape[-1]], aligned)
    assert_within_peak(
        codec.decode(codes[:, :3], length=padded.shape[-1])[0, :, : aligned.shape[-1]], fixture.out("waveform_3q")
    )
    unquantized = codec.synthesize(codec.embed(fixture.audio), aligned.shape[-1])
    assert_within_peak(unquantized[0], fixture.out("waveform_unquantized"))


def test_leading_params_is_accepted_and_foreign_paths_are_named(fixtures):
    params = {f"params/{path}": value for path, value in fixtures["mono"].params.items()}
    assert from_official(params).config == fixtures["mono"].codec.config
    with pytest.raises(ValueError, match="decoder/attention"):
        from_official({"decoder/attention/conv/kernel": np.zeros((1, 1, 2, 2))})


def test_an_incomplete_half_is_an_error(fixtures):
    for left_out, ours in (("decoder_3/conv2d_3x3", "blocks.4.convolution"), ("output_convs/conv1x1_last", "skip")):
        params = {path: value for path, value in fixtures["mono"].params.items() if left_out not in path}
        with pytest.raises(ValueError, match=f"incomplete.*{ours}"):
            from_official(params)
