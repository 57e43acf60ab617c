"""The meter against pyloudnorm, against the standard's own numbers, and chopped in every way."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pyloudnorm
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from music_files import noisy_tones

from datamodules.audio.loudness import BlockEnergies, LoudnessMeter, loudness_of


def _measured(audio: np.ndarray, rate: int, cuts: list[int] | None = None) -> float:
    meter = LoudnessMeter(rate, len(audio))
    for piece in np.split(audio, cuts or [], axis=1):
        meter.add(piece)
    return meter.integrated()


def _gated_music(seconds: float, rate: int, channels: int = 2) -> np.ndarray:
    """`[channels, samples]` with loud, soft and silent stretches, so that both gates have work."""
    audio = noisy_tones(seconds, rate, channels=channels).T.astype(np.float32)
    return audio * np.repeat([1.0, 0.01, 0.0, 0.3], -(-audio.shape[1] // 4))[: audio.shape[1]]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_equals_pyloudnorm_on_the_whole_signal(rate: int, channels: int) -> None:
    audio = _gated_music(3.37, rate, channels)

    assert _measured(audio, rate) == pytest.approx(
        pyloudnorm.Meter(rate).integrated_loudness(audio.T.astype(np.float64)), abs=1e-4
    )


@settings(max_examples=40)
@given(
    samples=st.integers(3200, 40000),
    rate=st.sampled_from([8000, 7919]),
    cuts=st.lists(st.integers(0, 40000), max_size=6),
    seed=st.integers(0, 9),
)
def test_any_length_in_any_pieces_equals_pyloudnorm(samples: int, rate: int, cuts: list[int], seed: int) -> None:
    audio = noisy_tones(samples / rate, rate, seed).T[:, :samples]
    audio = audio * np.linspace(0, 1, audio.shape[1])
    pieces = sorted(min(cut, audio.shape[1]) for cut in cuts)

    whole = _measured(audio, rate)

    assert _measured(audio, rate, pieces) == pytest.approx(whole, abs=1e-9)
    assert whole == pytest.approx(pyloudnorm.Meter(rate).integrated_loudness(audio.T), abs=0.01)


def test_sine_of_one_channel_reads_what_the_standard_says() -> None:
    # BS.1770-4: a 997 Hz sine at 0 dBFS in the left or right channel reads -3.01 LKFS; EBU Tech 3341: at -23 dBFS in
    # both channels it reads -23 LUFS.
    time = np.arange(48000 * 5) / 48000
    sine = np.sin(2 * np.pi * 997 * time)

    # The reference filters reach that number within 0.04: pyloudnorm designs its own for every rate.
    assert _measured(np.stack([sine, 0 * sine]), 48000) == pytest.approx(-3.01, abs=0.05)
    assert _measured(10 ** (-23 / 20) * np.stack([sine, sine]), 48000) == pytest.approx(-23, abs=0.05)


def test_surround_channels_weigh_more_and_many_channels_count_by_their_mean() -> None:
    mono = noisy_tones(2, 48000, channels=1).T
    nothing = np.zeros_like(mono)

    front = _measured(np.concatenate([mono, *[nothing] * 4]), 48000)
    surround = _measured(np.concatenate([*[nothing] * 4, mono]), 48000)
    eight = _measured(np.repeat(mono, 8, axis=0), 48000)

    assert surround - front == pytest.approx(10 * math.log10(1.41))
    assert eight == pytest.approx(_measured(mono, 48000))


def test_silence_and_very_soft_sound_have_no_loudness() -> None:
    assert _measured(np.zeros((2, 48000)), 48000) == -math.inf
    assert _measured(1e-5 * noisy_tones(1, 48000).T, 48000) == -math.inf
    assert _measured(np.zeros((2, 0)), 48000) == -math.inf


def test_a_low_sample_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 4000 Hz, got 2000"):
        LoudnessMeter(2000, 1)


def test_an_hour_takes_no_more_memory_than_its_blocks() -> None:
    piece = noisy_tones(10, 8000, channels=1).T
    meter = LoudnessMeter(8000, 1)
    meter.add(piece)
    tracemalloc.start()
    for _ in range(360):
        meter.add(piece)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept < 2**20
    assert meter.integrated() == pytest.approx(_measured(piece, 8000), abs=0.01)


@given(
    samples=st.integers(1, 3000), rate=st.sampled_from([4001, 8000]), cuts=st.lists(st.integers(0, 3000), max_size=5)
)
def test_block_energies_are_sums_over_the_blocks(samples: int, rate: int, cuts: list[int]) -> None:
    energy = np.random.default_rng(samples).random(samples)
    blocks = BlockEnergies(rate)
    for piece in np.split(energy, sorted(min(cut, samples) for cut in cuts)):
        blocks.add(piece)

    edges = [k * rate // 10 for k in range(samples * 10 // rate + 2)]
    expected = [energy[a:b] for a, b in itertools.pairwise(edges) if a < samples]

    np.testing.assert_allclose(blocks.sums(), [part.sum() for part in expected])
    assert blocks.lengths().tolist() == [len(part) for part in expected]


@pytest.mark.parametrize("seconds", [0.02, 0.38, 1.28])
def test_a_crop_is_padded_to_half_a_second(seconds: float) -> None:
    crop = noisy_tones(seconds, 48000).T
    padded = np.pad(crop, ((0, 0), (0, max(24000 - crop.shape[1], 0))))

    assert loudness_of(torch.from_numpy(crop).float(), 48000) == pytest.approx(
        pyloudnorm.Meter(48000).integrated_loudness(padded.T), abs=1e-4
    )


def test_a_silent_crop_lies_on_the_floor() -> None:
    assert loudness_of(torch.zeros(2, 48000), 48000) == -70


def test_brought_to_a_loudness_a_crop_has_it() -> None:
    crop = torch.from_numpy(noisy_tones(1.28, 48000).T).float()

    scaled = crop * 10 ** ((-16 - loudness_of(crop, 48000)) / 20)

    assert loudness_of(scaled, 48000) == pytest.approx(-16, abs=1e-4)
