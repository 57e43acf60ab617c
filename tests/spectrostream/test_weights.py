"""Weights files: what comes back, what is left out, and what is said of a file that holds no codec."""

import dataclasses
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import spectrostream.atomic_files
from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.errors import UserError
from spectrostream.other_codecs.dac import Dac, DacConfig
from spectrostream.registry import CODECS, build_codec, config_from_plain
from spectrostream.weights import (
    WeightsError,
    codec_fingerprint,
    load_codec,
    load_pretrained,
    save_codec,
    save_official,
)

QUANTIZER = QuantizerConfig(levels=3, codebook_size=16, initial_vectors=16, bypass_probability=0.25)
CONFIGS = {
    "stft": SpectroStreamConfig(encoder_width=2, decoder_width=4, embedding_dim=6, fusion=3, quantizer=QUANTIZER),
    "waveform": SpectroStreamConfig(
        frontend="waveform", encoder_width=2, decoder_width=2, embedding_dim=6, split="output", quantizer=QUANTIZER
    ),
    "dac": DacConfig(encoder_width=2, decoder_width=16, strides=(2, 4, 8, 8), levels=2, codebook_size=16),
}


def codec_of(name: str = "stft") -> torch.nn.Module:
    torch.manual_seed(1)
    return build_codec(CONFIGS[name]).eval()


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "codec.safetensors"
    save_codec(codec_of(), path)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def rewrite(path: Path, *, tensors: dict[str, torch.Tensor] | None = None, **metadata: str | None) -> None:
    """The file again, with other tensors or metadata and, unless given, the checksum of these; None removes."""
    tensors = load_file(path) if tensors is None else tensors
    merged = {key: value for key, value in (metadata_of(path) | metadata).items() if value is not None}
    if "sha256" not in metadata:
        merged["sha256"] = content_sha256(merged.get("config", ""), tensors)
    save_file(tensors, path, metadata=merged)


