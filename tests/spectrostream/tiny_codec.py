"""The smallest codecs that have every part, the whole to compare pieces with, and how a dependence is measured."""

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.frontends import SAMPLES_PER_TOKEN as TOKEN

FUSIONS = (*range(8), "input", "never")
SPLITS = (*range(8), "output", "never")


def tiny_config(**changes: object) -> SpectroStreamConfig:
    quantizer = QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16)
    values = {"encoder_width": 2, "decoder_width": 2, "embedding_dim": 6, "quantizer": quantizer} | changes
    return SpectroStreamConfig(**values)


def built(config: SpectroStreamConfig) -> SpectroStream:
    """Random weights, biases too: without them silence stays silence, and a wrong start of a stream is not noticed."""
    torch.manual_seed(0)
    codec = SpectroStream(config).eval().requires_grad_(False)
    for parameter in codec.parameters():
        if parameter.ndim == 1:
            parameter.normal_(std=0.2)
    spread_codebooks(codec)
    return codec


def spread_codebooks(codec: SpectroStream) -> None:
    """Entries where the embeddings of noise are, so that codes tell signals apart."""
    groups = codec.config.token_groups
    embeddings = codec.embed(torch.randn(1, codec.channels, 5 * TOKEN))
    vectors = embeddings.reshape(groups, -1, 5).transpose(1, 2).flatten(0, 1)
    codec.quantizer.codebooks.mul_(vectors.std(0))
    codec.quantizer.codebooks[0].add_(vectors.mean(0))


@cache
def tiny_codec(**changes: object) -> SpectroStream:
    return built(tiny_config(**changes))


def whole_codes(codec: SpectroStream, audio: Tensor, levels: int | None = None) -> Tensor:
    """What `encode` must give: no stream, no pieces."""
    with torch.no_grad():
        return codec.quantizer.encode(codec.embed(audio), codec.levels if levels is None else levels)


def whole_audio(codec: SpectroStream, codes: Tensor, length: int) -> Tensor:
    """What `decode` must give: no stream, no pieces."""
    with torch.no_grad():
        return codec.synthesize(codec.quantizer.decode(codes), length)


def cut(signal: Tensor, sizes: Iterable[int]) -> list[Tensor]:
    """Pieces of the last axis, of the given sizes over and over."""
    sizes, pieces = list(sizes), []
    while signal.shape[-1]:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(signal[..., :size])
        signal = signal[..., size:]
    return pieces


def assert_same_audio(given: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the peak."""
    assert given.shape == expected.shape
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


def reached(function: Callable[[Tensor], Tensor], x: Tensor, axis: int = -1) -> tuple[int, int]:
    """First and last position of x's axis that the function's value depends on, measured by its gradient."""
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    positions = gradient.movedim(axis, 0).flatten(1).abs().sum(1).nonzero().flatten()
    return int(positions.min()), int(positions.max())


def poisoned(function: Callable[[Tensor], Tensor], x: Tensor, position: int) -> bool:
    """Whether a NaN at one position of x's last axis reaches the function's value; 0 * NaN counts."""
    x = x.clone()
    x[..., position] = torch.nan
    return bool(function(x).isnan().any())
