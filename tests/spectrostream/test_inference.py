"""The fast codec is the codec: every fusion and split point, every front-end, whole and in pieces, on any length."""

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.convolution import Convolution, TransposedConvolution
from spectrostream.cpu_inference import winograd
from spectrostream.cpu_inference.convert import LibraryStack
from spectrostream.cpu_inference.layers import FastConvolution, elu_into
from spectrostream.cpu_inference.stacks import CHUNK_TOKENS, FastDecoder, FastEncoder
from spectrostream.frontends import FRONT_ENDS
from spectrostream.streaming import StreamState

POSITIONS = (*range(8), "never")


@cache
def codecs(**changes: object) -> tuple[SpectroStream, SpectroStream]:
    """A small codec with all its biases, and the fast one made of it."""
    torch.manual_seed(0)
    quantizer = QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16)
    values = {"encoder_width": 4, "decoder_width": 4, "embedding_dim": 6, "quantizer": quantizer} | changes
    codec = SpectroStream(SpectroStreamConfig(**values)).eval().requires_grad_(False)
    for name, parameter in codec.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return codec, codec.for_inference()


def assert_within_peak(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def assert_same_codec(codec: SpectroStream, fast: SpectroStream, samples: int, batch: int = 1) -> None:
    audio = torch.randn(batch, codec.channels, samples)
    embeddings = codec.embed(audio)
    assert_within_peak(fast.embed(audio), embeddings)
    assert_within_peak(fast.synthesize(embeddings, samples), codec.synthesize(embeddings, samples))


@pytest.mark.slow
@pytest.mark.parametrize("position", [*POSITIONS, "outermost"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_every_fusion_and_split_point(position, channels):
    fusion, split = ("input", "output") if position == "outermost" else (position, position)
    assert_same_codec(*codecs(fusion=fusion, split=split, channels=channels), samples=7 * 1920 + 700, batch=2)


@pytest.mark.parametrize(("fusion", "split"), [("never", 3), (3, "never"), ("input", 7), (0, "output")])
def test_fusion_and_split_apart(fusion, split):
    assert_same_codec(*codecs(fusion=fusion, split=split), samples=5000)


def test_channel_groups_that_are_out_of_order():
    codec, fast = codecs.__wrapped__(channels=4, channel_groups=[[3, 1], [0, 2]], fusion=4, split=2)
    assert_same_codec(codec, fast, samples=5000)


@pytest.mark.slow
@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_every_front_end(frontend):
    codec, fast = codecs(frontend=frontend)
    assert_same_codec(codec, fast, samples=7 * 1920 + 481)
    assert isinstance(fast.encoder, FastEncoder if codec.frontend.layout.bins > 1 else LibraryStack)
    assert isinstance(fast.decoder, FastDecoder if codec.frontend.layout.bins > 1 else LibraryStack)


@pytest.mark.slow
@settings(max_examples=30)
@given(samples=st.integers(1, 12000), batch=st.integers(1, 3))
def test_any_length_and_batch(samples, batch):
    assert_same_codec(*codecs(), samples=samples, batch=batch)


@pytest.mark.slow
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_stream_of_the_fast_codec_gives_what_the_whole_gives(cuts, seed):
    codec, fast = codecs()
    audio = torch.randn(2, 2, sum(cuts), generator=torch.Generator().manual_seed(seed))
    stream = fast.streaming(2)
    codes = [stream.encode(piece) for piece in audio.split(cuts, dim=-1)]
    codes = torch.cat([*codes, stream.finish_encoding()], dim=-1)
    assert torch.equal(codes, codec.encode(audio))
    pieces = [stream.decode(piece) for piece in codes.split(3, dim=-1)]
    decoded = torch.cat([*pieces, stream.finish_decoding(audio.shape[-1])], dim=-1)
    assert_within_peak(decoded, codec.decode(codes, length=audio.shape[-1]))


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_it_reports_the_same_spans(frontend):
    codec, fast = codecs(frontend=frontend)
    for index in range(20):
        assert fast.token_span(index) == codec.token_span(index)
        assert fast.block_span(index) == codec.block_span(index)


def test_streams_of_one_codec_do_not_disturb_each_other():
    _, fast = codecs()
    audio = torch.randn(2, 1, 2, 6 * 1920)
    alone = [fast.decode(fast.encode(signal)) for signal in audio]
    streams = [fast.streaming(), fast.streaming()]
    given_out: list[list[Tensor]] = [[], []]
    for block in range(6):
        for stream, signal, out in zip(streams, audio, given_out, strict=True):
            out.append(stream.through(signal[..., 1920 * block : 1920 * (block + 1)]))
    for stream, out, expected in zip(streams, given_out, alone, strict=True):
        assert_within_peak(torch.cat([*out, stream.finish()], dim=-1), expected)


def test_what_the_codec_gave_out_stays():
    _, fast = codecs()
    audio = torch.randn(1, 2, 4 * 1920)
    embeddings = fast.embed(audio)
    decoded = fast.synthesize(embeddings, audio.shape[-1])
    kept = embeddings.clone(), decoded.clone()
    fast.synthesize(fast.embed(torch.randn(1, 2, 4 * 1920)), audio.shape[-1])
    assert torch.equal(embeddings, kept[0])
    assert torch.equal(decoded, kept[1])


def test_the_trained_codec_is_left_as_it_was():
    torch.manual_seed(0)
    quantizer = QuantizerConfig(levels=2, codebook_size=4, initial_vectors=4)
    codec = SpectroStream(SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=4, quantizer=quantizer))
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    fast = codec.for_inference()
    assert codec.training
    assert not fast.training
    assert all(parameter.requires_grad for parameter in codec.parameters())
    audio = torch.randn(1, 2, 4000)
    expected = fast.encode(audio), fast.embed(audio), fast.decode(fast.encode(audio))
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()
        codec.quantizer.codebooks.zero_()
    for now, then in zip((fast.encode(audio), fast.embed(audio), fast.decode(expected[0])), expected, strict=True):
        assert torch.equal(now, then)
    codec.load_state_dict(before)
    assert_within_peak(fast.embed(audio), codec.embed(audio).detach())


LAYERS = [
    (kind, kernel, stride, features)
    for kind, (kernel, stride), features in itertools.product(
        (Convolution, TransposedConvolution),
        [((3, 4), (1, 2)), ((3, 6), (1, 3)), ((4, 4), (2, 2)), ((4, 3), (2, 1))],
        [(3, 12), (9, 5)],
    )
] + [(Convolution, kernel, (1, 1), features) for kernel in ((3, 3), (7, 7)) for features in [(3, 9), (9, 9), (9, 3)]]


@pytest.mark.parametrize("full_rate", [True, False])
@pytest.mark.parametrize(("kind", "kernel", "stride", "features"), LAYERS)
def test_a_layer_whole_and_in_pieces(kind, kernel, stride, features, full_rate):
    torch.manual_seed(0)
    layer = kind(*features, kernel, stride).requires_grad_(False)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(3, features[0], 24, 12)
    expected = layer(torch.nn.functional.elu(x))
    fast = FastConvolution(layer, full_rate=full_rate)
    for cuts in ([24], [4] * 6, [8, 4, 12]):
        state = StreamState()
        pieces = [fast(piece, state, "role").clone() for piece in x.permute(2, 0, 3, 1).split(cuts)]
        assert_within_peak(torch.cat(pieces).permute(1, 3, 0, 2), expected)


@pytest.mark.parametrize("frames", range(1, 10))
def test_a_last_piece_of_any_length_is_completed_with_zeros(frames):
    layer = Convolution(3, 9, (3, 3)).requires_grad_(False)
    x = torch.randn(1, 3, frames, 6)
    state = StreamState()
    fast = FastConvolution(layer, full_rate=True)
    fast(torch.randn(8, 1, 6, 3), state, "role")  # leaves its frames in the buffer
    y = fast(x.permute(2, 0, 3, 1), StreamState(), "role")
    assert_within_peak(y.permute(1, 3, 0, 2), layer(torch.nn.functional.elu(x)))


def test_winograd_matrices_filter():
    frames, taps = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    points = (winograd.filter_matrix() @ taps) * (winograd.input_matrix() @ frames)
    expected = torch.stack([frames[i : i + 3] @ taps for i in range(4)])
    torch.testing.assert_close(winograd.output_matrix() @ points, expected)


def test_the_bias_point_reaches_every_frame_once():
    assert winograd.output_matrix()[:, winograd.BIAS_POINT].tolist() == [1, 1, 1, 1]


def test_winograd_rounds_little_more_than_a_direct_sum():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 6, 40), torch.randn(128, 128, 3, 3) / 34
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), padding=(0, 1))
    points = torch.einsum("pt,oitf->poif", winograd.filter_matrix(), weight.double()).float()
    frames = torch.einsum("pt,bitf->pbif", winograd.input_matrix().float(), x)
    products = torch.stack([torch.nn.functional.conv1d(f, p, padding=1) for f, p in zip(frames, points, strict=True)])
    y = torch.einsum("tp,pbof->botf", winograd.output_matrix().float(), products)
    assert (y - exact).abs().max() / exact.abs().max() < 3e-6


