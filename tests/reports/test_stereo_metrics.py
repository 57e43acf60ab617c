import math

import pytest
import torch
from synthetic_music import music, phase_jitter

from reports.metrics import spectral as spectral_metrics
from reports.metrics import stereo as metrics


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return music()


def right_changed(audio: torch.Tensor, gain: float) -> torch.Tensor:
    return torch.stack([audio[0], gain * audio[1]])


def test_a_copy_has_no_cue_errors(reference: torch.Tensor) -> None:
    copy = reference.clone()
    errors = metrics.cue_errors(reference, copy)
    assert [score.reason for score in errors] == ["", "", ""]
    # An angle is only as exact as float32.
    assert [score.value for score in errors] == pytest.approx([0, 0, 0], abs=1e-6)
    assert metrics.width_error(reference, copy) == (0.0, "")
    assert metrics.phase_consistency(reference, copy).value == pytest.approx(1)
    for sdr in (metrics.sdr_mid, metrics.sdr_side):
        assert "equals the reference" in sdr(reference, copy).reason


def test_right_three_db_down_is_three_db_of_level_difference(reference: torch.Tensor) -> None:
    errors = metrics.cue_errors(reference, right_changed(reference, 10 ** (-3 / 20)))
    assert errors.ild.value == pytest.approx(3, abs=1e-3)
    assert errors.ipd.value == pytest.approx(0, abs=1e-4)
    assert errors.ic.value == pytest.approx(0, abs=1e-4)


def test_flipped_polarity_of_right_is_a_phase_difference_of_pi(reference: torch.Tensor) -> None:
    flipped = right_changed(reference, -1)
    errors = metrics.cue_errors(reference, flipped)
    assert errors.ipd.value == pytest.approx(math.pi, abs=1e-4)
    assert errors.ild.value == pytest.approx(0, abs=1e-4)
    assert errors.ic.value == pytest.approx(0, abs=1e-4)
    assert metrics.phase_consistency(reference, -reference).value == pytest.approx(-1)


def test_a_phase_turned_in_one_channel_is_read_in_radians(reference: torch.Tensor) -> None:
    spectrum = torch.fft.rfft(reference)
    spectrum[1] *= torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    turned = torch.fft.irfft(spectrum, n=reference.shape[-1])
    assert metrics.cue_errors(reference, turned).ipd.value == pytest.approx(0.7, abs=0.02)


def test_mono_collapse_shows(reference: torch.Tensor) -> None:
    mono = reference.mean(0, keepdim=True).repeat(2, 1)
    errors = metrics.cue_errors(reference, mono)
    assert errors.ild.value > 2
    assert errors.ic.value > 0.01
    assert metrics.sdr_side(reference, mono).value == pytest.approx(0, abs=1e-6)
    assert metrics.width_error(reference, mono).value > 40


def test_independent_phase_jitter_moves_only_the_phase_cues(reference: torch.Tensor) -> None:
    common, independent = phase_jitter(reference, common=True), phase_jitter(reference, common=False)
    before, after = metrics.cue_errors(reference, common), metrics.cue_errors(reference, independent)
    assert after.ipd.value > 2.5 * before.ipd.value
    assert after.ic.value > 2.5 * before.ic.value
    for metric in (spectral_metrics.mel_distance, spectral_metrics.si_sdr):
        assert metric(reference, independent).value == pytest.approx(metric(reference, common).value, rel=0.05)


def test_decorrelated_channels_lose_their_coherence() -> None:
    coherent = torch.randn(1, 48000).repeat(2, 1)
    apart = torch.randn(2, 48000)
    # Tiles average few bins and frames, so the coherence measured on noise is small, not 0.
    assert metrics.cue_errors(coherent, apart).ic.value > 0.5


def test_width_is_read_in_db(reference: torch.Tensor) -> None:
    mid, side = metrics.mid_and_side(reference)
    wider = torch.stack([mid + 2 * side, mid - 2 * side])
    assert metrics.width_error(reference, wider).value == pytest.approx(20 * math.log10(2), abs=1e-4)


def test_sdr_tells_the_ratio_put_in(reference: torch.Tensor) -> None:
    mid, side = metrics.mid_and_side(reference)
    estimate = torch.stack([0.9 * mid + 0.99 * side, 0.9 * mid - 0.99 * side])
    assert metrics.sdr_mid(reference, estimate).value == pytest.approx(20, abs=1e-3)
    assert metrics.sdr_side(reference, estimate).value == pytest.approx(40, abs=1e-2)


def test_a_mono_reference_has_no_side_to_distort(reference: torch.Tensor) -> None:
    mono = reference[:1].repeat(2, 1)
    score = metrics.sdr_side(mono, reference)
    assert math.isnan(score.value)
    assert score.reason == "the side signal of the reference is silent"
    assert metrics.width_error(mono, reference).value > 20


def all_scores(reference: torch.Tensor, estimate: torch.Tensor) -> list:
    alone = (metrics.sdr_mid, metrics.sdr_side, metrics.width_error, metrics.phase_consistency)
    return [*metrics.cue_errors(reference, estimate), *(metric(reference, estimate) for metric in alone)]


def test_silence_has_reasons_and_no_numbers(reference: torch.Tensor) -> None:
    for score in all_scores(torch.zeros_like(reference), reference):
        assert math.isnan(score.value)
        assert score.reason == "the reference is silent"
    cues_and_width = [*metrics.cue_errors(reference, 0 * reference), metrics.width_error(reference, 0 * reference)]
    for score in (*cues_and_width, metrics.phase_consistency(reference, 0 * reference)):
        assert math.isnan(score.value)
        assert "the estimate is silent" in score.reason


def test_one_dead_channel_has_no_phase_but_a_level(reference: torch.Tensor) -> None:
    errors = metrics.cue_errors(reference, right_changed(reference, 0))
    assert "one channel of the estimate is silent" in errors.ipd.reason
    assert errors.ild.value > 20
    dead_reference = metrics.cue_errors(right_changed(reference, 0), reference)
    assert "nothing in common" in dead_reference.ipd.reason


def test_stereo_metrics_refuse_mono_and_other_lengths(reference: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs \[2, samples\]"):
        metrics.cue_errors(reference[:1], reference[:1])
    with pytest.raises(ValueError, match="align"):
        metrics.width_error(reference, reference[:, 1:])


def test_bands_span_100_hz_to_16_khz_and_none_is_empty() -> None:
    edges = metrics.band_edges()
    assert edges.numel() == 25
    assert float(edges[0]) == pytest.approx(100)
    assert float(edges[-1]) == pytest.approx(16000)
    assert (metrics._erb_bands().sum(1) >= 1).all()
    assert (metrics._erb_bands().sum(0) <= 1).all()
