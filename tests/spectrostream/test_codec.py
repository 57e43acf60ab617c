"""The codec's contract: lengths, measured causality, sizes of the released layout, fusion and split, errors."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codec import FUSIONS, SPLITS, TOKEN, assert_same_audio, built, poisoned, reached, tiny_codec, tiny_config
from torch import Tensor

from spectrostream import AudioCodec, SpectroStream, SpectroStreamConfig
from spectrostream.frontends import FRONT_ENDS


def output_of(module: torch.nn.Module, run: Callable[[], object], *, is_input: bool = False) -> Tensor:
    """What the module gave (or was given) while `run()` ran."""
    seen = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0] if is_input else output))
    run()
    hook.remove()
    return seen[0]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    samples=st.integers(1, 4000),
    batch=st.integers(1, 3),
    frontend=st.sampled_from([*FRONT_ENDS]),
    channels=st.integers(1, 3),
    fusion=st.sampled_from(FUSIONS),
    split=st.sampled_from(SPLITS),
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
    # The first sample of a Hann window is zero: it is read, and counts for nothing.
    first_read = first - (frontend == "stft")
    assert codec.token_span(token) == (TOKEN * token + first_read, TOKEN * token + last)


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_a_token_reads_the_samples_that_the_codec_says_and_no_others(frontend):
    codec, audio = tiny_codec(frontend=frontend), torch.randn(1, 2, 16 * TOKEN)
    first, last = codec.token_span(14)
    for sample, is_read in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
        assert poisoned(lambda x: codec.embed(x)[..., 14], audio, sample) == is_read


@pytest.mark.parametrize(("frontend", "oldest"), [("stft", -13), ("waveform", -10)])
def test_an_output_block_depends_on_exactly_the_tokens_that_the_specification_says(frontend, oldest):
    codec = tiny_codec(frontend=frontend)
    assert output_block_depends_on(codec, 15) == codec.block_span(15) == (15 + oldest, 16)
    assert output_block_depends_on(codec, 0) == (0, codec.block_span(0)[1]) == (0, 1)


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_an_output_block_depends_on_the_tokens_that_the_codec_says(frontend):
    codec = tiny_codec(frontend=frontend)
    assert output_block_depends_on(codec, 15) == codec.block_span(15)


def output_block_depends_on(codec: SpectroStream, block: int) -> tuple[int, int]:
    """First and last token, measured."""
    samples = slice(TOKEN * block, TOKEN * (block + 1))
    return reached(lambda x: codec.synthesize(x, 18 * TOKEN)[..., samples], torch.randn(1, 6, 18))


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_latency_is_the_delay_in_blocks_that_the_whole_codec_needs(frontend):
    codec, block = tiny_codec(frontend=frontend), 2
    samples = slice(TOKEN * block, TOKEN * (block + 1))
    # quantization has no gradient and no memory: embeddings stand for codes
    _, last = reached(lambda x: codec.synthesize(codec.embed(x), 6 * TOKEN)[..., samples], torch.randn(1, 2, 6 * TOKEN))
    assert (last // TOKEN - block) * TOKEN == codec.latency_samples


@pytest.mark.parametrize("position", FUSIONS)
def test_where_channels_meet_changes_neither_spans_nor_latency(position):
    codec, released = tiny_codec(fusion=position), tiny_codec()
    split = tiny_codec(split="output" if position == "input" else position)
    assert codec.token_span(20) == released.token_span(20) == (20 * TOKEN - 25920, 20 * TOKEN + 2399)
    assert split.block_span(20) == released.block_span(20) == (7, 21)
    assert codec.latency_samples == split.latency_samples == 3840  # 80 ms


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_changing_the_future_changes_no_code_of_the_past(frontend):
    codec, cut = tiny_codec(frontend=frontend), 4 * TOKEN
    audio = torch.randn(2, 2, 7 * TOKEN)
    changed = audio.clone()
    changed[..., cut:] = torch.randn(2, 2, 3 * TOKEN)
    codes, other = codec.encode(audio), codec.encode(changed)
    known = 3 if codec.frontend.look_ahead else 4  # tokens whose samples, look-ahead included, are the same
    assert torch.equal(codes[..., :known], other[..., :known])
    assert not torch.equal(codes[..., 4:], other[..., 4:])


@pytest.mark.parametrize("frontend", ["stft", "waveform"])
@pytest.mark.parametrize("fusion", [*range(8), "never"])
def test_swapped_channels_swap_their_features_until_the_fusion_block(frontend, fusion):
    codec = tiny_codec(frontend=frontend, fusion=fusion)
    audio = torch.randn(2, 2, 2 * TOKEN)

    def fused(x: Tensor) -> Tensor:
        if fusion == "never":
            return codec.embed(x)
        return output_of(codec.encoder.blocks[fusion], lambda: codec.embed(x), is_input=True)

    left, right = fused(audio).chunk(2, dim=1)
    torch.testing.assert_close(fused(audio.flip(1)), torch.cat((right, left), dim=1))
    assert not torch.allclose(left, right)
    # left first: the first half does not depend on the right channel
    without_right = fused(audio * torch.tensor([1.0, 0.0])[:, None]).chunk(2, dim=1)
    torch.testing.assert_close(without_right[0], left)
    assert not torch.allclose(without_right[1], right)
    # and from there on they are told apart
    assert not torch.allclose(codec.embed(audio), codec.embed(audio.flip(1)))


@pytest.mark.slow
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


def test_no_levels_decode_to_what_zero_embeddings_give():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(2, 2, 4000), levels=0)
    assert codes.shape == (2, 0, 3)
    assert codec.bits(codes) == 0
    decoded = codec.decode(codes, length=4000)
    assert_same_audio(decoded, codec.synthesize(torch.zeros(2, 6, 3), 4000))


def test_examples_of_a_batch_do_not_touch_each_other():
    codec = tiny_codec()
    audio = torch.randn(3, 2, 4000)
    whole = codec.embed(audio)
    alone = torch.cat([codec.embed(example[None]) for example in audio])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    alone = torch.cat([codec.synthesize(example[None], 4000) for example in whole])
    torch.testing.assert_close(codec.synthesize(whole, 4000), alone, rtol=1e-4, atol=1e-5)


def test_decoding_without_a_length_gives_all_that_the_codes_stand_for():
    codec = tiny_codec()
    codes = codec.encode(torch.randn(1, 2, 3000))
    assert torch.equal(codec.decode(codes), codec.decode(codes, length=2 * TOKEN))


def test_it_is_an_audio_codec():
    codec = tiny_codec()
    assert isinstance(codec, AudioCodec)
    assert codec.is_causal


def test_a_training_pass_gives_audio_a_loss_and_gradients_for_every_parameter():
    codec = built(tiny_config()).train().requires_grad_(True)
    audio = torch.randn(4, 2, 5 * TOKEN)
    codec(audio)  # 20 vectors start the codebooks
    reconstruction = codec(audio[..., :-100])
    assert reconstruction.audio.shape == (4, 2, 5 * TOKEN - 100)
    (reconstruction.audio.square().mean() + reconstruction.commitment_loss).backward()
    assert [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("shape", [(1, 0, 100), (1, 3, 100), (1, 1, 0), (2, 100), (1, 2, 0)])
def test_wrong_audio_is_refused_with_both_shapes(shape):
    message = f"audio has the shape {shape}; this codec takes [batch, 2, samples], samples > 0"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_codec().encode(torch.zeros(shape))


def test_codes_of_more_levels_than_trained_are_refused():
    with pytest.raises(ValueError, match=r"levels = 5 is not possible: this codec was trained with 4"):
        tiny_codec().decode(torch.zeros(1, 5, 1, dtype=torch.int64), length=100)


def test_no_codes_are_refused():
    with pytest.raises(ValueError, match="0 frames of codes stand for no sample; allowed: 1 frame or more"):
        tiny_codec().decode(torch.zeros(1, 4, 0, dtype=torch.int64))


@pytest.mark.parametrize(("lowest", "highest"), [(-2, 3), (0, 16), (0, 2**62)])
def test_codes_that_no_codebook_has_are_refused(lowest, highest):
    codes = torch.tensor([[[lowest, highest]]])
    message = f"codes go from {lowest} to {highest}; allowed: 0..15, or -1 for absent"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_codec().decode(codes)


@pytest.mark.parametrize(
    "codes", [torch.zeros(4, 3, dtype=torch.int64), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3, dtype=torch.int32)]
)
def test_codes_of_another_kind_are_refused(codes):
    message = f"codes are {codes.dtype} {list(codes.shape)}; allowed: int64 [batch, levels, frames]"
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny_codec().decode(codes)


@pytest.mark.parametrize("length", [0, 1920, 3841])
def test_a_length_that_the_codes_do_not_stand_for_is_refused(length):
    codes = torch.zeros(1, 4, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=rf"2 frames of codes stand for 1921 \.\. 3840 samples, not for length = {length}"
    ):
        tiny_codec().decode(codes, length=length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frontend": "wavelet"}, "model.frontend = 'wavelet' is not known; allowed: " + ", ".join(FRONT_ENDS)),
        ({"fusion": 8}, "model.fusion = 8 is not possible: .* allowed: 0..7, 'input' or 'never'"),
        ({"fusion": -1}, "model.fusion = -1 is not possible: .* allowed: 0..7, 'input' or 'never'"),
        ({"fusion": "output"}, "model.fusion = 'output' is not possible: .* allowed: 0..7, 'input' or 'never'"),
        ({"split": 8}, "model.split = 8 is not possible: .* allowed: 0..7, 'output' or 'never'"),
        ({"split": "input"}, "model.split = 'input' is not possible: .* allowed: 0..7, 'output' or 'never'"),
        ({"fusion": True}, "model.fusion = True is not possible: .* allowed: 0..7, 'input' or 'never'"),
        ({"split": 2.0}, "model.split = 2.0 is not possible: .* allowed: 0..7, 'output' or 'never'"),
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
import spectrostream.bitstream.files, spectrostream.weights
import spectrostream.adversarial.stft_discriminator, spectrostream.adversarial.losses
from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
quantizer = QuantizerConfig(levels=2, codebook_size=4, initial_vectors=4)
codec = SpectroStream(SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=4, quantizer=quantizer))
audio = torch.randn(1, 2, 2000)
assert codec.decode(codec.encode(audio), length=2000).shape == audio.shape
assert codec(audio).audio.shape == audio.shape
"""


@pytest.mark.slow
def test_the_codec_works_where_only_torch_is_installed():
    done = subprocess.run([sys.executable, "-c", PURE_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
