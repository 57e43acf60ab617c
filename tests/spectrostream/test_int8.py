"""8-bit products: near float32, the same in pieces and in a batch, upset by neither silence nor 60 dB."""

import copy
import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.convolution import Convolution, TransposedConvolution
from spectrostream.cpu_inference import int8_layers
from spectrostream.cpu_inference.int8_layers import (
    Int8Convolution,
    Int8MatrixProduct,
    Int8UnavailableError,
    Int8Weights,
    int8_kind,
)
from spectrostream.cpu_inference.layers import FastConvolution
from spectrostream.cpu_inference.stacks import CHUNK_TOKENS
from spectrostream.errors import UserError
from spectrostream.frontends import FRONT_ENDS
from spectrostream.streaming import StreamState

SPECTRAL = [name for name, frontend in FRONT_ENDS.items() if frontend.layout.bins > 1]


@cache
def codecs(**changes: object) -> tuple[SpectroStream, SpectroStream]:
    """A small codec with all its biases, wide enough for 8 bits, and the int8 one made of it."""
    torch.manual_seed(0)
    quantizer = QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16)
    values = {"encoder_width": 8, "decoder_width": 8, "embedding_dim": 16, "quantizer": quantizer} | changes
    codec = SpectroStream(SpectroStreamConfig(**values)).eval().requires_grad_(False)
    for name, parameter in codec.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return codec, codec.for_inference(precision="int8")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def snr(expected: Tensor, actual: Tensor) -> float:
    assert actual.shape == expected.shape
    return float(10 * (expected.square().sum() / (actual - expected).square().sum()).log10())


def signal_to_noise(codec: SpectroStream, other: SpectroStream, audio: Tensor) -> tuple[float, float]:
    """Of the embeddings, and of the audio from embeddings of the first."""
    embeddings = codec.embed(audio)
    samples = audio.shape[-1]
    expected, actual = (one.synthesize(embeddings, samples) for one in (codec, other))
    return snr(embeddings, other.embed(audio)), snr(expected, actual)


def assert_near(codec: SpectroStream, int8: SpectroStream, audio: Tensor, at_least: float = 25.0) -> None:
    for one in signal_to_noise(codec, int8, audio):
        assert at_least < one < 80


@pytest.mark.parametrize("adds_in_32_bits", [False, True])
def test_a_product_is_exact_whatever_the_processor_adds_in(adds_in_32_bits, monkeypatch):
    """Two terms of 7 bits are right everywhere; one term of 8 bits only where sums have 32 bits."""
    if adds_in_32_bits and not int8_layers._adds_in_32_bits():
        adds_in_32_bits = False  # then this is what the processor has
    monkeypatch.setattr(int8_layers, "_adds_in_32_bits", lambda: adds_in_32_bits)
    codes = torch.randint(0, 256, (7, 64), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    codes[0], weight[0], weight[1] = 255, 127, -127
    packed = int8_layers.PackedWeights(weight)
    assert len(packed.halves) == (1 if adds_in_32_bits else 2)
    actual = packed.product(codes, torch.ones(24), torch.zeros(24, dtype=torch.int64))
    assert torch.equal(actual, (codes.double() @ weight.double().T).float())


@pytest.mark.slow
@pytest.mark.parametrize("position", [*range(8), "never", "outermost"])
def test_every_fusion_and_split_point(position):
    fusion, split = ("input", "output") if position == "outermost" else (position, position)
    assert_near(*codecs(fusion=fusion, split=split), noise(2, 2, 5 * 1920 + 700))


@pytest.mark.slow
@pytest.mark.parametrize("frontend", SPECTRAL)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_spectral_front_end(frontend, channels):
    assert_near(*codecs(frontend=frontend, channels=channels), noise(1, channels, 5 * 1920 + 481))


def test_most_of_it_is_int8_and_its_ends_are_not():
    _, int8 = codecs()
    inner = [module for stack in (int8.encoder, int8.decoder) for module in stack.blocks.modules()]
    kinds = [type(module.dense) for module in inner if isinstance(module, FastConvolution)]
    assert set(kinds) == {Int8Convolution}
    assert len(kinds) == 32
    assert not isinstance(int8.encoder.first.dense, Int8Convolution)
    assert not isinstance(int8.decoder.last.dense, Int8Convolution)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_stream_gives_what_the_whole_gives(cuts, seed):
    _, int8 = codecs()
    audio = noise(2, 2, sum(cuts), seed=seed)
    stream = int8.streaming(2)
    codes = torch.cat([*map(stream.encode, audio.split(cuts, dim=-1)), stream.finish_encoding()], dim=-1)
    assert torch.equal(codes, int8.encode(audio))
    pieces = [stream.decode(piece) for piece in codes.split(3, dim=-1)]
    decoded = torch.cat([*pieces, stream.finish_decoding(audio.shape[-1])], dim=-1)
    expected = int8.decode(codes, length=audio.shape[-1])
    assert (decoded - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_embeddings_of_pieces_are_those_of_the_whole():
    _, int8 = codecs()
    features = noise(1, 4, 4 * 9 + 2, 480)
    state = StreamState()
    pieces = [int8.encoder(piece, state) for piece in features.split([4, 12, 8, 4, 10], dim=2)]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), int8.encoder(features), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_more_tokens_than_a_piece_holds():
    assert_near(*codecs(), noise(1, 2, 1920 * (CHUNK_TOKENS + 3) - 5))


@pytest.mark.slow
def test_an_example_is_the_same_alone_and_beside_louder_ones():
    _, int8 = codecs()
    audio = noise(3, 2, 6 * 1920) * torch.tensor([1e-3, 1.0, 30.0])[:, None, None]
    codes = int8.encode(audio)
    decoded = int8.decode(codes)
    for index in range(3):
        alone = int8.encode(audio[index : index + 1])
        assert torch.equal(alone, codes[index : index + 1])
        audio_alone = int8.decode(alone)[0]
        assert (audio_alone - decoded[index]).abs().max() <= 1e-5 * audio_alone.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.0, 1e-30, 1e-4, 1.0, 1e4])
