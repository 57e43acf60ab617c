"""EnCodec behind our interface: chunks joined as transformers joins them, lengths, alignment, rates."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny_encodec import LENGTHS, TINY, codes_of, noise
from torch import nn

from spectrostream.interface import AudioCodec
from spectrostream.other_codecs.encodec import Encodec
from spectrostream.other_codecs.encodec_config import EncodecConfig


@pytest.fixture(scope="module")
def encodec() -> Encodec:
    torch.manual_seed(0)
    return Encodec(TINY).eval()


@pytest.fixture(scope="module")
def released_size() -> Encodec:
    torch.manual_seed(0)
    return Encodec(EncodecConfig()).eval()


# --- the interface ---------------------------------------------------------------------------------------------------


def test_it_is_an_audio_codec(encodec):
    assert isinstance(encodec, AudioCodec)
    assert (encodec.sample_rate, encodec.channels, encodec.levels) == (48000, 2, 8)
    assert encodec.is_causal is False
    assert encodec.latency_samples is None


@settings(max_examples=20)
@given(samples=LENGTHS, batch=st.integers(1, 3), levels=st.sampled_from(TINY.trained_levels))
@example(samples=1, batch=1, levels=8)
@example(samples=TINY.chunk_stride + 1, batch=1, levels=8)
@example(samples=2 * TINY.chunk_stride + 1, batch=1, levels=8)
def test_output_length_is_input_length(encodec, samples, batch, levels):
    audio = noise(batch, samples)
    codes = encodec.encode(audio, levels=levels)
    frames = encodec.chunk_frames(samples)
    assert codes.indices.dtype == torch.int64
    assert codes.indices.shape == (batch, levels, sum(frames))
    assert codes.scales.shape == (batch, len(frames))
    decoded = encodec.decode(codes, length=samples)
    assert decoded.shape == audio.shape
    assert decoded.isfinite().all()


@settings(max_examples=12)
@given(samples=LENGTHS, levels=st.sampled_from(TINY.trained_levels))
def test_fewer_levels_are_a_prefix(encodec, samples, levels):
    audio = noise(1, samples)
    assert torch.equal(encodec.encode(audio, levels=levels).indices, encodec.encode(audio).indices[:, :levels])


def test_examples_of_a_batch_are_coded_alone(encodec):
    audio = noise(3, 1000)
    together = encodec.encode(audio)
    alone = encodec.encode(audio[1:2])
    assert torch.equal(together.indices[1:2], alone.indices)
    torch.testing.assert_close(together.scales[1:2], alone.scales)


def test_codes_mean_something(encodec):
    """Random weights give other codes for other sounds: a codebook of zeros, as transformers begins, would not."""
    codes = encodec.encode(noise(1, 4000)).indices
    assert all(level.unique().numel() > 4 for level in codes[0])


def test_silence_is_coded(encodec):
    codes = encodec.encode(torch.zeros(1, 2, 1000))
    assert encodec.decode(codes, length=1000).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_is_coded_in_single_precision(encodec, dtype):
    audio = noise(1, 700).to(dtype)
    codes = encodec.encode(audio)
    assert torch.equal(codes.indices, encodec.encode(audio.float()).indices)
    assert encodec.decode(codes, length=700).dtype == torch.float32


def test_the_device_is_that_of_the_audio():
    """On the meta device every tensor that is made elsewhere by mistake raises an error."""
    codec = Encodec(TINY)
    codec.model.encoder, codec.model.decoder, codec.model.quantizer = Packing(), Unpacking(), Rounding()
    codes = codec.encode(torch.zeros(1, 2, 1000, device="meta"))
    assert codes.device.type == "meta"
    assert not codes.is_cuda
    assert codec.decode(codes, length=1000).device.type == "meta"


def test_costs_can_be_measured(encodec):
    """Reports time `encode`, count what `parameters()` and the declaration say, and have no formula for LSTMs."""
    from reports.metrics.cost import count_parameters, macs_per_second, real_time_factors

    assert real_time_factors(encodec, seconds=0.05, runs=1).encode > 0
    assert macs_per_second(encodec) is None
    assert count_parameters(encodec).codebook_parameters == 8 * 16 * 8


# --- equal to transformers -------------------------------------------------------------------------------------------


def transformers_can(codec: Encodec, samples: int) -> bool:
    """False where transformers stacks chunks of unequal frames, or decodes a chunk beyond the end of the last."""
    frames, config = codec.chunk_frames(samples), codec.config
    ends = [i * config.chunk_stride + count * config.hop_length for i, count in enumerate(frames)]
    return len(set(frames[:-1])) <= 1 and max(ends) == ends[-1]


def assert_equal_to_transformers(codec: Encodec, audio: torch.Tensor, levels: int) -> None:
    bandwidth = dict(zip(codec.config.trained_levels, codec.config.bandwidths, strict=True))[levels]
    with torch.no_grad():
        theirs = codec.model.encode(audio, bandwidth=bandwidth)
        decoded = codec.model.decode(
            theirs.audio_codes, theirs.audio_scales, last_frame_pad_length=theirs.last_frame_pad_length
        ).audio_values
    ours = codec.encode(audio, levels=levels)
    padded = torch.cat(list(theirs.audio_codes), dim=-1)  # [chunks, batch, levels, frames] -> [batch, levels, frames]
    frames = padded.shape[-1] - max(theirs.last_frame_pad_length, 0)
    assert torch.equal(ours.indices, padded[..., :frames])
    assert torch.equal(ours.scales, torch.cat(theirs.audio_scales, dim=-1))
    length = audio.shape[-1]
    assert torch.equal(codec.decode(ours, length=length), decoded[..., :length])


@pytest.mark.slow
@settings(max_examples=25)
@given(samples=LENGTHS, batch=st.integers(1, 2), levels=st.sampled_from(TINY.trained_levels))
@example(samples=TINY.chunk_stride + 1, batch=1, levels=8)
@example(samples=TINY.chunk_length, batch=1, levels=8)
def test_codes_and_audio_are_those_of_transformers(encodec, samples, batch, levels):
    assume(transformers_can(encodec, samples))
    assert_equal_to_transformers(encodec, noise(batch, samples), levels)


@pytest.mark.slow
def test_at_full_size_too(released_size):
    assert_equal_to_transformers(released_size, noise(1, 49000), 16)


def test_the_comparison_leaves_out_few_lengths(encodec):
    lengths = range(1, 4 * TINY.chunk_stride + 1)
    assert sum(transformers_can(encodec, samples) for samples in lengths) > 0.97 * len(lengths)


def test_levels_of_a_bandwidth_are_those_of_transformers(released_size):
    config, quantizer = released_size.config, released_size.model.quantizer
    assert config.trained_levels == (2, 4, 8, 16)
    assert [quantizer.get_num_quantizers_for_bandwidth(kbps) for kbps in config.bandwidths] == [2, 4, 8, 16]
    inner = released_size.model.config
    assert (inner.chunk_length, inner.chunk_stride, inner.hop_length) == (48000, 47520, 320)
    assert (config.chunk_length, config.chunk_stride, config.hop_length) == (48000, 47520, 320)


# --- alignment: the networks replaced by ones that lose nothing ------------------------------------------------------


class Packing(nn.Module):
    """`[batch, 2, samples]` to embeddings `[batch, 8, frames]`: the samples themselves, zeros at the end."""

    def forward(self, audio):
        padded = nn.functional.pad(audio, (0, -audio.shape[-1] % 4))
        return padded.unflatten(-1, (-1, 4)).permute(0, 1, 3, 2).flatten(1, 2)


class Unpacking(nn.Module):
    def forward(self, embeddings):
        return embeddings.unflatten(1, (2, 4)).permute(0, 1, 3, 2).flatten(2)


class Rounding(nn.Module):
    """One level per embedding dimension, in steps of 2**-16."""

    def encode(self, embeddings, bandwidth):
        return (embeddings * 2**16).round().long().transpose(0, 1)

    def decode(self, codes):
        return codes.transpose(0, 1) / 2**16


@pytest.fixture(scope="module")
def lossless() -> Encodec:
    codec = Encodec(TINY)
    codec.model.encoder, codec.model.decoder, codec.model.quantizer = Packing(), Unpacking(), Rounding()
    return codec


@settings(max_examples=100)
@given(samples=LENGTHS, batch=st.integers(1, 2))
@example(samples=TINY.chunk_stride + 5, batch=1)
@example(samples=2 * TINY.chunk_stride + 1, batch=1)
def test_chunks_are_joined_in_place(lossless, samples, batch):
    audio = noise(batch, samples)
    torch.testing.assert_close(lossless.decode(lossless.encode(audio), length=samples), audio, rtol=0, atol=1e-5)


def test_chunks_are_cross_faded_linearly(lossless):
    """With scales 1 and 3 of the same wave the overlap rises from the one to the other in equal steps."""
    length = 2 * TINY.chunk_stride
    codes = lossless.encode(torch.ones(1, 2, length))
    decoded = lossless.decode(codes._replace(scales=torch.tensor([[1.0, 3.0]])), length=length)
    start, end = TINY.chunk_stride, TINY.chunk_length
    overlap = torch.arange(1, end - start + 1) / (end - start + 1)
    torch.testing.assert_close(decoded[0, 0, :start], torch.ones(start))
    torch.testing.assert_close(decoded[0, 0, start:end], 1 + 2 * overlap)
    torch.testing.assert_close(decoded[0, 0, end:], torch.full((length - end,), 3.0))


# --- rates -----------------------------------------------------------------------------------------------------------


def test_nominal_rates_are_the_models_names(released_size):
    assert [released_size.kbps(levels) for levels in (2, 4, 8, 16)] == pytest.approx([3, 6, 12, 24])


def test_bits_of_ten_seconds(released_size):
    # Chunks begin at 0, 47520, ..., 475200: ten of 150 frames and one of 4800 samples, 15 frames.
    codes = codes_of(released_size, 480000, 16)
    assert released_size.bits(codes) == 1515 * 16 * 10 + 11 * 32


@pytest.mark.parametrize(("levels", "kbps"), [(2, 3.0626), (4, 6.0929), (8, 12.1535), (16, 24.2747)])
def test_the_rate_that_is_sent(released_size, levels, kbps):
    # (1500 levels + 32) bits every 0.99 s
    samples = 100 * 47520
    rate = released_size.bits(codes_of(released_size, samples, levels)) / (samples / 48000) / 1000
    assert rate == pytest.approx(kbps, rel=1e-4)


@given(samples=LENGTHS, levels=st.sampled_from(TINY.trained_levels))
@settings(max_examples=12)
def test_bits_are_those_of_one_example(encodec, samples, levels):
    codes = encodec.encode(noise(2, samples), levels=levels)
    assert encodec.bits(codes) == 4 * codes.indices[0].numel() + 32 * codes.scales[0].numel()


def test_overlaps_are_counted_twice(encodec):
    samples = 4 * TINY.chunk_stride
    assert sum(encodec.chunk_frames(samples)) == samples // 4 + 3 * 24 // 4


# --- size ------------------------------------------------------------------------------------------------------------


def test_parameters_of_the_released_model(released_size):
    """Golden: the tensors of `facebook/encodec_48khz`.

    Its model.safetensors is listed with 76.3 MB: networks, codebooks, and the codebooks' training averages, counts and
    flags in float32. A conversion without those (mlx-community/encodec-48khz-float32) with 67.8 MB, 16.9 M numbers.
    """
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in released_size.model.named_children()}
    assert count == {"encoder": 7_428_336, "decoder": 7_427_958, "quantizer": 0}
    assert released_size.codebook_parameters == 16 * 1024 * 128 == 2_097_152
    stored = sum(tensor.numel() for tensor in released_size.state_dict().values())
    assert stored == 7_428_336 + 7_427_958 + 2 * 2_097_152 + 16 * (1024 + 1)
    assert 4 * stored == pytest.approx(76.3e6, abs=0.05e6)
    used = sum(count.values()) + released_size.codebook_parameters
    assert 4 * used == pytest.approx(67.8e6, abs=0.05e6)
