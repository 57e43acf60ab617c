"""The contract of every front-end: lengths, what comes back, what depends on what, pieces, silence, half precision."""

import math
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrostream.frontends import FRONT_ENDS, SAMPLES_PER_TOKEN, FrontEnd
from spectrostream.streaming import StreamState

HOP = 480
BUILT: dict[str, FrontEnd] = {name: front_end() for name, front_end in FRONT_ENDS.items()}
NAMES = st.sampled_from([*FRONT_ENDS])
SPECTRAL = [name for name in FRONT_ENDS if name != "waveform"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in -1 .. 1."""
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def hann_power() -> Tensor:
    """sin^4(pi n / 960), n = 0 .. 959: the periodic Hann window of 960, squared."""
    return (math.pi * torch.arange(2 * HOP, dtype=torch.float64) / (2 * HOP)).sin() ** 4


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


def faded_in(audio: Tensor) -> Tensor:
    """The first 480 samples lie in one frame only and come back times w^2 / (w^2 + w_shift^2); no Nyquist bin."""
    power, back = hann_power(), audio.double()
    back[..., :HOP] *= (power[:HOP] / (power[:HOP] + power[HOP:]))[: audio.shape[-1]]
    return back - nyquist_part(audio)


def mirrored_in(audio: Tensor) -> Tensor:
    """The first 480 samples come back as w^2 x, less w w_mirrored x_mirrored; all others as they are."""
    samples = audio.shape[-1]
    first = torch.zeros(*audio.shape[:-1], HOP, dtype=torch.float64)
    first[..., :samples] = audio[..., :HOP]
    window = (math.pi * (torch.arange(HOP, dtype=torch.float64) + 0.5) / (2 * HOP)).sin()
    back = audio.double()
    back[..., :HOP] = (window**2 * first - window * window.flip(0) * first.flip(-1))[..., :samples]
    return back


COMES_BACK = {
    "stft": (faded_in, 1e-5),
    "power_stft": (faded_in, 1e-5),
    "mdct": (mirrored_in, 1e-5),
    "waveform": (Tensor.double, 0.0),
}


@settings(max_examples=60)
@given(
    name=NAMES,
    samples=st.integers(1, 3000),
    channels=st.integers(1, 3),
    batch=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_lengths_and_what_comes_back(name, samples, channels, batch, seed):
    front_end, audio = BUILT[name], noise(batch, channels, samples, seed=seed)
    features, frames = front_end.analysis(audio), -(-samples // front_end.hop_length)
    assert features.shape == (batch, channels * front_end.features_per_channel, frames, front_end.layout.bins)
    back = front_end.synthesis(features)
    assert back.shape == (batch, channels, frames * front_end.hop_length)
    expected, tolerance = COMES_BACK[name]
    torch.testing.assert_close(back[..., :samples].double(), expected(audio), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_music_comes_back_perfectly_once_two_frames_see_it(name):
    # tones below 20 kHz, faded out before the end: nothing at a dropped Nyquist bin
    time = torch.arange(4800) / 48000
    audio = sum(torch.sin(2 * math.pi * f * time + f) for f in (55.0, 440.0, 1234.5, 9876.5, 19000.0))
    audio = 0.1 * (audio * (math.pi * torch.arange(4800) / 4800).cos().add(1)).expand(1, 2, -1)
    back = BUILT[name].synthesis(BUILT[name].analysis(audio))
    torch.testing.assert_close(back[..., HOP:], audio[..., HOP:], rtol=0, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=60)
@given(name=NAMES, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_synthesis_piece_by_piece_is_the_whole_in_outputs_and_gradients(name, sizes, seed):
    front_end = BUILT[name]
    shape = (2, 2 * front_end.features_per_channel, sum(sizes), front_end.layout.bins)
    features = noise(*shape, seed=seed).requires_grad_()
    state = StreamState()
    pieces = torch.cat([front_end.synthesis(piece, state) for piece in features.split(sizes, dim=2)], dim=-1)
    whole = front_end.synthesis(features)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    weights = noise(*whole.shape, seed=seed + 1)
    gradients = [torch.autograd.grad(audio, features, weights)[0] for audio in (pieces, whole)]
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@settings(max_examples=60)
@given(name=NAMES, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), rest=st.integers(0, HOP))
def test_a_piece_of_a_signal_gives_its_own_frames(name, sizes, rest):
    front_end = BUILT[name]
    hop = front_end.hop_length
    audio = noise(1, 2, sum(sizes) * hop + rest)
    whole, frames = front_end.analysis(audio), list(accumulate(sizes, initial=0))
    for first, end in pairwise(frames):
        piece = audio[..., first * hop : end * hop + front_end.look_ahead]
        features = front_end.analysis(piece)[:, :, : end - first]
        torch.testing.assert_close(features, whole[:, :, first:end], rtol=1e-5, atol=1e-5)


@given(name=NAMES, position=st.integers(0, 2399))
def test_a_sample_reaches_the_frames_that_the_look_ahead_says_and_no_other(name, position):
    # a sample that is no number spoils every frame that reads it, however small its weight
    front_end, audio = BUILT[name], noise(1, 1, 2400)
    audio[..., position] = math.nan
    spoilt = front_end.analysis(audio).isnan().flatten(3).any(-1)[0].all(0)
    hop = front_end.hop_length
    reads = [hop * k <= position <= hop * (k + 1) - 1 + front_end.look_ahead for k in range(len(spoilt))]
    assert spoilt.tolist() == reads


@given(name=NAMES, frame=st.integers(0, 4))
def test_a_frame_reaches_the_samples_that_the_synthesis_span_says_and_no_other(name, frame):
    front_end = BUILT[name]
    features = noise(1, front_end.features_per_channel, 5, front_end.layout.bins)
    features[:, :, frame] = math.nan
    spoilt = front_end.synthesis(features).isnan()[0, 0].tolist()
    spans = [front_end.synthesis_span(sample, sample) for sample in range(len(spoilt))]
    assert spoilt == [first <= frame <= last for first, last in spans]


@given(name=NAMES, first=st.integers(-2000, 2000), more=st.integers(0, 2000))
def test_the_span_of_a_stretch_goes_from_its_first_samples_to_its_lasts(name, first, more):
    span, last = BUILT[name].synthesis_span, first + more
    assert span(first, last) == (span(first, first)[0], span(last, last)[1])


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_silence_is_silence_and_its_gradients_are_finite(name):
    front_end = BUILT[name]
    audio = torch.zeros(1, 2, 4 * HOP, requires_grad=True)
    features = front_end.analysis(audio)
    assert not features.any()
    back = front_end.synthesis(features)
    assert not back.any()
    silent = torch.zeros_like(features, requires_grad=True)
    for y, x in ((features, audio), (back, audio), (front_end.synthesis(silent), silent)):
        (gradient,) = torch.autograd.grad(y, x, noise(*y.shape), retain_graph=True)
        assert gradient.isfinite().all()
        # nothing is cut off: what starts silent can learn to sound
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_half_precision_around_it_changes_nothing(name):
    front_end, audio = BUILT[name], noise(1, 2, 2400)
    features = front_end.analysis(audio)
    back = front_end.synthesis(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end.analysis(audio), features)
        assert torch.equal(front_end.synthesis(features), back)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_features_and_audio_are_float32_whatever_comes_in(name, dtype):
    front_end, audio = BUILT[name], noise(1, 2, 960).to(dtype)
    features = front_end.analysis(audio)
    assert features.dtype == torch.float32
    assert torch.equal(features, front_end.analysis(audio.float()))
    assert front_end.synthesis(features.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_everything_it_needs_moves_with_it(name):
    # an operation on tensors of two devices is refused, so a constant left behind on the CPU would be found
    front_end = FRONT_ENDS[name]().to("meta")
    features = front_end.analysis(torch.empty(1, 2, 2400, device="meta"))
    audio = front_end.synthesis(features, StreamState())
    assert features.device.type == audio.device.type == "meta"
    assert audio.shape == (1, 2, 2400)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_a_token_is_1920_samples(name):
    layout = FRONT_ENDS[name].layout
    assert FRONT_ENDS[name].hop_length * layout.frames_per_token == SAMPLES_PER_TOKEN == 1920
    assert math.prod(stride[0] for stride in layout.strides) == layout.frames_per_token


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_layouts_have_the_same_blocks_so_that_fusion_points_compare(name):
    layout = FRONT_ENDS[name].layout
    assert len(layout.strides) == 7
    assert layout.widths(32) == (32, 64, 64, 128, 128, 128, 256, 256)
    assert layout.token_bins == (1 if name == "waveform" else 5)


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_front_ends_have_nothing_to_learn_or_save(name):
    front_end = FRONT_ENDS[name]()
    assert front_end.state_dict() == {}
    assert list(front_end.parameters()) == []


@pytest.mark.parametrize("name", SPECTRAL)
def test_spectral_front_ends_have_the_same_frames(name):
    front_end = BUILT[name]
    assert (front_end.hop_length, front_end.look_ahead, front_end.layout) == (480, 480, BUILT["stft"].layout)