def test_silence_and_quiet_and_loud_sounds(gain):
    codec, int8 = codecs()
    assert_near(codec, int8, gain * noise(1, 2, 6 * 1920))


def test_a_quiet_band_beside_a_loud_one_is_kept():
    layer = Convolution(16, 16, (3, 3)).requires_grad_(False)
    torch.nn.init.zeros_(layer.bias)
    x = noise(8, 1, 96, 16)
    x[:, :, 48:] *= 1e-3  # 60 dB
    fast = FastConvolution(layer, full_rate=True, kind=int8_kind, activate=False)
    y = fast(x, StreamState(), "role").clone()
    expected = layer(x.permute(1, 3, 0, 2)).permute(2, 0, 3, 1)
    assert snr(expected[:, :, 56:], y[:, :, 56:]) > 35  # one cell further, as its own cell's step is the loud one's
    whole = expected.abs().max() / 254
    assert (expected[:, :, 56:] / whole).abs().max() < 1  # one step for all would have given nothing there


def quantized_reference(layer: Convolution, x: Tensor) -> Tensor:
    """In float64: weights in 127 steps to a side; ELU of each window's frames in 254 steps, its position's own."""
    weight = layer.weight.double()
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    weight = (weight / scale).round() * scale
    windows = F.unfold(F.pad(F.elu(x.double()), (1, 1, 2, 0)), 3)  # [1, C * 9, positions]
    low, high = windows.amin(1, keepdim=True).clamp(max=0), windows.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / 254
    windows = (windows / step).round() * step
    y = torch.einsum("ok,bkp->bop", weight.flatten(1), windows) + layer.bias.double()[:, None]
    return y.unflatten(2, x.shape[2:])


