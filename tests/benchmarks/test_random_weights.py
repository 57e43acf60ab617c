import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.official.random_weights import BIAS_STD, FIRST_GAIN, draw_codebooks, draw_weights, expected_maximum
from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer

PLAIN = "encoder/encoder_0/conv2d_3x3/conv/kernel"


def test_weights_depend_only_on_seed_and_path():
    shapes = {PLAIN: (3, 3, 8, 8), "encoder/encoder_0/conv2d_3x3/conv/bias": (8,)}
    both, alone = draw_weights(shapes, 5), draw_weights({PLAIN: shapes[PLAIN]}, 5)
    assert np.array_equal(both[PLAIN], alone[PLAIN])
    assert both[PLAIN].dtype == np.float32
    assert not np.array_equal(alone[PLAIN], draw_weights({PLAIN: shapes[PLAIN]}, 6)[PLAIN])
    other = PLAIN.replace("encoder_0", "encoder_1")
    assert not np.array_equal(alone[PLAIN], draw_weights({other: shapes[PLAIN]}, 5)[other])


@pytest.mark.parametrize(
    ("path", "kernel", "stride"),
    [
        (PLAIN, (3, 3), None),
        ("decoder/decoder_0/conv2dtranspose_4x3/conv/kernel", (4, 3), (2, 1)),
        ("decoder/decoder_4/conv2dtranspose_3x6/conv/kernel", (3, 6), (1, 3)),
    ],
)
def test_a_convolution_keeps_the_variance(path, kernel, stride):
    drawn = draw_weights({path: (*kernel, 64, 48)}, 0)[path]
    x = torch.randn(1, 64, 40, 40)
    if stride is None:
        y = F.conv2d(x, torch.from_numpy(drawn).permute(3, 2, 0, 1))
    else:
        y = F.conv_transpose2d(x, torch.from_numpy(drawn).permute(2, 3, 0, 1), stride=stride)[..., 4:-4, 4:-4]
    assert y.var().item() == pytest.approx(1.0, rel=0.1)


def test_biases_are_small_and_the_first_convolution_attenuates_a_spectrum():
    first = "encoder/base_conv_first/conv"
    drawn = draw_weights({f"{first}/kernel": (7, 7, 2, 512), f"{first}/bias": (4096,)}, 0)
    assert drawn[f"{first}/bias"].std() == pytest.approx(BIAS_STD, rel=0.1)
    assert drawn[f"{first}/kernel"].std() == pytest.approx(FIRST_GAIN / np.sqrt(7 * 7 * 2), rel=0.05)


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_the_expected_maximum_of_normal_variables(n):
    measured = np.random.default_rng(0).standard_normal((4000, n)).max(axis=1).mean()
    assert expected_maximum(n) == pytest.approx(measured, abs=0.08)


def test_every_codebook_reduces_the_residual():
    dim, entries, levels = 32, 256, 12
    embeddings = np.random.default_rng(0).normal(3.0, 0.5, (400, dim)).astype(np.float32)
    codebooks = draw_codebooks((levels, entries, dim), embeddings, 1)
    config = QuantizerConfig(levels=levels, codebook_size=entries, initial_vectors=entries)
    quantizer = ResidualVectorQuantizer(config, dim)
    quantizer.codebooks.copy_(torch.from_numpy(codebooks))
    batch = torch.from_numpy(embeddings).T[None]
    codes = quantizer.encode(batch, levels)
    left = [(batch - quantizer.decode(codes[:, :n])).square().sum().item() for n in range(1, levels + 1)]
    gain = expected_maximum(entries) ** 2 / dim
    centred = np.square(embeddings - embeddings.mean(0)).sum()
    assert left[0] / centred == pytest.approx(1 - gain, abs=0.06)
    ratios = np.divide(left[1:], left[:-1])
    assert (ratios < 1).all()
    assert ratios.mean() == pytest.approx(1 - gain, abs=0.06)
    assert min(len(codes[0, level].unique()) for level in range(levels)) > entries / 3
