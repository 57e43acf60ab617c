"""Distances between a reference and an estimate that treat the channels alike.

Both are `[channels, samples]` at 48 kHz, aligned to the sample. Every function returns a `Score`; a reference without
sound has no score. Shapes that differ are a mistake of the caller and raise ValueError: nothing is trimmed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

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
# Audio is float32: an error 160 dB below the signal is rounding, and its ratio means nothing.
ROUNDING = 1e-16

SETTINGS: dict[str, Any] = {
    "silence_dbfs": SILENCE_DBFS,
    "mel_scales": MEL_SCALES,
    "magnitude_floor": MAGNITUDE_FLOOR,
    "log_spectrum_floor_db": LOG_SPECTRUM_FLOOR_DB,
}


def mel_distance(reference: Tensor, estimate: Tensor) -> Score:
    """DAC's mel distance (`MelSpectrogramLoss` of its `dac/nn/loss.py`, default settings) at 48 kHz."""
    return _multi_scale_distance(reference, estimate, _mel_magnitudes)


def stft_distance(reference: Tensor, estimate: Tensor) -> Score:
    """DAC's STFT distance: the mel distance without the mel matrix (`MultiScaleSTFTLoss`)."""
    return _multi_scale_distance(reference, estimate, lambda audio, n_fft, _: magnitude(spectrum(audio, n_fft)))


def si_sdr(reference: Tensor, estimate: Tensor) -> Score:
    """Scale-invariant signal-to-distortion ratio in dB, means removed, all channels as one vector.

    Le Roux et al. 2019, as DAC computes it. The scale is the projection of the estimate on the reference. An exact copy
    has no finite ratio, so no score.
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
    """Difference of the spectra in dB: root mean square over frequency, then the mean over frames and channels."""
    if reason := unscorable(reference, estimate):
        return Score.missing(reason)
    x, y = (power(spectrum(audio, LONGEST_WINDOW)) for audio in (reference, estimate))
    floor = x.max() * 10 ** (LOG_SPECTRUM_FLOOR_DB / 10)
    difference = 10 * (torch.maximum(x, floor).log10() - torch.maximum(y, floor).log10())
    return Score(float(difference.square().mean(dim=-2).sqrt().mean()))


def spectrum(audio: Tensor, n_fft: int) -> Tensor:
    """`[channels, samples]` to complex `[channels, n_fft / 2 + 1, frames]`: Hann, hop n_fft / 4, centred, unscaled."""
    return torch.stft(
        audio, n_fft, n_fft // 4, window=_hann(n_fft).to(audio), center=True, pad_mode="reflect", return_complex=True
    )


def power(spectrum: Tensor) -> Tensor:
    """Squared magnitude of a complex tensor; several times faster than `abs`, which guards against overflow."""
    return spectrum.real.square() + spectrum.imag.square()


def magnitude(spectrum: Tensor) -> Tensor:
    """Magnitude of a complex tensor."""
    return power(spectrum).sqrt()


def unscorable(reference: Tensor, estimate: Tensor) -> str:
    """Why this pair has no spectral or stereo score; "" if it has one. ValueError if the shapes differ."""
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
    """True if the RMS over all channels is at or below SILENCE_DBFS."""
    return level_dbfs(audio) <= SILENCE_DBFS


def level_dbfs(audio: Tensor) -> float:
    """RMS over all of `audio` in dB below full scale (1.0); -inf for digital silence."""
    power = float(audio.double().square().mean())
    return 10 * math.log10(power) if power > 0 else -math.inf


def ratio_in_db(signal: float, error: float) -> Score:
    """`10 log10(signal / error)`; missing if the error is no more than rounding."""
    if error <= ROUNDING * signal:
        return Score.missing("infinite: the estimate equals the reference")
    return Score(10 * math.log10(signal / error))


def _multi_scale_distance(
    reference: Tensor, estimate: Tensor, magnitudes: Callable[[Tensor, int, int], Tensor]
) -> Score:
    # d = sum over scales of  mean|log10 max(X, 1e-5)^2 - log10 max(Y, 1e-5)^2|  +  mean|X - Y|
    if reason := unscorable(reference, estimate):
        return Score.missing(reason)
    distance = 0.0
    for n_fft, mels in MEL_SCALES:
        x, y = magnitudes(reference, n_fft, mels), magnitudes(estimate, n_fft, mels)
        distance += float(l1_loss(_log_power(y), _log_power(x)) + l1_loss(y, x))
    return Score(distance)


def _log_power(magnitude: Tensor) -> Tensor:
    return 2 * magnitude.clamp(min=MAGNITUDE_FLOOR).log10()


def _mel_magnitudes(audio: Tensor, n_fft: int, mels: int) -> Tensor:
    """`[channels, samples]` to `[channels, mels, frames]`."""
    return _mel_filters(n_fft, mels).to(audio) @ magnitude(spectrum(audio, n_fft))


@lru_cache
def _hann(n_fft: int) -> Tensor:
    return torch.hann_window(n_fft)  # periodic, as scipy.signal.get_window gives it to DAC


@lru_cache
def _mel_filters(n_fft: int, mels: int) -> Tensor:
    """Slaney's filters as librosa makes them, `[mels, n_fft / 2 + 1]`, 0 Hz to half the sample rate."""
    with warnings.catch_warnings():
        # 80 bands on 257 bins leave a few of the lowest filters without a bin. DAC's own definition has these empty
        # filters too (both spectra are floored there and differ by 0), so they are wanted here.
        warnings.filterwarnings(
            "ignore", message="At least one mel filterbank has all zero values", module="torchaudio"
        )
        filters = melscale_fbanks(
            n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
    return filters.T.contiguous()
