"""Streams of the whole codec: pieces of any length give the codes and the audio of the whole, as late as it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codec import (
    FUSIONS,
    SPLITS,
    TOKEN,
    assert_same_audio,
    built,
    cut,
    tiny_codec,
    tiny_config,
    whole_audio,
    whole_codes,
)
from torch import Tensor

from spectrostream import SpectroStream
from spectrostream.codec import CHUNK_TOKENS
from spectrostream.codec_stream import CodecStream, DecoderStream, EncoderStream
from spectrostream.frontends import FRONT_ENDS
from spectrostream.streaming import StreamState

UNEVEN = (700, 1, 1920, 3333, 479, 17)  # samples
ODD_LENGTH = 4 * TOKEN + 77
# One for each layout of strides: the others have the same stacks.
STACKS = tuple({frontend.layout: name for name, frontend in reversed(FRONT_ENDS.items())}.values())


def encoded(stream: CodecStream, pieces: list[Tensor]) -> Tensor:
    return torch.cat([*(stream.encode(piece) for piece in pieces), stream.finish_encoding()], dim=-1)


def decoded(stream: CodecStream, pieces: list[Tensor], length: int | None = None) -> Tensor:
    return torch.cat([*(stream.decode(piece) for piece in pieces), stream.finish_decoding(length)], dim=-1)


def passed_through(stream: CodecStream, pieces: list[Tensor]) -> Tensor:
    return torch.cat([*(stream.through(piece) for piece in pieces), stream.finish()], dim=-1)


def assert_streams_equal_the_whole(codec: SpectroStream, audio: Tensor, samples: list[int], tokens: list[int]) -> None:
    """Encoding and decoding in pieces of the given sizes over and over, with one stream object."""
    codes = whole_codes(codec, audio)
    assert codes.shape[-1] < 3 or (codes[..., 1:] != codes[..., :1]).any()  # they hold something
    stream = codec.streaming(len(audio))
    assert torch.equal(encoded(stream, cut(audio, samples)), codes)
    expected = whole_audio(codec, codes, audio.shape[-1])
    assert_same_audio(decoded(stream, cut(codes, tokens), audio.shape[-1]), expected)


def assert_the_way_through_equals_the_whole(codec: SpectroStream, audio: Tensor, samples: list[int]) -> None:
    expected = whole_audio(codec, whole_codes(codec, audio), audio.shape[-1])
    assert_same_audio(passed_through(codec.streaming(len(audio)), cut(audio, samples)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("frontend", FRONT_ENDS)
@settings(max_examples=5)
@given(
    samples=st.lists(st.one_of(st.integers(1, 500), st.integers(1, 4 * TOKEN)), min_size=1, max_size=6),
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    batch=st.integers(1, 2),
)
def test_pieces_of_any_length_equal_the_whole(frontend, samples, tokens, batch):
    audio = torch.randn(batch, 2, min(sum(samples), 4 * TOKEN + 100))
    assert_streams_equal_the_whole(tiny_codec(frontend=frontend), audio, samples, tokens)
    assert_the_way_through_equals_the_whole(tiny_codec(frontend=frontend), audio, samples)


@pytest.mark.parametrize("frontend", STACKS)
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_blocks_of_tokens_equal_the_whole(frontend, tokens):
    codec, audio = tiny_codec(frontend=frontend), torch.randn(1, 2, 4 * TOKEN)
    assert_streams_equal_the_whole(codec, audio, [tokens * TOKEN], [tokens])
    assert_the_way_through_equals_the_whole(codec, audio, [tokens * TOKEN])


@pytest.mark.slow
def test_samples_one_by_one_equal_the_whole():
    assert_the_way_through_equals_the_whole(tiny_codec(), torch.randn(1, 2, TOKEN + 500), [1])


@pytest.mark.parametrize("frontend", STACKS)
@pytest.mark.parametrize(("fusion", "split"), [*zip(FUSIONS, SPLITS, strict=True)])
def test_every_fusion_and_every_split_streams(frontend, fusion, split):
    codec = tiny_codec(frontend=frontend, fusion=fusion, split=split)
    assert_streams_equal_the_whole(codec, torch.randn(1, 2, ODD_LENGTH), [*UNEVEN], [1, 3])


@pytest.mark.parametrize("split", [0, 6, "output", "never"])
def test_tokens_of_each_channel_stream_into_every_kind_of_split(split):
    codec = tiny_codec(fusion="never", split=split)
    assert_streams_equal_the_whole(codec, torch.randn(2, 2, ODD_LENGTH), [*UNEVEN], [2, 1])


@pytest.mark.slow
@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_gradients_through_both_stacks_in_pieces_are_those_of_the_whole(frontend):
    codec = built(tiny_config(frontend=frontend)).requires_grad_(True)
    # Analysis has no memory: its frames, token by token, are what an encoder stream feeds the stack with.
    features = codec.analysis(torch.randn(1, 2, 5 * TOKEN))
    state, size = StreamState(), codec.frames_per_token
    embeddings = torch.cat([codec.encoder(piece, state) for piece in features.split(size, 2)], dim=2)
    pieces = [codec.decoder(piece, state) for piece in embeddings.split(1, 2)]
    audio = torch.cat([codec.synthesis(piece, state) for piece in pieces], dim=-1)
    whole = codec.synthesis(codec.decoder(codec.encoder(features)))
    parameters = [*codec.parameters()]
    direction = torch.randn_like(whole) / whole.detach().abs().max()
    gradients = torch.autograd.grad(audio, parameters, direction)
    for ours, expected in zip(gradients, torch.autograd.grad(whole, parameters, direction), strict=True):
        assert (ours - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_in_blocks_of_one_token_audio_comes_out_exactly_the_latency_behind(frontend):
    codec = tiny_codec(frontend=frontend)
    stream = codec.streaming()
    behind = {"waveform": TOKEN}.get(frontend, 2 * TOKEN)  # 40 ms without look-ahead, 80 ms with
    assert codec.latency_samples == behind
    given_out = 0
    for block in range(6):
        given_out += stream.through(torch.randn(1, 2, TOKEN)).shape[-1]
        assert given_out == max(TOKEN * (block + 1) - codec.latency_samples, 0)
    assert stream.finish().shape[-1] == codec.latency_samples


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_a_token_comes_out_with_the_last_sample_of_its_span_and_not_before(frontend):
    codec = tiny_codec(frontend=frontend)
    last = codec.token_span(0)[1]
    stream = codec.streaming()
    assert stream.encode(torch.randn(1, 2, last)).shape[-1] == 0
    assert stream.encode(torch.randn(1, 2, 1)).shape[-1] == 1
    assert stream.encode(torch.randn(1, 2, TOKEN - 1)).shape[-1] == 0
    assert stream.encode(torch.randn(1, 2, 1)).shape[-1] == 1


def test_a_block_of_audio_comes_out_with_the_last_token_of_its_span_and_not_before():
    codec, stream = tiny_codec(), tiny_codec().streaming()
    codes = torch.zeros(1, 4, 5, dtype=torch.int64)
    lengths = [stream.decode(code).shape[-1] for code in codes.split(1, -1)]
    assert lengths == [0, TOKEN, TOKEN, TOKEN, TOKEN]
    assert codec.block_span(0)[1] == 1


@pytest.mark.parametrize("frontend", FRONT_ENDS)
@pytest.mark.parametrize("length", [1, 479, 1440, 1919, 1920, 1921, 2400, 2401])
def test_the_end_is_cut_to_the_sample(frontend, length):
    codec = tiny_codec(frontend=frontend)
    audio = torch.randn(1, 2, length)
    assert_the_way_through_equals_the_whole(codec, audio, [1000])


def test_the_end_of_decoding_is_by_default_the_end_of_the_last_token():
    codec = tiny_codec()
    codes = whole_codes(codec, torch.randn(1, 2, 3 * TOKEN - 5))
    assert_same_audio(decoded(codec.streaming(), cut(codes, [1])), whole_audio(codec, codes, 3 * TOKEN))


def test_streams_of_a_batch_do_not_mix():
    codec, audio = tiny_codec(), torch.randn(3, 2, 5 * TOKEN + 7)
    stream = codec.streaming(3)
    codes = encoded(stream, cut(audio, UNEVEN))
    together = decoded(stream, cut(codes, [2]), audio.shape[-1])
    for index in range(3):
        alone = codec.streaming()
        one = audio[index : index + 1]
        assert torch.equal(encoded(alone, cut(one, UNEVEN)), codes[index : index + 1])
        length = audio.shape[-1]
        assert_same_audio(together[index : index + 1], decoded(alone, cut(codes[index : index + 1], [2]), length))


def test_nan_in_one_stream_stays_there():
    codec, audio = tiny_codec(), torch.randn(2, 2, 5 * TOKEN)
    poisoned = audio.clone()
    poisoned[1] = torch.nan
    clean, dirty = (encoded(codec.streaming(2), cut(x, UNEVEN)) for x in (audio, poisoned))
    assert torch.equal(dirty[0], clean[0])


def leave_something_behind(stream: CodecStream) -> None:
    stream.encode(torch.randn(1, 2, 3 * TOKEN + 5))
    stream.decode(torch.zeros(1, 4, 3, dtype=torch.int64))


@pytest.mark.parametrize("end", ["reset", "with", "finish"])
def test_a_stream_that_was_reset_or_finished_is_a_fresh_one(end):
    codec, audio = tiny_codec(), torch.randn(1, 2, 4 * TOKEN + 9)
    stream = codec.streaming()
    if end == "with":
        with stream as entered:
            assert entered is stream
            leave_something_behind(stream)
    else:
        leave_something_behind(stream)
    if end == "finish":
        stream.finish_encoding()
        stream.finish_decoding()
    elif end == "reset":
        stream.reset()
    fresh = passed_through(codec.streaming(), cut(audio, UNEVEN))
    assert torch.equal(passed_through(stream, cut(audio, UNEVEN)), fresh)


def test_without_a_reset_the_past_is_heard():
    # what the test above would miss if streams forgot by themselves
    codec, audio = tiny_codec(), torch.randn(1, 2, 4 * TOKEN)
    stream = codec.streaming()
    leave_something_behind(stream)
    assert not torch.equal(encoded(stream, [audio])[..., 3:], whole_codes(codec, audio))


def test_two_streams_of_one_codec_do_not_know_each_other():
    codec, audio = tiny_codec(), torch.randn(2, 2, 3 * TOKEN + 9)
    streams, out = [codec.streaming() for _ in audio], [[], []]
    for piece in cut(audio, UNEVEN):
        for index, stream in enumerate(streams):
            out[index].append(stream.through(piece[index : index + 1]))
    for index, stream in enumerate(streams):
        one = audio[index : index + 1]
        expected = whole_audio(codec, whole_codes(codec, one), one.shape[-1])
        assert_same_audio(torch.cat([*out[index], stream.finish()], dim=-1), expected)


def test_codes_may_change_their_levels_from_piece_to_piece():
    codec = tiny_codec()
    codes = whole_codes(codec, torch.randn(1, 2, 4 * TOKEN))
    pieces = [codes[:, :levels, index : index + 1] for index, levels in enumerate((4, 1, 0, 2))]
    padded = codes.clone()
    for index, piece in enumerate(pieces):
        padded[:, piece.shape[1] :, index] = -1
    assert_same_audio(decoded(codec.streaming(), pieces), whole_audio(codec, padded, 4 * TOKEN))


def test_a_rate_or_levels_for_each_stream():
    codec, audio = tiny_codec(), torch.randn(3, 2, 3 * TOKEN)
    every = whole_codes(codec, audio)
    assert torch.equal(encoded(codec.streaming(3, levels=2), [audio]), every[:, :2])
    # 4 bits at 25 tokens/s: 0.1 kbps a level
    assert torch.equal(encoded(codec.streaming(3, kbps=0.35), [audio]), every[:, :3])
    mixed = encoded(codec.streaming(3, levels=torch.tensor([1, 3, 0])), cut(audio, UNEVEN))
    assert torch.equal(mixed[0, :1], every[0, :1])
    assert torch.equal(mixed[1], every[1, :3])
    assert (mixed[0, 1:] == -1).all()
    assert (mixed[2] == -1).all()


def test_mono_pieces_enter_both_channels():
    codec, audio = tiny_codec(), torch.randn(1, 1, 3 * TOKEN)
    assert torch.equal(encoded(codec.streaming(), cut(audio, UNEVEN)), whole_codes(codec, audio.expand(-1, 2, -1)))


def test_a_stream_takes_pieces_that_need_gradients_and_keeps_none():
    codec = built(tiny_config()).requires_grad_(True)
    stream = codec.streaming()
    audio = stream.through(torch.randn(1, 2, 4 * TOKEN, requires_grad=True))
    assert not audio.requires_grad
    assert not stream.finish().requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("frontend", STACKS)
def test_a_signal_of_several_pieces_of_ten_seconds_is_encoded_and_decoded_as_one(frontend):
    codec = tiny_codec(frontend=frontend)
    audio = torch.randn(1, 2, (CHUNK_TOKENS + 2) * TOKEN + 100)
    codes, length = codec.encode(audio), audio.shape[-1]
    assert codes.shape[-1] == CHUNK_TOKENS + 3
    assert torch.equal(codes, whole_codes(codec, audio))
    assert_same_audio(codec.decode(codes, length=length), whole_audio(codec, codes, length))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
def test_encode_and_decode_do_not_depend_on_the_length_of_their_pieces(tokens, monkeypatch):
    codec, audio = tiny_codec(), torch.randn(2, 2, 6 * TOKEN - 100)
    codes = whole_codes(codec, audio)
    monkeypatch.setattr("spectrostream.codec.CHUNK_TOKENS", tokens)
    assert torch.equal(codec.encode(audio), codes)
    assert_same_audio(codec.decode(codes, length=audio.shape[-1]), whole_audio(codec, codes, audio.shape[-1]))


def test_a_piece_of_another_batch_is_refused_and_changes_nothing():
    codec, audio = tiny_codec(), torch.randn(2, 2, 3 * TOKEN)
    codes = whole_codes(codec, audio)
    for stream in (codec.streaming(2), codec.streaming(2, levels=torch.tensor([4, 4]))):
        stream.encode(audio[..., :TOKEN])
        stream.decode(codes[..., :1])
        with pytest.raises(ValueError, match="a chunk with batch size 3 was given; allowed: 2, as the stream has"):
            stream.encode(torch.zeros(3, 2, TOKEN))
        with pytest.raises(ValueError, match="a chunk with batch size 1 was given; allowed: 2, as the stream has"):
            stream.decode(codes[:1])
        rest = torch.cat((stream.encode(audio[..., TOKEN:]), stream.finish_encoding()), dim=-1)
        assert torch.equal(rest, codes)
        assert stream.decode(codes[..., 1:]).shape[-1] == 2 * TOKEN


def test_encoder_and_decoder_streams_refuse_another_batch_by_themselves():
    codec = tiny_codec()
    encoder, decoder = EncoderStream(codec, 4), DecoderStream(codec)
    encoder.push(torch.zeros(2, 2, 10))
    decoder.push(torch.zeros(2, 4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="a chunk with batch size 1 was given; allowed: 2, as the stream has"):
        encoder.push(torch.zeros(1, 2, 10))
    with pytest.raises(ValueError, match="a chunk with batch size 1 was given; allowed: 2, as the stream has"):
        decoder.push(torch.zeros(1, 4, 1, dtype=torch.int64))


def test_finishing_before_anything_was_pushed_is_refused():
    stream = tiny_codec().streaming()
    for finish in (stream.finish, stream.finish_encoding):
        with pytest.raises(ValueError, match="nothing was encoded: push at least one chunk of audio before finish"):
            finish()
    stream.decode(torch.zeros(1, 4, 0, dtype=torch.int64))  # no token yet
    with pytest.raises(ValueError, match="nothing was decoded: push at least one token before finish"):
        stream.finish_decoding()


@pytest.mark.parametrize("length", [0, TOKEN, 2 * TOKEN + 1])
def test_a_wrong_length_at_the_end_is_refused_and_the_right_one_still_taken(length):
    codec = tiny_codec()
    stream = codec.streaming()
    stream.decode(torch.zeros(1, 4, 2, dtype=torch.int64))
    message = rf"2 frames of codes stand for 1921 \.\. 3840 samples, not for length = {length}"
    with pytest.raises(ValueError, match=message):
        stream.finish_decoding(length)
    assert stream.finish_decoding(2 * TOKEN - 1).shape[-1] == TOKEN - 1


def test_wrong_pieces_are_refused():
    stream = tiny_codec().streaming()
    for wrong in (torch.zeros(1, 3, 10), torch.zeros(1, 2, 0)):
        with pytest.raises(ValueError, match=r"this codec takes \[batch, 2, samples\], samples > 0"):
            stream.encode(wrong)
    with pytest.raises(ValueError, match=r"codes go from 0 to 16; allowed: 0\.\.15, or -1 for absent"):
        stream.decode(torch.tensor([[[0, 16]]]))
    with pytest.raises(
        ValueError, match=r"codes are torch\.int32 \[1, 1, 1\]; allowed: int64 \[batch, levels, frames\]"
    ):
        stream.decode(torch.zeros(1, 1, 1, dtype=torch.int32))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_streams_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size = {batch_size} is not possible; allowed: 1 or more"):
        tiny_codec().streaming(batch_size)


def test_a_stream_that_outlives_a_change_of_the_codebooks_codes_with_the_new_ones():
    codec = built(tiny_config())
    stream = codec.streaming()
    audio = torch.randn(1, 2, 4 * 1920)
    torch.cat((stream.encode(audio), stream.finish_encoding()), dim=-1)
    codec.quantizer.codebooks *= torch.rand_like(codec.quantizer.codebooks[..., :1]) + 0.5
    codes = torch.cat((stream.encode(audio), stream.finish_encoding()), dim=-1)
    assert torch.equal(codes, codec.encode(audio))
