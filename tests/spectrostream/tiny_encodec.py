"""A small EnCodec for tests."""

import torch
from hypothesis import strategies as st

from spectrostream.other_codecs.encodec import Encodec, EncodecCodes
from spectrostream.other_codecs.encodec_config import EncodecConfig

# 4 samples per frame, chunks of 480 samples that overlap by 24; 1, 2 and 8 levels of 4 bits.
TINY = EncodecConfig(
    width=4,
    strides=(2, 2),
    embedding_dim=8,
    codebook_size=16,
    bandwidths=(48, 96, 384),
    chunk_seconds=0.01,
    overlap=0.05,
)
LENGTHS = st.integers(1, 4 * TINY.chunk_stride)


def noise(batch: int, samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(batch, 2, samples, generator=torch.Generator().manual_seed(samples))


def codes_of(codec: Encodec, samples: int, levels: int) -> EncodecCodes:
    frames = codec.chunk_frames(samples)
    return EncodecCodes(torch.zeros(1, levels, sum(frames), dtype=torch.int64), torch.ones(1, len(frames)))
