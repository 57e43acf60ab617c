"""The three files of the official release, and what a source of weights may be."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from official_setup import FIXTURES, SMALL, fixture_params, small_codec, write_official
from safetensors.numpy import load_file, save_file

from spectrostream import SpectroStream, SpectroStreamConfig
from spectrostream.other_codecs.dac import Dac, DacConfig
from spectrostream.weight_files.official_files import (
    OFFICIAL_NAMES,
    RELEASED,
    require_released,
)
from spectrostream.weight_files.official_weights import official_params
from spectrostream.weights import (
    WeightsError,
    codec_fingerprint,
    from_official,
    load_pretrained,
    save_codec,
    save_official,
)

DECODED = ("stereo_m2", "stereo_0", "mono")


def assert_within_peak(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def official(tmp_path) -> Path:
    return write_official(fixture_params("mono"), tmp_path / "official")


def edit(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODED)
@torch.no_grad()
def test_official_files_give_the_official_outputs(name, tmp_path):
    arrays = np.load(FIXTURES / f"oracle_{name}.npz")
    codec = SpectroStream.from_pretrained(write_official(fixture_params(name), tmp_path))
    assert not codec.training
    codes = codec.encode(torch.from_numpy(arrays["in/audio"]).T[None])
    assert torch.equal(codes[0], torch.from_numpy(arrays["out/codes"]).T.long())
    waveform = arrays["out/waveform_padded"]
    assert_within_peak(codec.decode(codes)[0], torch.from_numpy(waveform.reshape(len(waveform), -1)).T)


def test_the_folder_above_and_a_string_will_do(official, tmp_path):
    shutil.move(official, tmp_path / "repository" / "resources" / "spectrostream")
    expected = codec_fingerprint(load_pretrained(tmp_path / "repository" / "resources" / "spectrostream"))
    assert codec_fingerprint(load_pretrained(str(tmp_path / "repository"))) == expected


@pytest.mark.parametrize("name", DECODED)
def test_official_parameters_come_back_as_they_were(name):
    params = fixture_params(name)
    codec = from_official(params)
    written = official_params(codec.config, codec.state_dict())
    assert written.keys() == params.keys()
    for path, value in params.items():
        np.testing.assert_array_equal(written[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"frontend": "waveform"}, r"model\.frontend = 'waveform'; it knows 'stft'"),
        ({"channels": 4, "channel_groups": [[0, 1], [2, 3]]}, r"model\.channel_groups = \[\[0, 1\], \[2, 3\]\]"),
        ({"fusion": "never", "split": "never"}, r"model\.fusion = 'never'"),
    ],
)
def test_what_the_official_layout_cannot_express_is_said(change, named, tmp_path):
    codec = SpectroStream(SpectroStreamConfig(**{**vars(SMALL), **change}))
    with pytest.raises(WeightsError, match=f"the official layout cannot express {named}"):
        save_official(codec, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_at_full_size_the_files_have_the_released_sizes(tmp_path, caplog):
    """Names, shapes and order of the tensors decide a file's length: three right ones leave little room for error."""
    torch.manual_seed(0)
    codec = SpectroStream(SpectroStreamConfig())
    save_official(codec, tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {
        "encoder.safetensors": 37_013_392,
        "decoder.safetensors": 209_853_216,
        "quantizer.safetensors": 67_108_984,
    }
    with caplog.at_level(logging.WARNING):
        loaded = load_pretrained(tmp_path)
    assert codec_fingerprint(loaded) == codec_fingerprint(codec)
    # Of the released length, but random: said of the two files whose checksum is known, and no error.
    assert [message.split()[0] for message in caplog.messages] == [
        str(tmp_path / "encoder.safetensors"),
        str(tmp_path / "quantizer.safetensors"),
    ]
    with pytest.raises(WeightsError, match=r"its SHA-256 is [0-9a-f]{64}, the release's f20c197d"):
        require_released(tmp_path, "somewhere")


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_a_missing_file_is_named(name, official):
    (official / name).unlink()
    with pytest.raises(WeightsError, match=re.escape(f"there is no {official}/{name}; an official folder holds")):
        load_pretrained(official)


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_a_truncated_file_is_refused(name, official):
    (official / name).write_bytes((official / name).read_bytes()[:-5])
    with pytest.raises(WeightsError, match=f"{re.escape(name)} is not a readable safetensors file"):
        load_pretrained(official)


@pytest.mark.slow
@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), name=st.sampled_from(OFFICIAL_NAMES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_a_damaged_header_is_an_error_or_the_same_layout(where, value, name, official, tmp_path_factory):
    """Without checksums a changed number goes unnoticed, but nothing else happens than loading or a WeightsError."""
    folder = shutil.copytree(official, tmp_path_factory.mktemp("damaged"), dirs_exist_ok=True)
    content = bytearray((folder / name).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[int(where * header)] = value
    (folder / name).write_bytes(content)
    problem = None
    try:
        loaded = load_pretrained(folder)
    except WeightsError as error:
        problem = str(error)
    if problem is None:
        assert loaded.config == load_pretrained(official).config
    else:
        assert str(folder) in problem


def test_files_of_two_codecs_are_not_mixed(official, tmp_path):
    other = write_official(fixture_params("stereo_0"), tmp_path / "other")
    shutil.copy(other / "quantizer.safetensors", official)
    with pytest.raises(WeightsError, match=r"mixes two codecs: decoder\.safetensors and quantizer\.safetensors"):
        load_pretrained(official)


def test_exchanged_files_are_named(official):
    (official / "encoder.safetensors").rename(official / "kept")
    (official / "decoder.safetensors").rename(official / "encoder.safetensors")
    (official / "kept").rename(official / "decoder.safetensors")
    with pytest.raises(WeightsError, match=r"is not an official encoder\.safetensors: 'params/decoder/.*' is in it"):
        load_pretrained(official)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "encoder",
            lambda t: t.pop("params/encoder/base_conv_first/conv/kernel"),
            "incomplete: nothing maps onto encoder",
        ),
        ("encoder", lambda t: t.pop("params/encoder/encoder_3/conv2d_3x3/conv/bias"), r"incomplete.*blocks\.3"),
        ("encoder", lambda t: t.clear(), "nothing in it starts with 'params/encoder/'"),
        ("decoder", lambda t: t.pop("params/quantizer/embedding"), "nothing in it starts with 'params/quantizer"),
        (
            "encoder",
            lambda t: t.update({"params/encoder/attention/conv/kernel": np.zeros((1, 1, 2, 2), np.float32)}),
            "'encoder/attention/conv/kernel' is not a parameter of the official SpectroStream",
        ),
        (
            "encoder",
            lambda t: t.update({"params/encoder/encoder_2/conv2d_3x3/conv/bias": np.zeros(5, np.float32)}),
            r"do not fit together: encoder\.blocks\.2\.convolution\.bias is \[5\], the others ask for \[8\]",
        ),
        (
            "encoder",
            lambda t: t.update({"params/encoder/encoder_2/conv2d_3x3/conv/kernel": np.zeros((3, 3), np.float32)}),
            "has the shape.* it must have 4 axes",
        ),
        (
            "encoder",
            lambda t: t.update({"params/encoder/base_conv_first/conv/kernel": np.zeros((7, 7, 2, 0), np.float32)}),
            "none of them empty",
        ),
        (
            "encoder",
            lambda t: t.update({"params/encoder/base_conv_first/conv/bias": np.zeros(4, np.int64)}),
            "base_conv_first/conv/bias is torch.int64; weights are floating-point numbers",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, change, message, official):
    edit(official / f"{name}.safetensors", change)
    with pytest.raises(WeightsError, match=message):
        load_pretrained(official)


def test_two_different_codebooks_are_refused_in_memory_too():
    params = fixture_params("mono")
    params["soundstream/quantizer/embedding"] = params["quantizer/embedding"] + 1
    with pytest.raises(ValueError, match="are not the same codebooks"):
        from_official(params)


class TestSources:
    """What `source` may be, and which reading of it wins."""

    def test_our_own_file_and_a_run_folder(self, tmp_path):
        codec = small_codec()
        save_codec(codec, tmp_path / "codec.safetensors")
        for source in (tmp_path, str(tmp_path), tmp_path / "codec.safetensors"):
            loaded = SpectroStream.from_pretrained(source)
            assert codec_fingerprint(loaded) == codec_fingerprint(codec)
            assert not loaded.training

    def test_a_path_wins_over_a_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "google" / "magenta-realtime-2").mkdir(parents=True)
        save_codec(small_codec(), tmp_path / "google" / "magenta-realtime-2" / "codec.safetensors")
        assert load_pretrained("google/magenta-realtime-2").config == SMALL
        with pytest.raises(
            WeightsError, match="revision = 'main' belongs to a hub, but google/magenta-realtime-2 is on"
        ):
            load_pretrained("google/magenta-realtime-2", revision="main")

    def test_a_home_folder_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        save_codec(small_codec(), tmp_path / "codec.safetensors")
        assert load_pretrained("~/codec.safetensors").config == SMALL

    @pytest.mark.parametrize(
        "source", ["missing", "./runs/tiny", "/no/such/folder", "runs/tiny/codec.safetensors", "a//b", "a/../b"]
    )
    def test_what_is_neither_is_said(self, source, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(WeightsError, match=r"there is no file or folder .*; allowed: .*a hub id such as"):
            load_pretrained(source)

    def test_an_empty_folder_holds_no_weights(self, tmp_path):
        with pytest.raises(WeightsError, match=r"holds no weights: neither codec\.safetensors nor encoder"):
            load_pretrained(tmp_path)

    def test_a_path_is_no_hub_id(self):
        with pytest.raises(WeightsError, match="there is no file or folder owner/name"):
            load_pretrained(Path("owner/name"))

    def test_two_codecs_in_a_folder_are_ambiguous(self, official):
        save_codec(small_codec(), official / "codec.safetensors")
        with pytest.raises(WeightsError, match=r"holds two codecs, .*type .*/codec\.safetensors, or move"):
            load_pretrained(official)
        assert load_pretrained(official / "codec.safetensors").config == SMALL

    def test_one_official_file_is_not_enough(self, official):
        with pytest.raises(WeightsError, match=f"is one of three official files; type their folder: {official}"):
            load_pretrained(official / "encoder.safetensors")

    def test_another_kind_of_codec_is_named(self, tmp_path):
        dac = Dac(DacConfig(encoder_width=2, decoder_width=16, strides=(2, 4, 8, 8), levels=2, codebook_size=16))
        save_codec(dac, tmp_path / "codec.safetensors")
        with pytest.raises(WeightsError, match="holds a codec of kind 'dac', not a SpectroStream"):
            load_pretrained(tmp_path)


def test_the_release_is_described_as_published():
    assert json.dumps([[file.name, file.size, (file.sha256 or "")[:8]] for file in RELEASED]) == (
        '[["encoder.safetensors", 37013392, "f20c197d"], ["decoder.safetensors", 209853216, ""], '
        '["quantizer.safetensors", 67108984, "0ba89dcb"]]'
    )
    assert {len(file.sha256) for file in RELEASED if file.sha256} == {64}
