"""The exported graphs: the same transforms, codes and audio as the codec's, run by another runtime."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrostream import QuantizerConfig, SpectroStream, SpectroStreamConfig
from spectrostream.errors import UserError
from spectrostream.export import (
    ExportedDecoder,
    ExportedEncoder,
    ExportError,
    LinearFrontEnd,
    export_decoder,
    export_encoder,
)
from spectrostream.frontends import FRONT_ENDS
from spectrostream.weights import codec_fingerprint, from_official

FIXTURE = Path(__file__).parent.parent / "fixtures" / "oracle_stereo_m2.npz"
LINEAR = sorted(FRONT_ENDS.keys() - {"waveform", "power_stft"})
QUANTIZER = QuantizerConfig(levels=5, codebook_size=32, initial_vectors=32)
WIDTHS = {"encoder_width": 4, "decoder_width": 4, "embedding_dim": 12, "quantizer": QUANTIZER}
CONFIGS = {
    "stft": SpectroStreamConfig(**WIDTHS),
    "power_stft": SpectroStreamConfig(frontend="power_stft", fusion=0, split=3, **WIDTHS),
    "mdct": SpectroStreamConfig(frontend="mdct", fusion="input", split="output", **WIDTHS),
    "mono": SpectroStreamConfig(channels=1, **WIDTHS),
    "waveform": SpectroStreamConfig(frontend="waveform", fusion=3, split=2, **WIDTHS),
    "groups that never meet": SpectroStreamConfig(
        frontend="waveform", channels=4, channel_groups=[[0, 2], [3, 1]], fusion="never", split="never", **WIDTHS
    ),
}


def codec_of(config: SpectroStreamConfig) -> SpectroStream:
    torch.manual_seed(3)
    return SpectroStream(config).eval()


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_within_peak(actual: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= share * expected.abs().max()


@pytest.fixture(scope="module")
def transforms() -> dict[str, tuple[torch.nn.Module, LinearFrontEnd]]:
    return {name: (FRONT_ENDS[name](), LinearFrontEnd(FRONT_ENDS[name]())) for name in LINEAR}


@pytest.mark.parametrize("name", LINEAR)
@given(samples=st.integers(1, 4000), channels=st.integers(1, 3), batch=st.integers(1, 2))
@settings(deadline=None, max_examples=20)
def test_a_front_end_as_convolutions_is_the_same_transform(name, samples, channels, batch, transforms):
    real, linear = transforms[name]
    audio = noise(batch, channels, samples)
    features = real.analysis(audio)
    assert_within_peak(linear.analysis(audio), features, 3e-6)
    features = noise(*features.shape)
    assert_within_peak(linear.synthesis(features), real.synthesis(features), 3e-6)
    assert linear.synthesis_span(0, samples) == real.synthesis_span(0, samples)


def test_a_front_end_as_convolutions_refuses_a_state(transforms):
    with pytest.raises(ValueError, match="keeps no state"):
        transforms["stft"][1].synthesis(torch.zeros(1, 2, 3, 480), state=object())


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_exported_modules_are_the_codec(name):
    codec = codec_of(CONFIGS[name])
    before = codec_fingerprint(codec)
    audio = noise(2, codec.channels, 7001)
    for levels in (1, 4, codec.levels):
        codes = codec.encode(audio, levels=levels)
        assert torch.equal(ExportedEncoder(codec, levels)(audio), codes)
    decoded = ExportedDecoder(codec)(codes)
    assert_within_peak(decoded, codec.decode(codes), 1e-5)
    absent = torch.cat((codes[:, :3], torch.full_like(codes[:, 3:], -1)), dim=1)
    assert_within_peak(ExportedDecoder(codec)(absent), codec.decode(codes[:, :3]), 1e-5)
    # On a copy: the codec goes on as it was.
    assert codec_fingerprint(codec) == before
    assert type(codec.frontend) is FRONT_ENDS[codec.config.frontend]


@pytest.mark.parametrize(("levels", "message"), [(0, "levels = 0"), (6, "levels = 6"), (-1, r"allowed: 1\.\.5")])
def test_levels_that_were_not_trained_are_refused(levels, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_encoder(codec_of(CONFIGS["waveform"]), tmp_path / "encoder.onnx", levels)


def test_what_the_user_must_change_is_said(tmp_path, monkeypatch):
    codec = codec_of(CONFIGS["waveform"])
    with pytest.raises(ExportError, match=r"decoder\.pt does not end in \.onnx"):
        export_decoder(codec, tmp_path / "decoder.pt")
    with pytest.raises(ExportError, match=r"there is no folder .*/missing; make it first"):
        export_decoder(codec, tmp_path / "missing" / "decoder.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"needs onnxscript; type: pip install 'spectrostream\[export\]'"):
        export_decoder(codec, tmp_path / "decoder.onnx")
    assert issubclass(ExportError, UserError)
    assert not list(tmp_path.iterdir())


class Exported:
    """Both graphs of a codec, and a runtime that knows nothing of torch."""

    def __init__(self, codec: SpectroStream, folder: Path) -> None:
        self.codec = codec
        self.folder = folder
        export_encoder(codec, folder / "encoder.onnx")
        export_decoder(codec, folder / "decoder.onnx")
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("encoder", "decoder")
        )

    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.encoder.run(["codes"], {"audio": audio.numpy()})[0])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.decoder.run(["audio"], {"codes": codes.numpy()})[0])


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Exported:
    """The released layout in small, with the weights of the parity fixture."""
    arrays = np.load(FIXTURE)
    params = {key.removeprefix("param/"): arrays[key] for key in arrays if key.startswith("param/")}
    return Exported(from_official(params).eval(), tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> Exported:
    return Exported(codec_of(CONFIGS["groups that never meet"]), tmp_path_factory.mktemp("groups"))


@pytest.mark.slow
def test_another_runtime_agrees_with_the_official_outputs(official):
    arrays = np.load(FIXTURE)
    audio = torch.from_numpy(arrays["in/audio"]).T[None]
    codes = official.encode(audio)
    assert torch.equal(codes[0], torch.from_numpy(arrays["out/codes"]).T.long())
    assert_within_peak(official.decode(codes)[0], torch.from_numpy(arrays["out/waveform_padded"]).T, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["official", "groups"])
@torch.no_grad()
def test_any_batch_and_length(system, request):
    exported = request.getfixturevalue(system)
    codec = exported.codec
    for batch, samples in ((1, 1), (3, 479), (1, 1920), (2, 1921), (1, 5000), (1, 20001)):
        audio = noise(batch, codec.channels, samples)
        codes = exported.encode(audio)
        assert torch.equal(codes, codec.encode(audio)), (batch, samples)
        assert_within_peak(exported.decode(codes), codec.decode(codes), 1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_absent_levels_add_nothing(official):
    codes = official.codec.encode(noise(1, 2, 9000))
    fewer = torch.cat((codes[:, :3], torch.full_like(codes[:, 3:], -1)), dim=1)
    assert_within_peak(official.decode(fewer), official.codec.decode(codes[:, :3]), 1e-4)


@pytest.mark.slow
def test_the_graph_says_what_it_is(official):
    for name, ends in (("encoder", ("audio", "codes")), ("decoder", ("codes", "audio"))):
        model = onnx.load(official.folder / f"{name}.onnx")
        onnx.checker.check_model(model)
        stated = {entry.key: entry.value for entry in model.metadata_props}
        assert stated["format"] == f"spectrostream {ends[0]} to {ends[1]}"
        assert (stated["sample_rate"], stated["samples_per_token"]) == ("48000", "1920")
        assert (stated["levels"], stated["codebook_size"]) == ("8", "64")
        assert stated["codec"] == codec_fingerprint(official.codec).hex()
        assert (model.graph.input[0].name, model.graph.output[0].name) == ends
        first, channels, last = model.graph.input[0].type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert last.dim_param == ("samples" if name == "encoder" else "frames")
        assert channels.dim_value == (2 if name == "encoder" else 8)
    assert sorted(path.name for path in official.folder.iterdir()) == ["decoder.onnx", "encoder.onnx"]
