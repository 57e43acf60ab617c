"""The whole codec over each front-end: lengths, streams, and what depends on what, measured against what it says."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.frontends import FRONT_ENDS

TOKEN = 1920
# The periodic Hann window is zero at its first sample: a frame reads that sample, and nothing depends on it.
ZERO_WEIGHT = {"stft": 1, "power_stft": 1, "mdct": 0, "waveform": 0}


@cache
def tiny_codec(name: str) -> SpectroStream:
    torch.manual_seed(0)
    config = SpectroStreamConfig(
        frontend=name,
        encoder_width=2,
        decoder_width=2,
        embedding_dim=6,
        quantizer=QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16),
    )
    return SpectroStream(config).eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def reached(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[int, int]:
    """First and last position on x's last axis that the function's value depends on, by its gradient."""
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, noise(*y.shape))
    positions = gradient.abs().sum((0, 1)).nonzero().flatten()
    return int(positions.min()), int(positions.max())


@pytest.mark.slow
@settings(max_examples=24)
@given(name=st.sampled_from([*FRONT_ENDS]), samples=st.integers(1, 6000), batch=st.integers(1, 2))
def test_lengths(name, samples, batch):
    codec = tiny_codec(name)
    codes = codec.encode(noise(batch, 2, samples))
    assert codes.shape == (batch, 4, -(-samples // TOKEN))
    decoded = codec.decode(codes, length=samples)
    assert decoded.shape == (batch, 2, samples)
    assert decoded.isfinite().all()


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_stream_gives_what_the_whole_gives(name):
    codec, audio = tiny_codec(name), noise(1, 2, 9000)
    codes = codec.encode(audio)
    with codec.streaming() as stream:
        pieces = [stream.encode(piece) for piece in audio.split([700, 1920, 2500, 3880], dim=-1)]
        assert torch.equal(torch.cat([*pieces, stream.finish_encoding()], dim=-1), codes)
        pieces = [stream.decode(piece) for piece in codes.split(2, dim=-1)]
        streamed = torch.cat([*pieces, stream.finish_decoding(length=9000)], dim=-1)
    whole = codec.decode(codes, length=9000)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_the_delay_of_a_stream_is_the_latency_that_it_reports(name):
    codec, block = tiny_codec(name), 4
    # quantization has no gradient and no memory: embeddings stand for codes
    _, last = reached(
        lambda x: codec.synthesize(codec.embed(x), 9 * TOKEN)[..., TOKEN * block : TOKEN * (block + 1)],
        noise(1, 2, 9 * TOKEN),
    )
    assert (last // TOKEN - block) * TOKEN == codec.latency_samples == (1920 if name == "waveform" else 3840)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_token_depends_on_the_samples_of_its_span(name):
    codec, token = tiny_codec(name), 15
    first, last = codec.token_span(token)
    assert last == TOKEN * (token + 1) - 1 + codec.frontend.look_ahead
    measured = reached(lambda x: codec.embed(x)[..., token], noise(1, 2, 18 * TOKEN))
    assert measured == (first + ZERO_WEIGHT[name], last)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_an_output_block_depends_on_the_tokens_of_its_span(name):
    codec, block = tiny_codec(name), 15
    measured = reached(
        lambda x: codec.synthesize(x, 18 * TOKEN)[..., TOKEN * block : TOKEN * (block + 1)], noise(1, 6, 18)
    )
    assert measured == codec.block_span(block)
    assert measured[1] == block + 1


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_gradient_reaches_every_weight_through_the_front_end(name):
    codec = tiny_codec(name)
    weights = [*codec.encoder.parameters(), *codec.decoder.parameters()]
    with torch.enable_grad():
        for weight in weights:
            weight.requires_grad_()
        audio = 0.1 * noise(1, 2, 2 * TOKEN)
        error = (codec.synthesize(codec.embed(audio), 2 * TOKEN) - audio).square().sum()
        gradients = torch.autograd.grad(error, weights)
    codec.requires_grad_(False)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
