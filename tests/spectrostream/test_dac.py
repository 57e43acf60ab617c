"""DAC behind our interface: lengths, alignment, rates, and what is said when weights are missing."""

import math

import pytest
import torch

from spectrostream.interface import AudioCodec
from spectrostream.other_codecs.dac import Dac, DacConfig, PretrainedWeightsError

TINY = DacConfig(encoder_width=4, decoder_width=32, levels=3, codebook_size=64)


@pytest.fixture(scope="module")
def dac() -> Dac:
    torch.manual_seed(0)
    return Dac(TINY)


def test_it_is_an_audio_codec(dac):
    assert isinstance(dac, AudioCodec)
    assert dac.sample_rate == 48000
    assert not dac.is_causal


def test_rates_are_those_of_the_released_model():
    # 86.13 tokens/s x 10 bits x 2 channels: 3.45 and 15.50 kbps at 2 and 9 levels (DAC's 7.75 kbps per channel)
    config = DacConfig()
    rate = Dac.kbps.__get__(_Bare(config))
    assert rate(2) == pytest.approx(3.445, abs=0.001)
    assert rate(9) == pytest.approx(15.50, abs=0.01)


class _Bare:
    """The arithmetic without 77 million random parameters."""

    def __init__(self, config):
        self.config, self.channels, self.hop_length = config, config.channels, math.prod(config.strides)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 511, 24000, 61440])
def test_output_length_is_input_length(dac, samples):
    audio = torch.randn(2, 2, samples) * 0.1
    codes = dac.encode(audio, levels=2)
    frames = math.ceil(math.ceil(samples * 44100 / 48000) / 512)
    assert codes.shape == (2, 2, 2, frames)
    assert codes.dtype == torch.int64
    assert dac.decode(codes, length=samples).shape == audio.shape
    assert dac.bits(codes) == 2 * 2 * frames * 6


def test_channels_are_independent_passes(dac):
    audio = torch.randn(1, 2, 9600) * 0.1
    codes = dac.encode(audio)
    swapped = dac.encode(audio.flip(1))
    assert torch.equal(codes.flip(1), swapped)


def test_encoding_in_training_mode_is_encoding(dac):
    audio = torch.randn(1, 2, 9600) * 0.1
    expected = dac.encode(audio, levels=1)
    dac.train()
    assert torch.equal(dac.encode(audio, levels=1), expected)
    assert dac.model.training
    dac.eval()


def test_resampling_keeps_a_tone_in_place(dac):
    """The path around the model, with the model taken out: delay below a hundredth of a sample at 1 kHz."""
    time = torch.arange(48000) / 48000
    audio = torch.sin(2 * math.pi * 1000 * time).expand(1, 2, -1)
    back = dac._outer_output(dac._inner_input(audio).squeeze(1), 48000)
    middle = slice(4000, -4000)
    assert (back - audio)[..., middle].abs().max() < 2e-3


def test_training_reaches_every_parameter(dac):
    dac.train()
    reconstruction = dac(torch.randn(2, 2, 9600) * 0.1)
    (reconstruction.audio.square().mean() + reconstruction.commitment_loss).backward()
    assert all(p.grad is not None for p in dac.parameters())
    dac.eval()


def test_missing_pretrained_weights_say_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match="hf download descript/dac_44khz"):
        Dac.from_pretrained("descript/dac_44khz")


def test_pretrained_weights_load_from_a_folder(tmp_path, dac):
    from transformers import DacModel

    inner = DacModel(dac.model.config)
    inner.save_pretrained(tmp_path)
    loaded = Dac.from_pretrained(str(tmp_path))
    audio = torch.randn(1, 2, 4800) * 0.1
    reference = Dac(loaded.config, inner.eval())
    assert loaded.levels == 3
    assert torch.equal(loaded.encode(audio), reference.encode(audio))


@pytest.mark.parametrize(("key", "value"), [("strides", (3, 2)), ("levels", 0), ("decoder_width", 33)])
def test_impossible_configurations_are_refused(key, value):
    with pytest.raises(ValueError, match=f"model.{key}"):
        DacConfig(**{key: value})


def test_levels_beyond_the_trained_number(dac):
    with pytest.raises(ValueError, match=r"allowed: 1\.\.3"):
        dac.encode(torch.zeros(1, 2, 100), levels=4)
    with pytest.raises(ValueError, match=r"levels = 2\.5 is not possible: this DAC has 3; allowed: 1\.\.3"):
        dac.encode(torch.zeros(1, 2, 100), levels=2.5)


def test_narrow_models_start_with_the_gain_of_the_released_one():
    """Deviation times the root of the inputs is that of 0.02 at the released widths."""
    torch.manual_seed(0)
    wide = dict(Dac(DacConfig(encoder_width=16, decoder_width=96)).model.named_modules())
    released_inputs = {"encoder.block.3.conv1": 512, "decoder.block.0.conv_t1": 1536, "decoder.conv1": 1024}
    for name, inputs in released_inputs.items():
        layer = wide[name]
        gain = layer.weight.std().item() * math.sqrt(layer.in_channels)
        # a normal distribution of deviation 0.02 that is cut at 2.0 is not cut at all
        assert gain == pytest.approx(0.02 * math.sqrt(inputs), rel=0.05)


def test_fused_weights_are_the_same_codec():
    """Weight normalisation is for training; timing and use have plain weights."""
    dac = Dac(TINY).eval()
    audio = torch.randn(1, 2, 9600) * 0.1
    codes = dac.encode(audio)
    decoded = dac.decode(codes, length=9600)
    before = sum(parameter.numel() for parameter in dac.parameters())
    dac.deployed()
    assert sum(parameter.numel() for parameter in dac.parameters()) < before
    torch.testing.assert_close(dac.decode(codes, length=9600), decoded, rtol=0, atol=1e-5 * decoded.abs().max().item())
