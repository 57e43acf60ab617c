"""EnCodec behind our interface: weights that are missing, damaged or of another codec, and what is refused."""

import json
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_encodec import LENGTHS, TINY, codes_of, noise

from spectrostream.errors import UserError
from spectrostream.other_codecs.dac import PretrainedWeightsError
from spectrostream.other_codecs.encodec import Encodec, EvaluationOnlyError, UntrainedLevelsError
from spectrostream.other_codecs.encodec_config import EncodecConfig


@pytest.fixture(scope="module")
def encodec() -> Encodec:
    torch.manual_seed(0)
    return Encodec(TINY).eval()


@pytest.fixture
def folder(tmp_path, encodec):
    encodec.model.save_pretrained(tmp_path)
    return tmp_path


# --- weights ---------------------------------------------------------------------------------------------------------


def test_pretrained_weights_load_from_a_folder(folder, encodec):
    loaded = Encodec.from_pretrained(folder)
    audio = noise(1, 1000)
    assert loaded.config == TINY
    assert not loaded.training
    assert torch.equal(loaded.encode(audio).indices, encodec.encode(audio).indices)


def test_the_configuration_rebuilds_the_codec(encodec):
    """As a saved codec is: an equal one with random weights, then its tensors."""
    rebuilt = Encodec(encodec.config)
    rebuilt.load_state_dict(encodec.state_dict(), strict=True)
    audio = noise(1, 1000)
    codes = encodec.encode(audio)
    assert torch.equal(rebuilt.encode(audio).indices, codes.indices)
    assert torch.equal(rebuilt.decode(codes, length=1000), encodec.decode(codes, length=1000))


def test_missing_weights_say_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download facebook/encodec_48khz"):
        Encodec.from_pretrained()


def test_incomplete_weights_are_refused(folder):
    """transformers would fill the gap with random numbers."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layers.0.conv.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(PretrainedWeightsError, match=r"lack 1 tensors, encoder\.layers\.0\.conv\.weight"):
        Encodec.from_pretrained(folder)


@settings(max_examples=8)
@given(keep=st.floats(0, 0.999))
def test_damaged_weights_are_refused(encodec, keep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    encodec.model.save_pretrained(folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(PretrainedWeightsError, match="cannot be read"):
        Encodec.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampling_rate", 24000),
        ("use_causal_conv", True),
        ("normalize", False),
        ("chunk_length_s", None),
        ("dilation_growth_rate", 3),
        ("pad_mode", "constant"),
        ("target_bandwidths", [96.0, 97.0, 384.0]),
    ],
)
def test_another_encodec_is_refused(folder, key, value):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(PretrainedWeightsError, match="is not the 48 kHz EnCodec"):
        Encodec.from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": "dac"}', '{"hidden_size": "wide"}'])
def test_a_folder_with_another_config_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(PretrainedWeightsError, match=r"hf download|allowed"):
        Encodec.from_pretrained(folder)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [-1, 0, 3, 7, 9])
def test_levels_that_are_no_trained_rate(encodec, levels):
    with pytest.raises(UntrainedLevelsError, match=r"allowed: 1 \(48 kbps\), 2 \(96 kbps\), 8 \(384 kbps\)"):
        encodec.encode(noise(1, 100), levels=levels)
    assert issubclass(UntrainedLevelsError, UserError)


@pytest.mark.parametrize("shape", [(2, 100), (1, 1, 100), (1, 3, 100), (1, 2, 0)])
def test_audio_of_another_shape(encodec, shape):
    with pytest.raises(ValueError, match=r"takes \[batch, 2, samples\]"):
        encodec.encode(torch.zeros(shape))


@settings(max_examples=25)
@given(samples=LENGTHS, other=LENGTHS)
def test_codes_of_another_length(encodec, samples, other):
    assume(encodec.chunk_frames(samples) != encodec.chunk_frames(other))
    codes = codes_of(encodec, samples, 2)
    if sum(encodec.chunk_frames(samples)) == sum(encodec.chunk_frames(other)):
        assume(len(encodec.chunk_frames(samples)) != len(encodec.chunk_frames(other)))
    with pytest.raises(ValueError, match="give decode the length that was encoded"):
        encodec.decode(codes, length=other)


@pytest.mark.parametrize(("levels", "length"), [(9, 100), (0, 100), (1, 0), (1, -5)])
def test_codes_that_are_none(encodec, levels, length):
    with pytest.raises(ValueError, match=r"allowed: \[batch, 1\.\.8 levels, frames\]"):
        encodec.decode(codes_of(encodec, 100, levels), length=length)


def test_training_is_refused(encodec):
    with pytest.raises(EvaluationOnlyError, match=r"model\.kind = encodec is for evaluation only"):
        encodec(noise(1, 100))
    assert issubclass(EvaluationOnlyError, UserError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channels", 3),
        ("width", 3),
        ("strides", ()),
        ("strides", (7, 11)),
        ("strides", (0, 4)),
        ("residual_layers", 0),
        ("lstm_layers", 0),
        ("embedding_dim", 1),
        ("codebook_size", 1000),
        ("bandwidths", ()),
        ("bandwidths", (1.0,)),
        ("bandwidths", (6.0, 3.0)),
        ("bandwidths", (3.0, 3.5)),
        ("chunk_seconds", 0),
        ("chunk_seconds", 0.01),
        ("overlap", 1.0),
        ("overlap", -0.1),
        ("overlap", math.nan),
    ],
)
def test_impossible_configurations_are_refused(key, value):
    with pytest.raises(ValueError, match=f"model.{key} = .*allowed"):
        EncodecConfig(**{key: value})