def content_sha256(config: str, tensors: dict[str, torch.Tensor]) -> str:
    """What the file's documentation says, spelled out once more."""
    digest = hashlib.sha256(config.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def edited_config(path: Path, edit: Callable[[dict], object]) -> None:
    plain = json.loads(metadata_of(path)["config"])
    edit(plain)
    rewrite(path, config=json.dumps(plain))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_saved_codec_comes_back_with_identical_codes_and_audio(name, tmp_path):
    codec, path = codec_of(name), tmp_path / "codec.safetensors"
    save_codec(codec, path)
    loaded = load_codec(path)
    assert type(loaded) is type(codec)
    assert loaded.config == codec.config == CONFIGS[name]
    assert not loaded.training
    audio = 0.1 * torch.randn(2, 2, 5000)
    codes = codec.encode(audio)
    assert torch.equal(loaded.encode(audio), codes)
    assert torch.equal(loaded.decode(codes, length=5000), codec.decode(codes, length=5000))
    assert codec_fingerprint(loaded) == codec_fingerprint(codec)
    assert [file.name for file in tmp_path.iterdir()] == ["codec.safetensors"]


@pytest.mark.slow
def test_a_trained_codecs_codebooks_are_saved_but_not_how_they_learn(tmp_path):
    codec, path = codec_of(), tmp_path / "codec.safetensors"
    codec(torch.randn(4, 2, 8000))
    codec(torch.randn(4, 2, 8000))
    assert codec.quantizer.learning.is_started
    save_codec(codec, path)
    state = load_file(path)
    assert state.keys() == {name for name in codec.state_dict() if not name.startswith("quantizer.learning.")}
    assert torch.equal(state["quantizer.codebooks"], codec.quantizer.codebooks)
    assert "quantizer.learning.usage" in codec.state_dict()


def test_the_file_names_its_format_configuration_and_checksum(saved):
    metadata = metadata_of(saved)
    assert metadata.keys() == {"format", "version", "config", "sha256"}
    assert (metadata["format"], metadata["version"]) == ("spectrostream-codec", "2")
    assert config_from_plain(json.loads(metadata["config"])) == CONFIGS["stft"]
    assert metadata["sha256"] == content_sha256(metadata["config"], load_file(saved))
    assert metadata["sha256"].startswith(codec_fingerprint(codec_of()).hex())


@pytest.mark.slow
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_any_flipped_bit_is_found(where, bit, saved):
    content = saved.read_bytes()
    position = int(where * len(content))
    damaged = saved.with_name("damaged.safetensors")
    damaged.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
    with pytest.raises(WeightsError):
        load_codec(damaged)


def test_damage_names_both_checksums(saved):
    tensors = load_file(saved)
    written = metadata_of(saved)["sha256"]
    tensors["encoder.first.bias"][0] += 1e-7
    rewrite(saved, tensors=tensors, sha256=written)
    found = content_sha256(metadata_of(saved)["config"], tensors)
    with pytest.raises(WeightsError, match=f"is damaged: the SHA-256 of its content is {found}, not {written}"):
        load_codec(saved)
    rewrite(saved, sha256=None)
    with pytest.raises(WeightsError, match="not None"):
        load_codec(saved)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_survives_json(name):
    plain = json.loads(json.dumps(dataclasses.asdict(CONFIGS[name])))
    assert config_from_plain(plain) == CONFIGS[name]


def test_every_kind_that_a_file_may_hold_can_be_built():
    assert [entry.config().kind for entry in CODECS.values()] == list(CODECS)


def test_an_interrupted_save_leaves_the_old_file_whole(saved, monkeypatch):
    before = saved.read_bytes()

    def interrupted(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(spectrostream.atomic_files.os, "fsync", interrupted)
    with pytest.raises(OSError, match="disk full"):
        save_codec(codec_of("waveform"), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_saving_again_replaces(saved):
    save_codec(codec_of("waveform"), saved)
    assert load_codec(saved).config == CONFIGS["waveform"]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask):
    former = os.umask(umask)
    try:
        save_codec(codec_of("stft"), tmp_path / "codec.safetensors")
        save_official(codec_of("stft"), tmp_path / "official")
    finally:
        os.umask(former)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.safetensors")}
    assert modes == {0o666 & ~umask}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no weights file .*/nothing\.safetensors"):
        load_codec(tmp_path / "nothing.safetensors")
    with pytest.raises(WeightsError, match="there is no weights file"):
        load_codec(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is a text file and no tensors\n" * 20, b"\x80\x02}q\x00."])
def test_a_file_that_is_no_safetensors_file_is_refused(content, tmp_path):
    path = tmp_path / "codec.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"codec\.safetensors is not a readable safetensors file: "):
        load_codec(path)


@pytest.mark.parametrize("kept", [5, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept, saved):
    content = saved.read_bytes()
    saved.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(WeightsError, match="is not a readable safetensors file"):
        load_codec(saved)


def test_tensors_of_something_else_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(
        WeightsError, match=r"holds no codec of this project \(its format is None, not 'spectrostream-codec'"
    ):
        load_codec(path)
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"its format is 'pt'"):
        load_codec(path)


def test_another_version_is_refused(saved):
    rewrite(saved, version="1")
    with pytest.raises(WeightsError, match="is of format version '1'; this version reads '2'"):
        load_codec(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "unusable configuration: 'config'"),
        ("{", "unusable configuration"),
        # Of any codec, and of a SpectroStream.
        ("[1]", "kind = None is not a known codec; allowed: spectrostream, dac|kind None, not a SpectroStream"),
        ('{"kind": "encodec"}', "kind = 'encodec' is not a known codec|kind 'encodec', not a SpectroStream"),
        ('{"kind": "spectrostream", "fusoin": 3}', "unusable configuration: SpectroStreamConfig has no fusoin"),
        (
            '{"kind": "spectrostream", "quantizer": 5}',
            "unusable configuration: QuantizerConfig is made of keys and values",
        ),
        (
            '{"kind": "spectrostream", "quantizer": {"level": 5}}',
            "unusable configuration: QuantizerConfig has no level",
        ),
        ('{"kind": "spectrostream", "fusion": 9}', r"unusable configuration: model\.fusion = 9 is not possible"),
        ('{"kind": "spectrostream", "encoder_width": "wide"}', "unusable configuration"),
        ('{"kind": "spectrostream", "encoder_width": 2.5}', "unusable configuration"),
    ],
)
def test_an_unusable_configuration_is_refused(config, message, saved):
    rewrite(saved, config=config)
    for load in (load_codec, load_pretrained):
        with pytest.raises(WeightsError, match=message):
            load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"encoder_width": 4}, "does not fit its own configuration: .*size mismatch"),
        ({"fusion": 5}, r"does not fit its own configuration: unknown tensor encoder\.blocks\.3\.shortcut"),
        ({"split": 2}, r"does not fit its own configuration: "),
        ({"channels": 1}, "does not fit its own configuration: "),
    ],
)
def test_an_edited_configuration_is_found_out(edit, message, saved):
    edited_config(saved, lambda plain: plain.update(edit))
    with pytest.raises(WeightsError, match=re.compile(message, re.DOTALL)):
        load_codec(saved)


