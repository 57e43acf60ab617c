"""Channels as data: mono, stereo, six channels, groups of channels, and groups that never meet."""

import dataclasses
import json
import re

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
    reached,
    tiny_codec,
    tiny_config,
    whole_audio,
    whole_codes,
)
from torch import Tensor

from ablations.compose import ConfigError, load_experiment
from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.frontends import FRONT_ENDS
from spectrostream.registry import config_from_plain
from spectrostream.weights import load_codec, save_codec

PAIRS = ((0, 1), (2, 3))
FIVE_ONE = ((0, 1), (4, 5), (2, 3))  # front, back, centre and low frequency


def own_tokens(levels: int = 4, **changes: object) -> SpectroStream:
    quantizer = QuantizerConfig(levels=levels, codebook_size=16, initial_vectors=16)
    return built(tiny_config(**{"fusion": "never", "split": "never", "quantizer": quantizer} | changes))


@pytest.mark.parametrize("frontend", FRONT_ENDS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels_goes_in_and_comes_out(frontend, channels):
    codec = tiny_codec(frontend=frontend, channels=channels)
    audio = torch.randn(2, channels, TOKEN + 9)
    codes = codec.encode(audio)
    assert codes.shape == (2, 4, 2)
    assert codec.decode(codes, length=TOKEN + 9).shape == audio.shape


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_fusions_meet_all_splits(fusion):
    audio = torch.randn(1, 2, TOKEN + 9)
    for split in SPLITS:
        codec = tiny_codec(fusion=fusion, split=split)
        tokens = 2 if fusion == "never" else 1
        embeddings = codec.embed(audio)
        assert embeddings.shape == (1, 6 * tokens, 2)
        assert codec.quantizer.codebooks.shape == (4 // tokens, 16, 6)
        decoded = codec.synthesize(embeddings, TOKEN + 9)
        assert decoded.shape == audio.shape
        assert decoded.isfinite().all()
        # no channel is silent, and they differ
        assert (decoded.std(-1) > 0).all()
        assert not torch.allclose(decoded[:, 0], decoded[:, 1])


# Groups.


@pytest.mark.parametrize(("fusion", "split"), [(6, 6), ("never", "never"), ("input", 0)])
@pytest.mark.parametrize("groups", [FIVE_ONE, (), ((3, 0, 5), (1, 2, 4))], ids=str)
def test_channels_in_another_order_with_their_groups_give_the_same_codes(fusion, split, groups):
    order = [4, 2, 0, 5, 1, 3]
    moved = tuple(tuple(order.index(channel) for channel in group) for group in groups)
    if not groups:  # each alone: spelled out, as a permutation cannot be told from []
        groups, moved = (tuple((c,) for c in range(6)), tuple((order.index(c),) for c in range(6)))
    changes = {"channels": 6, "fusion": fusion, "split": split}
    codec, other = tiny_codec(channel_groups=groups, **changes), built(tiny_config(channel_groups=moved, **changes))
    other.load_state_dict(codec.state_dict())
    audio = torch.randn(1, 6, TOKEN + 9)
    codes = codec.encode(audio)
    assert torch.equal(other.encode(audio[:, order]), codes)
    decoded, reordered = (each.decode(codes, length=TOKEN + 9) for each in (codec, other))
    assert torch.equal(reordered, decoded[:, order])
    stream = other.streaming()
    assert_same_audio(torch.cat((stream.through(audio[:, order]), stream.finish()), dim=-1), reordered)


def test_no_groups_are_each_channel_alone():
    alone, spelled = tiny_codec(), tiny_codec(channel_groups=((0,), (1,)))
    audio = torch.randn(1, 2, TOKEN)
    assert torch.equal(alone.encode(audio), spelled.encode(audio))


@pytest.mark.parametrize("fusion", [*range(8), "never"])
def test_a_group_is_seen_together_and_the_others_apart_until_fusion(fusion):
    codec = tiny_codec(channels=4, channel_groups=PAIRS, fusion=fusion)
    seen: list[Tensor] = []
    layer = codec.encoder.projection if fusion == "never" else codec.encoder.blocks[fusion]
    hook = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    audio = torch.randn(1, 4, TOKEN)
    for silenced in (None, 0, 1, 2, 3):
        changed = audio.clone()
        if silenced is not None:
            changed[:, silenced] = 0
        codec.embed(changed)
    hook.remove()
    front, back = zip(*(x.flatten(0, 1).chunk(2) for x in seen), strict=True)
    for channel in range(4):
        for group, parts in enumerate((front, back)):
            is_same = torch.allclose(parts[0], parts[channel + 1], atol=1e-6)
            assert is_same == (channel // 2 != group)


def test_weights_are_shared_among_groups():
    def sizes(**changes: object) -> tuple[int, int]:
        codec = tiny_codec(fusion="never", split="never", **changes)
        encoder, decoder = ([p.numel() for p in part.parameters()] for part in (codec.encoder, codec.decoder))
        return sum(encoder), sum(decoder)

    assert sizes() == sizes(channels=6) == sizes(channels=1)
    assert sizes(channels=4, channel_groups=PAIRS) == sizes(channels=6, channel_groups=FIVE_ONE)
    assert sizes(channels=4, channel_groups=PAIRS) == sizes(channel_groups=((0, 1),))


@pytest.mark.parametrize(
    "groups",
    [
        [[0], [1, 2]], [[0, 1]], [[0, 1], [1, 2]], [[0], [1], [3]], [[]], [[0, 1, 2], []], [[-1], [0], [1]], [0, 1, 2],
        [[0], [1], ["2"]], [[0.0], [1.0], [2.0]], [[True], [False], [2]], None, "012", [[[0]], [1], [2]],
    ],
    ids=str,
)  # fmt: skip
def test_groups_that_do_not_share_out_the_channels_are_refused_with_the_key(groups):
    message = (
        f"model.channel_groups = {groups!r} is not possible; allowed: each of the channels 0..2 once, "
        "in groups of one size, or [] for each channel alone"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        SpectroStreamConfig(channels=3, channel_groups=groups)


@settings(max_examples=30)
@given(data=st.data(), size=st.integers(1, 3), count=st.integers(1, 4))
def test_every_sharing_out_in_groups_of_one_size_is_taken(data, size, count):
    order = data.draw(st.permutations(range(size * count)))
    groups = [list(order[start : start + size]) for start in range(0, size * count, size)]
    config = SpectroStreamConfig(channels=size * count, channel_groups=groups)
    assert config.groups == groups
    assert config.encoder_groups == config.decoder_groups == count
    assert config_from_plain(json.loads(json.dumps(dataclasses.asdict(config)))) == config


# Mono into several channels.


@pytest.mark.parametrize("changes", [{}, {"channels": 6}, {"fusion": "never", "split": "never"}], ids=str)
def test_mono_is_the_same_signal_in_every_channel(changes):
    codec = tiny_codec(**changes)
    mono = torch.randn(2, 1, TOKEN + 9)
    tiled = mono.repeat(1, codec.channels, 1)
    assert torch.equal(codec.encode(mono), codec.encode(tiled))
    assert torch.equal(codec.embed(mono), codec.embed(tiled))
    assert codec.decode(codec.encode(mono)).shape == (2, codec.channels, 2 * TOKEN)


# Never fused.


@pytest.mark.parametrize("channel", [0, 1])
def test_each_channels_tokens_depend_on_that_channel_only(channel):
    codec, audio = own_tokens(), torch.randn(1, 2, 6 * TOKEN)
    other = audio.clone()
    other[:, channel] = torch.randn(1, 6 * TOKEN)
    before, after = (codec.embed(x).chunk(2, dim=1) for x in (audio, other))
    torch.testing.assert_close(after[1 - channel], before[1 - channel])
    assert not torch.allclose(after[channel], before[channel])
    # so do the codes: levels 0, 2 are the left channel's, 1, 3 the right one's
    codes, changed = codec.encode(audio), codec.encode(other)
    assert torch.equal(changed[:, 1 - channel :: 2], codes[:, 1 - channel :: 2])
    assert not torch.equal(changed[:, channel::2], codes[:, channel::2])


@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_swapped_channels_swap_tokens_codes_and_audio(frontend):
    codec, audio = own_tokens(frontend=frontend), torch.randn(2, 2, 2 * TOKEN)
    codes, swapped = codec.encode(audio), codec.encode(audio.flip(1))
    assert torch.equal(swapped, codes[:, [1, 0, 3, 2]])
    torch.testing.assert_close(codec.embed(audio.flip(1)), torch.cat(codec.embed(audio).chunk(2, 1)[::-1], dim=1))
    decoded, swapped_decoded = codec.decode(codes), codec.decode(swapped)
    assert_same_audio(swapped_decoded, decoded.flip(1))


def test_each_channels_audio_depends_on_its_tokens_only():
    codec = own_tokens()
    embeddings = torch.randn(1, 12, 3)
    for channel in range(2):
        reached_positions = reached(lambda x: codec.synthesize(x, 3 * TOKEN)[:, channel], embeddings, axis=1)  # noqa: B023
        assert reached_positions == (6 * channel, 6 * channel + 5)


@pytest.mark.parametrize("split", [0, 3, 7, "output"])
def test_a_split_inside_the_decoder_joins_the_tokens_of_the_channels(split):
    codec = tiny_codec(fusion="never", split=split)
    for channel in range(2):
        reached_positions = reached(lambda x: codec.synthesize(x, 3 * TOKEN)[:, channel], torch.randn(1, 12, 3), axis=1)  # noqa: B023
        assert reached_positions == (0, 11)


def test_joint_tokens_are_parted_by_the_projection_where_the_split_is_never():
    codec = tiny_codec(fusion=6, split="never")
    for channel in range(2):
        reached_positions = reached(lambda x: codec.synthesize(x, 3 * TOKEN)[:, channel], torch.randn(1, 6, 3), axis=1)  # noqa: B023
        assert reached_positions == (0, 5)
    # its output is one column per channel, the left one first; from there on the channels do not meet
    audio, embeddings = codec.synthesize(torch.zeros(1, 6, 2), TOKEN), torch.zeros(1, 6, 2)
    column = codec.decoder.projection.second.weight.shape[0] // 2

    def swapped(_: object, __: object, output: Tensor) -> Tensor:
        return torch.cat((output[:, column:], output[:, :column]), dim=1)

    hook = codec.decoder.projection.register_forward_hook(swapped)
    assert_same_audio(codec.synthesize(embeddings, TOKEN), audio.flip(1))
    hook.remove()


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_the_rate_is_that_of_a_joint_codec(levels):
    joint = tiny_codec(quantizer=QuantizerConfig(levels=levels, codebook_size=16, initial_vectors=16))
    codec, audio = own_tokens(levels), torch.randn(1, 2, 4 * TOKEN)
    assert codec.levels == joint.levels == levels
    codes = codec.encode(audio)
    assert codes.shape == joint.encode(audio).shape == (1, levels, 4)
    assert codec.bits(codes) == joint.bits(codes) == levels * 4 * 4
    for chosen in range(1, levels + 1):
        assert codec.kbps(chosen) == joint.kbps(chosen)
        assert codec.levels_at(codec.kbps(chosen)) == chosen


@pytest.mark.parametrize("levels", [3, 4])
def test_levels_take_turns_and_any_prefix_decodes(levels):
    codec, audio = own_tokens(levels), torch.randn(2, 2, 2 * TOKEN)
    codes, books = codec.encode(audio), codec.quantizer.codebooks
    for channel, embeddings in enumerate(codec.embed(audio).chunk(2, dim=1)):
        rest = embeddings.transpose(1, 2)
        for depth, level in enumerate(range(channel, levels, 2)):
            nearest = torch.cdist(rest, books[depth].expand(2, -1, -1)).argmin(-1)
            assert torch.equal(codes[:, level], nearest)
            rest = rest - books[depth][nearest]
    for prefix in range(levels + 1):
        assert torch.equal(codec.encode(audio, levels=prefix), codes[:, :prefix])
        padded = codes.clone()
        padded[:, prefix:] = -1
        expected = whole_audio(codec, padded, 2 * TOKEN)
        assert_same_audio(codec.decode(codes[:, :prefix]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("split", ["never", 6, "output"])
def test_training_without_fusion_reaches_every_parameter(levels, split):
    quantizer = QuantizerConfig(levels=levels, codebook_size=16, initial_vectors=16, bypass_probability=0.0)
    codec = own_tokens(quantizer=quantizer, split=split).train().requires_grad_(True)
    audio = torch.randn(4, 2, 4 * TOKEN)
    codec(audio)  # 32 tokens start the codebooks of 16
    assert codec.quantizer.learning.is_started
    reconstruction = codec(audio)
    assert reconstruction.audio.shape == audio.shape
    assert reconstruction.commitment_loss.isfinite()
    assert reconstruction.commitment_loss > 0
    (reconstruction.audio.square().mean() + reconstruction.commitment_loss).backward()
    assert [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_group_of_all_channels_has_nothing_to_join():
    joint, never = tiny_codec(channel_groups=((0, 1),)), tiny_codec(channel_groups=((0, 1),), fusion="never")
    audio = torch.randn(1, 2, 2 * TOKEN)
    assert never.config.token_groups == 1
    assert torch.equal(never.embed(audio), joint.embed(audio))
    mono = tiny_codec(channels=1, fusion="never", split="never")
    assert mono.embed(audio[:, :1]).shape == (1, 6, 2)
    assert mono.decode(mono.encode(audio[:, :1])).shape == (1, 1, 2 * TOKEN)


# As data: files and the command line.

LAYOUTS = {
    "pairs": {"channels": 4, "channel_groups": [[0, 1], [2, 3]], "fusion": "never", "split": "never"},
    "5.1": {"channels": 6, "channel_groups": [[0, 1], [4, 5], [2, 3]]},
    "own tokens": {"fusion": "never", "split": 7},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_channel_layout_survives_a_weights_file(name, tmp_path):
    codec = built(tiny_config(**LAYOUTS[name]))
    save_codec(codec, tmp_path / "codec.safetensors")
    loaded = load_codec(tmp_path / "codec.safetensors")
    assert loaded.config == codec.config
    audio = torch.randn(1, codec.channels, TOKEN)
    codes = whole_codes(codec, audio)
    assert torch.equal(loaded.encode(audio), codes)
    assert_same_audio(loaded.decode(codes), whole_audio(codec, codes, TOKEN))


def test_a_channel_layout_is_typed_on_the_command_line():
    words = ["model.channels=4", "model.channel_groups=[[0,1],[2,3]]", "model.fusion=never", "model.split=never"]
    model = load_experiment("tiny", words).model
    assert isinstance(model, SpectroStreamConfig)
    assert model.groups == [[0, 1], [2, 3]]
    assert (model.fusion, model.split, model.token_groups) == ("never", "never", 2)
    assert config_from_plain(dataclasses.asdict(model)) == model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.channel_groups=[[0],[0]]"], "model.channel_groups = [[0], [0]] is not possible"),
        (["model.channel_groups=[0,1]"], "model.channel_groups"),
        (["model.channel_groups=[[a],[1]]"], "model.channel_groups"),
        (["model.fusion=allways"], "model.fusion = 'allways' is not possible"),
    ],
)
def test_a_wrong_channel_layout_on_the_command_line_is_refused_with_its_key(words, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment("tiny", words)
