"""Small quantizers and the embeddings that start them."""

import torch
from torch import Tensor

from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer_of(dim: int = 4, token_groups: int = 1, **changes: object) -> ResidualVectorQuantizer:
    values = {"levels": 3, "codebook_size": 16, "initial_vectors": 64, "bypass_probability": 0.0} | changes
    return ResidualVectorQuantizer(QuantizerConfig(**values), dim, token_groups)


def started(embeddings: Tensor, **changes: object) -> ResidualVectorQuantizer:
    """A quantizer whose k-means start saw exactly these embeddings `[batch, dim, frames]`."""
    vectors = embeddings.shape[0] * embeddings.shape[2]
    quantizer = quantizer_of(embeddings.shape[1], initial_vectors=vectors, **changes)
    assert not quantizer(embeddings).is_started
    assert quantizer.learning.is_started
    return quantizer
