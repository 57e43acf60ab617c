"""The codec's contract: lengths, measured causality, sizes of the released layout, fusion and split, errors."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream import AudioCodec, QuantizerConfig, SpectroStream, SpectroStreamConfig

TOKEN = 1920
POSITIONS = (*range(8), "input")
# SPEC.md: parameters of the released layout by fusion and split point; the official code cannot build decoder 7.
ENCODER_PARAMETERS = {
    0: 6_614_560, 1: 6_732_480, 2: 6_814_208, 3: 7_236_416, 4: 7_236_416, 5: 7_498_176, 6: 9_251_904, 7: 9_055_296,
    "input": 6_567_552,
}  # fmt: skip
DECODER_PARAMETERS = {
    0: 25_135_362, 1: 25_606_850, 2: 25_950_658, 3: 27_622_594, 4: 27_688_386, 5: 28_736_194, 6: 35_684_546,
    "output": 24_940_868,
}  # fmt: skip


def tiny_config(**changes: object) -> SpectroStreamConfig:
    quantizer = QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16)
    values = {"encoder_width": 2, "decoder_width": 2, "embedding_dim": 6, "quantizer": quantizer} | changes
    return SpectroStreamConfig(**values)


@cache
def tiny_codec(**changes: object) -> SpectroStream:
    torch.manual_seed(0)
    return SpectroStream(tiny_config(**changes)).eval().requires_grad_(False)


def released_size(**changes: object) -> SpectroStream:
    """At the released widths, without memory for the weights."""
    quantizer = QuantizerConfig(levels=1, codebook_size=2, initial_vectors=2)
    with torch.device("meta"):
        return SpectroStream(SpectroStreamConfig(quantizer=quantizer, **changes))


def parameter_count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def reached(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[int, int]:
    """First and last position on x's last axis that the function's value depends on, measured by its gradient."""
    x = x.clone().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    positions = gradient.abs().sum((0, 1)).nonzero().flatten()
    return int(positions.min()), int(positions.max())


def output_of(module: torch.nn.Module, run: Callable[[], object], *, is_input: bool = False) -> Tensor:
    """What the module gave (or was given) while `run()` ran."""
    seen = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] if is_input else output))
    run()
    hook.remove()
    return seen[0]


@settings(max_examples=60)
@given(
    samples=st.integers(1, 6000),
    batch=st.integers(1, 3),
    frontend=st.sampled_from(["stft", "waveform"]),
    channels=st.integers(1, 3),
    fusion=st.sampled_from(POSITIONS),
    split=st.sampled_from([*range(8), "output"]),
)
def test_the_output_has_the_inputs_length_whatever_it_is(samples, batch, frontend, channels, fusion, split):
    codec = tiny_codec(frontend=frontend, channels=channels, fusion=fusion, split=split)
    audio = torch.randn(batch, channels, samples)
    codes = codec.encode(audio)
    assert codes.shape == (batch, 4, -(-samples // TOKEN))
    assert codes.dtype == torch.int64
    decoded = codec.decode(codes, length=samples)
    assert decoded.shape == audio.shape
    assert decoded.isfinite().all()


@pytest.mark.parametrize("frontend", ["stft", "waveform"])
@pytest.mark.parametrize("position", POSITIONS)
def test_every_position_encodes_and_decodes(frontend, position):
    split = "output" if position == "input" else position
    codec = tiny_codec(frontend=frontend, fusion=position, split=split)
    audio = torch.randn(1, 2, TOKEN + 1)
    assert codec.decode(codec.encode(audio), length=TOKEN + 1).shape == audio.shape


@pytest.mark.parametrize("samples", [1, 1919, 1920, 1921, 3840, 3841])
def test_a_shorter_length_cuts_the_end_and_moves_nothing(samples):
    codec = tiny_codec()
    codes = codec.encode(torch.randn(1, 2, 3 * TOKEN))
    frames = -(-samples // TOKEN)
    short = codec.decode(codes[..., :frames], length=samples)
    whole = codec.decode(codes[..., :frames], length=frames * TOKEN)
    assert torch.equal(short, whole[..., :samples])


@pytest.mark.parametrize(("frontend", "first", "last"), [("stft", -25919, 2399), ("waveform", -20946, 1919)])
def test_a_token_depends_on_exactly_the_samples_that_the_specification_says(frontend, first, last):
    codec, token = tiny_codec(frontend=frontend), 15
    audio = torch.randn(1, 2, 18 * TOKEN)
    assert reached(lambda x: codec.embed(x)[..., token], audio) == (TOKEN * token + first, TOKEN * token + last)


@pytest.mark.parametrize(("frontend", "oldest"), [("stft", -13), ("waveform", -10)])
def test_an_output_block_depends_on_exactly_the_tokens_that_the_specification_says(frontend, oldest):
    codec = tiny_codec(frontend=frontend)
    embeddings = torch.randn(1, 6, 18)

    def block(index: int) -> Callable[[Tensor], Tensor]:
        return lambda x: codec.synthesize(x, 18 * TOKEN)[..., TOKEN * index : TOKEN * (index + 1)]

    assert reached(block(15), embeddings) == (15 + oldest, 16)
    assert reached(block(0), embeddings) == (0, 1)


@pytest.mark.parametrize(("frontend", "latency"), [("stft", 3840), ("waveform", 1920)])
def test_latency_is_the_delay_in_blocks_that_the_whole_codec_needs(frontend, latency):
    codec = tiny_codec(frontend=frontend)
    audio, block = torch.randn(1, 2, 9 * TOKEN), 4
    # quantization has no gradient and no memory: embeddings stand for codes
    _, last = reached(
        lambda x: codec.synthesize(codec.embed(x), 9 * TOKEN)[..., TOKEN * block : TOKEN * (block + 1)], audio
    )
    assert (last // TOKEN - block) * TOKEN == codec.latency_samples == latency


@pytest.mark.parametrize("frontend", ["stft", "waveform"])
def test_changing_the_future_changes_no_code_of_the_past(frontend):
    codec, cut = tiny_codec(frontend=frontend), 4 * TOKEN
    audio = torch.randn(2, 2, 7 * TOKEN)
    changed = audio.clone()
    changed[..., cut:] = torch.randn(2, 2, 3 * TOKEN)
    codes, other = codec.encode(audio), codec.encode(changed)
    known = 3 if frontend == "stft" else 4  # tokens whose samples, look-ahead included, are the same
    assert torch.equal(codes[..., :known], other[..., :known])
    assert not torch.equal(codes[..., 4:], other[..., 4:])


@pytest.mark.parametrize("position", range(8))
def test_parameters_of_the_released_widths(position):
    codec = released_size(fusion=position, split=position)
    assert parameter_count(codec.encoder) == ENCODER_PARAMETERS[position]
    if position in DECODER_PARAMETERS:
        assert parameter_count(codec.decoder) == DECODER_PARAMETERS[position]


def test_parameters_without_fusion_and_split_and_of_mono():
    joint = released_size(fusion="input", split="output")
    assert parameter_count(joint.encoder) == ENCODER_PARAMETERS["input"]
    assert parameter_count(joint.decoder) == DECODER_PARAMETERS["output"]
    for position in (0, 6):
        mono = released_size(channels=1, fusion=position, split=position)
        assert parameter_count(mono.encoder) == 6_564_416
        assert parameter_count(mono.decoder) == 24_934_594


def test_fusion_and_split_are_independent():
    for fusion, split in ((1, 5), (5, 1), ("input", 6), (6, "output")):
        codec = released_size(fusion=fusion, split=split)
        assert parameter_count(codec.encoder) == ENCODER_PARAMETERS[fusion]
        assert parameter_count(codec.decoder) == DECODER_PARAMETERS[split]


def test_codebooks_of_the_released_model():
    with torch.device("meta"):
        codec = SpectroStream(SpectroStreamConfig())
    assert codec.codebook_parameters == 16_777_216
    assert (codec.levels, codec.codebook_size, codec.channels, codec.sample_rate) == (64, 1024, 2, 48000)


@pytest.mark.parametrize("frontend", ["stft", "waveform"])
@pytest.mark.parametrize("fusion", range(8))
def test_swapped_channels_swap_their_features_until_the_fusion_block(frontend, fusion):
    codec = tiny_codec(frontend=frontend, fusion=fusion)
    audio = torch.randn(2, 2, 2 * TOKEN)

    def fused(x: Tensor) -> Tensor:
        return output_of(codec.encoder.blocks[fusion], lambda: codec.embed(x), is_input=True)

    left, right = fused(audio).chunk(2, dim=1)
    torch.testing.assert_close(fused(audio.flip(1)), torch.cat((right, left), dim=1))
    assert not torch.allclose(left, right)
    # left first: the first half never heard the right channel
    without_right = fused(audio * torch.tensor([1.0, 0.0])[:, None]).chunk(2, dim=1)
    torch.testing.assert_close(without_right[0], left)
    assert not torch.allclose(without_right[1], right)
    # and from there on they are told apart
    assert not torch.allclose(codec.embed(audio), codec.embed(audio.flip(1)))


@pytest.mark.parametrize("frontend", ["stft", "waveform"])
@pytest.mark.parametrize("split", range(8))
def test_after_the_split_block_each_half_makes_its_channel_left_first(frontend, split):
    codec = tiny_codec(frontend=frontend, split=split)
    block = codec.decoder.blocks[7 - split]
    embeddings = torch.randn(2, 6, 3)
    audio = codec.synthesize(embeddings, 3 * TOKEN)

    def with_split_output(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        hook = block.register_forward_hook(lambda _, __, output: torch.cat(change(*output.chunk(2, dim=1)), dim=1))
        changed = codec.synthesize(embeddings, 3 * TOKEN)
        hook.remove()
        return changed

    torch.testing.assert_close(with_split_output(lambda left, right: (right, left)), audio.flip(1))
    silenced = with_split_output(lambda left, right: (0 * left, right))
    torch.testing.assert_close(silenced[:, 1], audio[:, 1])
    assert not torch.allclose(silenced[:, 0], audio[:, 0])


@pytest.mark.parametrize(("position", "channel_of_each_example"), [(0, True), (7, True), ("input", False)])
def test_channels_are_examples_of_the_first_convolution_unless_joined_at_the_input(position, channel_of_each_example):
    codec = tiny_codec(fusion=position)
    given_to = output_of(codec.encoder.first, lambda: codec.embed(torch.randn(3, 2, TOKEN)), is_input=True)
    assert given_to.shape[:2] == ((6, 2) if channel_of_each_example else (3, 4))


def test_fewer_levels_is_a_prefix():
    codec = tiny_codec()
    audio = torch.randn(2, 2, 4000)
    codes = codec.encode(audio)
    for levels in range(5):
        assert torch.equal(codec.encode(audio, levels=levels), codes[:, :levels])


def test_no_levels_decode_to_what_zero_embeddings_give():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(2, 2, 4000), levels=0)
    assert codes.shape == (2, 0, 3)
    assert codec.bits(codes) == 0
    decoded = codec.decode(codes, length=4000)
    assert torch.equal(decoded, codec.synthesize(torch.zeros(2, 6, 3), 4000))


def test_examples_of_a_batch_do_not_touch_each_other():
    codec = tiny_codec()
    audio = torch.randn(3, 2, 4000)
    whole = codec.embed(audio)
    alone = torch.cat([codec.embed(example[None]) for example in audio])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    alone = torch.cat([codec.synthesize(example[None], 4000) for example in whole])
    torch.testing.assert_close(codec.synthesize(whole, 4000), alone, rtol=1e-4, atol=1e-5)


def test_rates():
    codec = released_size()
    full = SpectroStream.kbps.__get__(_Bare())
    assert [full(levels) for levels in (1, 16, 64)] == [0.25, 4, 16]
    assert codec.kbps(1) == pytest.approx(1 / 40)  # one bit at 25 tokens/s


class _Bare:
    """The arithmetic of the released model without its weights."""

    config = SpectroStreamConfig()
    sample_rate = 48000


def test_bits_are_those_of_one_example():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(3, 2, 48000), levels=3)
    assert codec.bits(codes) == 3 * 25 * 4
    assert codec.bits(codes) == codec.kbps(3) * 1000


def test_it_is_an_audio_codec():
    codec = tiny_codec()
    assert isinstance(codec, AudioCodec)
    assert codec.is_causal


def test_a_training_pass_gives_audio_a_loss_and_gradients_for_every_parameter():
    codec = SpectroStream(tiny_config())
    audio = torch.randn(4, 2, 5 * TOKEN)
    codec(audio)  # 20 vectors start the codebooks
    reconstruction = codec(audio[..., :-100])
    assert reconstruction.audio.shape == (4, 2, 5 * TOKEN - 100)
    (reconstruction.audio.square().mean() + reconstruction.commitment_loss).backward()
    assert [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("shape", [(1, 1, 100), (1, 3, 100), (2, 100), (1, 2, 0)])
def test_wrong_audio_is_refused_with_both_shapes(shape):
    message = f"audio has the shape {shape}; this codec takes [batch, 2, samples], samples > 0"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_codec().encode(torch.zeros(shape))


@pytest.mark.parametrize("levels", [5, -1])
def test_levels_that_were_not_trained_are_refused(levels):
    message = rf"levels = {levels} is not possible: this codec was trained with 4; allowed: 0\.\.4"
    with pytest.raises(ValueError, match=message):
        tiny_codec().encode(torch.zeros(1, 2, 100), levels=levels)


def test_codes_of_more_levels_than_trained_are_refused():
    with pytest.raises(ValueError, match=r"levels = 5 is not possible: this codec was trained with 4"):
        tiny_codec().decode(torch.zeros(1, 5, 1, dtype=torch.int64), length=100)


@pytest.mark.parametrize("length", [1920, 3841])
def test_a_length_that_the_codes_do_not_stand_for_is_refused(length):
    codes = torch.zeros(1, 4, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=rf"2 frames of codes stand for 1921 \.\. 3840 samples, not for length = {length}"
    ):
        tiny_codec().decode(codes, length=length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frontend": "mdct"}, "model.frontend = 'mdct' is not known; allowed: stft, waveform"),
        ({"fusion": 8}, "model.fusion = 8 is not possible: .* allowed: 0..7 or 'input'"),
        ({"fusion": -1}, "model.fusion = -1 is not possible: .* allowed: 0..7 or 'input'"),
        ({"fusion": "output"}, "model.fusion = 'output' is not possible: .* allowed: 0..7 or 'input'"),
        ({"split": 8}, "model.split = 8 is not possible: .* allowed: 0..7 or 'output'"),
        ({"split": "input"}, "model.split = 'input' is not possible: .* allowed: 0..7 or 'output'"),
        ({"channels": 0}, "model.channels = 0 is not possible; allowed: 1 or more"),
        ({"encoder_width": 0}, "model.encoder_width = 0 is not possible; allowed: 1 or more"),
        ({"decoder_width": -4}, "model.decoder_width = -4 is not possible; allowed: 1 or more"),
        ({"embedding_dim": 0}, "model.embedding_dim = 0 is not possible; allowed: 1 or more"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(change, message):
    with pytest.raises(ValueError, match=message):
        SpectroStreamConfig(**change)


PURE_TORCH = """
import sys
for name in ("lightning", "omegaconf", "pandas", "matplotlib", "wandb", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError
import torch
import spectrostream.bitstream, spectrostream.discriminators, spectrostream.losses, spectrostream.weights
from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
quantizer = QuantizerConfig(levels=2, codebook_size=4, initial_vectors=4)
codec = SpectroStream(SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=4, quantizer=quantizer))
audio = torch.randn(1, 2, 2000)
assert codec.decode(codec.encode(audio), length=2000).shape == audio.shape
assert codec(audio).audio.shape == audio.shape
"""


def test_the_codec_works_where_only_torch_is_installed():
    done = subprocess.run([sys.executable, "-c", PURE_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