@given(st.floats(-100, 100, width=32))
def test_elu_is_elu(value):
    x = torch.full((1,), value)
    out = torch.empty(1)
    elu_into(x, out, torch.empty(1))
    torch.testing.assert_close(out, torch.nn.functional.elu(x), rtol=1e-6, atol=1.2e-7)


@pytest.mark.slow
def test_more_tokens_than_a_piece_holds():
    codec, fast = codecs()
    assert_same_codec(codec, fast, samples=1920 * (2 * CHUNK_TOKENS + 3) - 5)


@pytest.mark.slow
def test_bfloat16_is_near_and_float32_in_and_out():
    codec, _ = codecs()
    weight = codec.encoder.first.weight
    half = codec.for_inference(precision="bfloat16")
    audio = torch.randn(1, 2, 5 * 1920 + 3)
    embeddings = codec.embed(audio)
    for actual, expected in (
        (half.embed(audio), embeddings),
        (half.synthesize(embeddings, 5000), codec.synthesize(embeddings, 5000)),
    ):
        assert actual.dtype == torch.float32
        error = (actual - expected).square().mean() / expected.square().mean()
        assert 1e-8 < error < 1e-3
    assert codec.encoder.first.weight is weight
    assert weight.dtype == torch.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"precision = 'float16' is not known; allowed: float32, bfloat16, int8"):
        codecs()[0].for_inference(precision="float16")
