"""Metrics that treat all channels alike: spectral distances, SI-SDR, clipping.

The reference and the estimate (the decoded audio) are `[channels, samples]` at 48 kHz, aligned to the sample. A metric
returns a `Score`, which is missing if the reference is silent. Audio of different shapes raises ValueError; no function
trims its input.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from reports.metrics.score import Score
from spectrostream.torchaudio_functional import melscale_fbanks

SAMPLE_RATE = 48000  # Hz
SILENCE_DBFS = -90.0  # RMS; the dither of a 16-bit file alone lies near -96 dBFS
LONGEST_WINDOW = 2048  # samples
MEL_SCALES = ((2048, 150), (512, 80))  # (n_fft, mel bands); hop n_fft / 4
MAGNITUDE_FLOOR = 1e-5
LOG_SPECTRUM_FLOOR_DB = -80.0  # against the reference's peak
# Audio is float32: an error 160 dB below the signal is rounding, so its ratio has no meaning.
ROUNDING = 1e-16

SETTINGS: dict[str, Any] = {
    "silence_dbfs": SILENCE_DBFS,
    "mel_scales": MEL_SCALES,
    "magnitude_floor": MAGNITUDE_FLOOR,
    "log_spectrum_floor_db": LOG_SPECTRUM_FLOOR_DB,
}


class SpectralDistances(NamedTuple):
    """DAC's two spectral distances (default settings of its `dac/nn/loss.py`) at 48 kHz."""

    mel: Score  # `MelSpectrogramLoss`
    stft: Score  # `MultiScaleSTFTLoss`: the same without the mel matrix


def spectral_distances(reference: Tensor, estimate: Tensor) -> SpectralDistances:
    """Compute the mel distance and the STFT distance from the same spectra.

    Args:
        reference: `[channels, samples]` at 48 kHz.
        estimate: `[channels, samples]`, aligned with the reference.

    Returns:
        Both distances, without a unit; 0 for an exact copy.

    Raises:
        ValueError: If the shapes differ.
    """
    # d = sum over scales of  mean|log10 max(X, 1e-5)^2 - log10 max(Y, 1e-5)^2|  +  mean|X - Y|
    if reason := unscorable(reference, estimate):
        return SpectralDistances(*(Score.missing(reason),) * 2)
    mel = stft = 0.0
    for n_fft, mels in MEL_SCALES:
        x, y = (magnitude(spectrum(audio, n_fft)) for audio in (reference, estimate))
        filters = _mel_filters(n_fft, mels).to(x)
        stft += _magnitude_distance(x, y)
        mel += _magnitude_distance(filters @ x, filters @ y)
    return SpectralDistances(Score(mel), Score(stft))


def mel_distance(reference: Tensor, estimate: Tensor) -> Score:
    """Return DAC's mel distance; see `spectral_distances`."""
    return spectral_distances(reference, estimate).mel


def si_sdr(reference: Tensor, estimate: Tensor) -> Score:
    """Compute the scale-invariant signal-to-distortion ratio (Le Roux et al. 2019), as DAC does.

    All channels form one vector, and its mean is removed. The scale is the projection of the estimate on the reference.

    Args:
        reference: `[channels, samples]`.
        estimate: `[channels, samples]`, aligned with the reference.

    Returns:
        The ratio in dB. It is missing for an exact copy, which has no finite ratio.

    Raises:
        ValueError: If the shapes differ.
    """
    if reason := unscorable(reference, estimate):
        return Score.missing(reason)
    x, y = (audio.double().flatten() for audio in (reference, estimate))
    x, y = x - x.mean(), y - y.mean()
    target = (x @ y) / (x @ x) * x
    signal, error = float(target @ target), float((y - target) @ (y - target))
    if signal == 0:
        return Score.missing("the estimate has nothing of the reference in it")
    return ratio_in_db(signal, error)


def log_spectral_distance(reference: Tensor, estimate: Tensor) -> Score:
    """Compute the difference of the spectra: root mean square over frequency, then mean over frames and channels.

    Args:
        reference: `[channels, samples]`.
        estimate: `[channels, samples]`, aligned with the reference.

    Returns:
        The distance in dB.

    Raises:
        ValueError: If the shapes differ.
    """
    if reason := unscorable(reference, estimate):
        return Score.missing(reason)
    x, y = (power(spectrum(audio, LONGEST_WINDOW)) for audio in (reference, estimate))
    floor = x.max() * 10 ** (LOG_SPECTRUM_FLOOR_DB / 10)
    difference = 10 * (torch.maximum(x, floor).log10() - torch.maximum(y, floor).log10())
    return Score(float(difference.square().mean(dim=-2).sqrt().mean()))