def test_a_missing_tensor_is_named(saved):
    tensors = load_file(saved)
    del tensors["encoder.blocks.3.resampling.bias"]
    rewrite(saved, tensors=tensors)
    with pytest.raises(WeightsError, match=r"configuration: missing tensor encoder\.blocks\.3\.resampling\.bias"):
        load_codec(saved)


def test_a_foreign_tensor_is_named(saved):
    rewrite(saved, tensors=load_file(saved) | {"attention.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"configuration: unknown tensor attention\.weight"):
        load_codec(saved)


def test_the_command_line_may_show_it_without_a_traceback():
    assert issubclass(WeightsError, UserError)


def test_a_fingerprint_is_eight_bytes_that_stay():
    assert len(codec_fingerprint(codec_of())) == 8
    assert codec_fingerprint(codec_of()) == codec_fingerprint(codec_of())


@pytest.mark.parametrize("name", ["encoder.first.weight", "decoder.last.bias", "quantizer.codebooks"])
@torch.no_grad()
def test_a_fingerprint_changes_with_any_weight(name):
    codec = codec_of()
    before = codec_fingerprint(codec)
    codec.state_dict()[name].flatten()[-1].add_(1e-6)
    assert codec_fingerprint(codec) != before


def test_a_fingerprint_changes_with_the_configuration_alone():
    # the same shapes, so the same weights: only the configuration tells them apart
    config = dataclasses.replace(CONFIGS["stft"], quantizer=dataclasses.replace(QUANTIZER, decay=0.5))
    torch.manual_seed(1)
    other = SpectroStream(config)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in codec_of().state_dict().items())
    assert codec_fingerprint(other) != codec_fingerprint(codec_of())


def test_a_fingerprint_does_not_change_with_what_only_training_needs():
    codec = codec_of()
    before = codec_fingerprint(codec)
    codec.quantizer.learning.usage.fill_(3)
    assert codec_fingerprint(codec) == before


def test_a_dac_is_rebuilt_as_a_dac(tmp_path):
    path = tmp_path / "dac.safetensors"
    save_codec(codec_of("dac"), path)
    loaded = load_codec(path)
    assert isinstance(loaded, Dac)
    assert loaded.config.strides == (2, 4, 8, 8)


def test_loaded_codebooks_go_on_learning_from_where_they_are(tmp_path):
    """Fine-tuning must not collect vectors again and overwrite what was trained."""
    save_codec(codec_of(), tmp_path / "codec.safetensors")
    loaded = load_codec(tmp_path / "codec.safetensors")
    before = loaded.quantizer.codebooks.clone()
    loaded(torch.randn(1, 2, 1920) * 0.1)
    moved = (loaded.quantizer.codebooks - before).abs().amax(-1) > 1e-6
    assert loaded.quantizer.learning.is_started
    assert 0 < moved.sum() <= moved.numel()
    # One token moves one entry of each level by the moving average alone; none jumps.
    assert moved.sum(1).eq(1).all()
