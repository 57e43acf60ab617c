"""Analysis and synthesis pairs: what comes back, where a tone lands, and how many samples a token takes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.frontends import FRONT_ENDS, SAMPLES_PER_TOKEN, ComplexSTFT, Waveform

HOP = 480
STFT = ComplexSTFT()


def hann_power() -> Tensor:
    """sin^4(pi n / 960), n = 0 .. 959: the periodic Hann window of 960, squared."""
    return (math.pi * torch.arange(2 * HOP, dtype=torch.float64) / (2 * HOP)).sin() ** 4


def fade_in() -> Tensor:
    """Gain of the first 480 samples, which lie in one frame only: w^2 / (w^2 + w_shift^2)."""
    power = hann_power()
    return power[:HOP] / (power[:HOP] + power[HOP:])


def nyquist_part(audio: Tensor) -> Tensor:
    """What is lost with the dropped bin, by its definition: sum of w x (-1)^n per frame, resynthesized."""
    samples = audio.shape[-1]
    frames = -(-samples // HOP)
    padded = torch.zeros(*audio.shape[:-1], (frames + 1) * HOP, dtype=torch.float64)
    padded[..., :samples] = audio
    power = hann_power()
    synthesis_window = power.sqrt() / (power + power.roll(HOP))
    alternating = 1.0 - 2.0 * (torch.arange(2 * HOP) % 2)
    part = torch.zeros_like(padded)
    for start in range(0, frames * HOP, HOP):
        frame = slice(start, start + 2 * HOP)
        amplitude = (padded[..., frame] * power.sqrt() * alternating).sum(-1, keepdim=True)
        part[..., frame] += amplitude * alternating * synthesis_window / (2 * HOP)
    return part[..., :samples]


def tone(bin_: int, samples: int, phase: float = 0.0) -> Tensor:
    """A cosine in the middle of a bin."""
    return torch.cos(2 * math.pi * bin_ * torch.arange(samples, dtype=torch.float64) / (2 * HOP) + phase).float()


@given(samples=st.integers(1, 3000), channels=st.integers(1, 2), seed=st.integers(0, 2**31))
def test_stft_gives_back_all_but_the_dropped_bin_and_a_known_fade_in(samples, channels, seed):
    audio = torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(seed))
    features = STFT.analysis(audio)
    assert features.shape == (2, 2 * channels, -(-samples // HOP), HOP)
    back = STFT.synthesis(features)
    assert back.shape == (2, channels, -(-samples // HOP) * HOP)
    expected = audio.double()
    expected[..., :HOP] *= fade_in()[:samples]
    torch.testing.assert_close(back[..., :samples].double(), expected - nyquist_part(audio), rtol=0, atol=2e-5)


def test_music_like_audio_comes_back_perfectly_from_sample_480_on():
    # tones below 20 kHz, faded out before the end: nothing at the dropped Nyquist bin
    time = torch.arange(4800) / 48000
    audio = sum(torch.sin(2 * math.pi * f * time + f) for f in (55.0, 440.0, 1234.5, 9876.5, 19000.0))
    audio = 0.1 * (audio * (math.pi * torch.arange(4800) / 4800).cos().add(1)).expand(1, 2, -1)
    back = STFT.synthesis(STFT.analysis(audio))
    torch.testing.assert_close(back[..., HOP:], audio[..., HOP:], rtol=0, atol=1e-5)
    torch.testing.assert_close(back[..., :HOP], audio[..., :HOP] * fade_in().float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bin_", [2, 37, 240, 477])
def test_a_tone_lands_in_its_bin_with_its_phase(bin_):
    # unscaled: half the window's sum, 240; frame m starts at phase pi * bin * m
    features = STFT.analysis(tone(bin_, 4800)[None, None])
    assert (features[0].square().sum(0)[:-1].argmax(-1) == bin_).all()
    sign = torch.tensor([(-1.0) ** (bin_ * frame) for frame in range(9)])
    torch.testing.assert_close(features[0, 0, :9, bin_], 240 * sign, rtol=0, atol=0.05)
    torch.testing.assert_close(features[0, 1, :9, bin_], torch.zeros(9), rtol=0, atol=0.05)
    # a cosine ahead by 90 degrees is +imaginary
    ahead = STFT.analysis(tone(bin_, 4800, math.pi / 2)[None, None])
    torch.testing.assert_close(ahead[0, 1, :9, bin_], 240 * sign, rtol=0, atol=0.05)


def test_features_are_left_real_left_imaginary_right_real_right_imaginary():
    left, right = tone(10, 960), tone(20, 960, math.pi / 2)
    features = STFT.analysis(torch.stack((left, right))[None])[0, :, 0]
    loudest = {(feature, bin_) for feature in range(4) for bin_ in range(480) if features[feature, bin_].abs() > 200}
    assert loudest == {(0, 10), (3, 20)}


def test_frame_k_covers_samples_480k_to_480k_plus_959():
    audio = torch.randn(1, 1, 4000, requires_grad=True)
    STFT.analysis(audio)[:, :, 3].square().sum().backward()
    seen = audio.grad.flatten().nonzero().flatten()
    # the periodic window is zero at its first sample
    assert (int(seen.min()), int(seen.max())) == (1441, 2399)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_frames_look_ahead_is_what_the_front_end_says(name):
    frontend = FRONT_ENDS[name]()
    audio = torch.randn(1, 1, 2400, requires_grad=True)
    frame = 960 // frontend.hop_length
    frontend.analysis(audio)[:, :, frame].sum().backward()
    last = int(audio.grad.flatten().nonzero().max())
    assert last == 960 + frontend.hop_length - 1 + frontend.look_ahead


@given(samples=st.integers(1, 3000), channels=st.integers(1, 3), batch=st.integers(1, 2))
def test_waveform_is_the_identity(samples, channels, batch):
    audio = torch.randn(batch, channels, samples)
    features = Waveform().analysis(audio)
    assert features.shape == (batch, channels, samples, 1)
    assert torch.equal(Waveform().synthesis(features), audio)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_features_are_float32_whatever_comes_in(name):
    frontend = FRONT_ENDS[name]()
    features = frontend.analysis(torch.randn(1, 2, 960).bfloat16())
    assert features.dtype == torch.float32
    assert frontend.synthesis(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_token_is_1920_samples(name):
    layout = FRONT_ENDS[name].layout
    assert FRONT_ENDS[name].hop_length * layout.frames_per_token == SAMPLES_PER_TOKEN == 1920
    assert math.prod(stride[0] for stride in layout.strides) == layout.frames_per_token


def test_layouts_have_the_same_blocks_so_that_fusion_points_compare():
    spectral, waveform = ComplexSTFT.layout, Waveform.layout
    assert len(spectral.strides) == len(waveform.strides) == 7
    assert spectral.widths(32) == waveform.widths(32) == (32, 64, 64, 128, 128, 128, 256, 256)
    assert (spectral.token_bins, waveform.token_bins) == (5, 1)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends_have_nothing_to_learn_or_save(name):
    frontend = FRONT_ENDS[name]()
    assert frontend.state_dict() == {}
    assert list(frontend.parameters()) == []