def clipped_samples(_reference: Tensor, estimate: Tensor) -> Score:
    """Count the samples of the estimate beyond full scale (1.0)."""
    return Score(float((estimate.abs() > 1).sum()))


def spectrum(audio: Tensor, n_fft: int) -> Tensor:
    """Compute the STFT: Hann window, hop `n_fft / 4`, centred, unscaled.

    Args:
        audio: `[channels, samples]`.
        n_fft: Window length in samples.

    Returns:
        Complex `[channels, n_fft / 2 + 1, frames]`.
    """
    return torch.stft(
        audio, n_fft, n_fft // 4, window=_hann(n_fft).to(audio), center=True, pad_mode="reflect", return_complex=True
    )


def power(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude of a complex tensor; several times faster than `abs`, which guards against overflow.

    Args:
        spectrum: Complex, any shape.

    Returns:
        Real, the same shape.
    """
    return spectrum.real.square() + spectrum.imag.square()


def magnitude(spectrum: Tensor) -> Tensor:
    """Return the magnitude of a complex tensor, in its shape."""
    return power(spectrum).sqrt()


def unscorable(reference: Tensor, estimate: Tensor) -> str:
    """Say why a pair has no spectral or stereo score.

    Args:
        reference: `[channels, samples]`.
        estimate: `[channels, samples]`.

    Returns:
        The reason; "" if the pair has a score.

    Raises:
        ValueError: If the shapes differ or are not two-dimensional.
    """
    if reference.ndim != 2 or reference.shape != estimate.shape:
        raise ValueError(
            f"a metric compares two [channels, samples] of one shape; given {list(reference.shape)} and"
            f" {list(estimate.shape)}: align the estimate with its reference first"
        )
    if reference.shape[-1] < LONGEST_WINDOW:
        return f"shorter than one analysis window ({LONGEST_WINDOW} samples)"
    if not estimate.isfinite().all():
        return "the output is not finite"
    if is_silent(reference):
        return "the reference is silent"
    return ""


def is_silent(audio: Tensor) -> bool:
    """Tell whether the RMS over all channels is at or below `SILENCE_DBFS`."""
    return level_dbfs(audio) <= SILENCE_DBFS


def level_dbfs(audio: Tensor) -> float:
    """Return the RMS over all of `audio` in dBFS (0 dBFS is an RMS of 1.0); -inf for digital silence."""
    power = float(audio.double().square().mean())
    return 10 * math.log10(power) if power > 0 else -math.inf


def ratio_in_db(signal: float, error: float) -> Score:
    """Return `10 log10(signal / error)` in dB; missing if the error is no more than rounding.

    Args:
        signal: Energy of the reference.
        error: Energy of the difference.
    """
    if error <= ROUNDING * signal:
        return Score.missing("infinite: the estimate equals the reference")
    return Score(10 * math.log10(signal / error))


def _magnitude_distance(x: Tensor, y: Tensor) -> float:
    return float(l1_loss(_log_power(y), _log_power(x)) + l1_loss(y, x))


def _log_power(magnitude: Tensor) -> Tensor:
    return 2 * magnitude.clamp(min=MAGNITUDE_FLOOR).log10()


@lru_cache
def _hann(n_fft: int) -> Tensor:
    return torch.hann_window(n_fft)  # periodic, as scipy.signal.get_window gives it to DAC


@lru_cache
def _mel_filters(n_fft: int, mels: int) -> Tensor:
    """Slaney's filters as in librosa, `[mels, n_fft / 2 + 1]`, from 0 Hz to half the sample rate."""
    with warnings.catch_warnings():
        # 80 bands on 257 bins leave a few of the lowest filters without a bin. DAC's own definition has the same empty
        # filters. They add 0 to the distance, because both spectra are at the floor there.
        warnings.filterwarnings(
            "ignore", message="At least one mel filterbank has all zero values", module="torchaudio"
        )
        filters = melscale_fbanks(
            n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
    return filters.T.contiguous()