def test_a_layer_against_the_quantized_reference():
    torch.manual_seed(0)
    layer = Convolution(16, 12, (3, 3)).requires_grad_(False)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 16, 7, 10)
    fast = FastConvolution(layer, full_rate=False, kind=int8_kind)
    y = fast(x.permute(2, 0, 3, 1), StreamState(), "role").permute(1, 3, 0, 2)
    expected = quantized_reference(layer, x)
    # A value halfway between two steps may be rounded either way; nothing else differs.
    assert (y - expected).abs().quantile(0.9) < 1e-5
    assert snr(expected, y) > 60
    assert 35 < snr(layer(F.elu(x)), y) < 60


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 70), outputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_matrix_product_is_exact_for_whole_steps(rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (inputs, outputs), generator=generator).float()
    weight[0] = 127  # each column's scale is 1
    x = torch.randint(-100, 155, (rows, inputs), generator=generator).float()
    x = torch.cat((torch.tensor([[-100.0, 154.0]]).expand(rows, 2), x), dim=1)  # each row's step is 1
    weight = torch.cat((torch.zeros(2, outputs), weight))
    bias = torch.randn(outputs, generator=generator)
    y = Int8MatrixProduct(weight, bias)(x, StreamState(), "role")
    torch.testing.assert_close(y, x @ weight + bias, rtol=1e-6, atol=0.1)


LAYERS = [
    (kind, kernel, stride)
    for kind, (kernel, stride) in itertools.product(
        (Convolution, TransposedConvolution), [((3, 4), (1, 2)), ((3, 6), (1, 3)), ((4, 4), (2, 2)), ((4, 3), (2, 1))]
    )
] + [(Convolution, (3, 3), (1, 1))]


@pytest.mark.parametrize("bins", [6, 12, 66])
@pytest.mark.parametrize("full_rate", [True, False])
@pytest.mark.parametrize(("kind", "kernel", "stride"), LAYERS)
def test_a_layer_whole_and_in_pieces(kind, kernel, stride, full_rate, bins):
    torch.manual_seed(0)
    layer = kind(16, 12, kernel, stride).requires_grad_(False)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, 16, 24, bins)
    frames = x.permute(2, 0, 3, 1)
    fast = FastConvolution(layer, full_rate=full_rate, kind=int8_kind)
    whole = fast(frames, StreamState(), "role").clone()
    assert snr(layer(F.elu(x)).permute(2, 0, 3, 1), whole) > 35
    for cuts in ([4] * 6, [8, 4, 12]):
        state = StreamState()
        assert torch.equal(torch.cat([fast(piece, state, "role").clone() for piece in frames.split(cuts)]), whole)


def test_weights_of_zero_give_zero():
    weights = Int8Weights(torch.zeros(9, 4), torch.arange(4.0))
    codes = torch.full((2, 9), 255, dtype=torch.uint8)
    assert torch.equal(weights.product(codes), torch.zeros(2, 4))


@pytest.mark.slow
def test_the_trained_codec_is_left_as_it_was():
    codec, _ = codecs()
    before = copy.deepcopy(codec.state_dict())
    int8 = codec.for_inference(precision="int8")
    int8.encode(noise(1, 2, 4000))
    for name, value in codec.state_dict().items():
        assert torch.equal(value, before[name])
    assert copy.deepcopy(int8).encode(noise(1, 2, 4000)).equal(int8.encode(noise(1, 2, 4000)))


@pytest.mark.slow
def test_the_waveform_front_end_is_refused():
    codec = SpectroStream(SpectroStreamConfig(frontend="waveform", encoder_width=2, decoder_width=2))
    with pytest.raises(Int8UnavailableError, match=r"waveform front-end.*use precision='float32'"):
        codec.for_inference(precision="int8")


def test_compiling_is_refused():
    with pytest.raises(Int8UnavailableError, match=r"not possible with compile = True.*give one of them"):
        codecs()[0].for_inference(precision="int8", compile=True)


def test_a_device_without_it_is_refused():
    with pytest.raises(Int8UnavailableError, match=r"on meta; allowed: a codec on the CPU, codec\.cpu\(\)"):
        copy.deepcopy(codecs()[0]).to("meta").for_inference(precision="int8")


@pytest.mark.parametrize(
    "error", [AttributeError("no operator"), RuntimeError("not\nlinked"), NotImplementedError("x")]
)
def test_a_build_without_the_operators_is_a_user_s_error(error, monkeypatch):
    def missing(*_: object) -> Tensor:
        raise error

    codec, _ = codecs()
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", missing, raising=False)
    with pytest.raises(UserError, match=r"needs the oneDNN products of PyTorch's x86 CPU builds.*use float32"):
        codec.for_inference(precision="int8")
