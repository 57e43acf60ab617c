"""Stereo metrics: mid and side, inter-channel level, phase and coherence, width.

The reference and the estimate (the decoded audio) are `[2, samples]` at 48 kHz, aligned to the sample. The cue errors
follow the binaural cues of parametric stereo (Breebaart et al. 2005; Faller and Baumgarte 2003). Metrics return
`Score`s and raise ValueError for audio of different shapes or of another number of channels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reports.metrics.score import Score
from reports.metrics.spectral import LONGEST_WINDOW, SAMPLE_RATE, is_silent, power, ratio_in_db, spectrum, unscorable

BANDS = 24  # equally wide on the ERB scale
LOWEST_HZ, HIGHEST_HZ = 100.0, 16000.0
SMOOTHED_FRAMES = 4
LOUD_TILES_DB = 60.0  # a tile counts if it lies within this of the reference's loudest
# The least level of one channel of a tile, against the loudest tile of the reference: it bounds the level difference.
CHANNEL_FLOOR_DB = -80.0
PHASE_BELOW_HZ = 1500.0  # above, the ear does not follow the phase of the carrier
WIDEST_RATIO_DB = 60.0  # a side-to-mid ratio beyond ±60 dB counts as "no mid" or "no side"

SETTINGS: dict[str, Any] = {
    "stft": (LONGEST_WINDOW, LONGEST_WINDOW // 4),
    "erb_bands": (BANDS, LOWEST_HZ, HIGHEST_HZ),
    "smoothed_frames": SMOOTHED_FRAMES,
    "loud_tiles_db": LOUD_TILES_DB,
    "channel_floor_db": CHANNEL_FLOOR_DB,
    "phase_below_hz": PHASE_BELOW_HZ,
    "widest_ratio_db": WIDEST_RATIO_DB,
}


class CueErrors(NamedTuple):
    """Weighted mean absolute differences between the cues of the estimate and those of the reference.

    ild: inter-channel level difference, dB. ipd: inter-channel phase difference, radians in [0, pi].
    ic: inter-channel coherence, in [0, 1].
    """

    ild: Score
    ipd: Score
    ic: Score


class _Cues(NamedTuple):
    energy: Tensor  # [2, bands, frames]
    cross: Tensor  # complex [bands, frames]: sum of L times conj(R)


def cue_errors(reference: Tensor, estimate: Tensor) -> CueErrors:
    """Compute the errors of the level, phase and coherence between the channels, over time-frequency tiles.

    Args:
        reference: `[2, samples]`.
        estimate: `[2, samples]`, aligned with the reference.

    Returns:
        The three errors; each is missing, with its reason, where it has no meaning.

    Raises:
        ValueError: If the audio is not stereo or the shapes differ.
    """
    if reason := _unscorable_stereo(reference, estimate):
        return CueErrors(*(Score.missing(reason),) * 3)
    if is_silent(estimate):
        return CueErrors(*(Score.missing("the estimate is silent: it has no stereo cues"),) * 3)
    x, y = _cues(reference), _cues(estimate)
    loudness = x.energy.sum(0)
    # [bands, frames]: the fourth root of the energy, on the loud tiles
    weight = loudness.pow(0.25) * (loudness >= loudness.max() * 10 ** (-LOUD_TILES_DB / 10))
    floor = loudness.max() * 10 ** (CHANNEL_FLOOR_DB / 10)
    x_floored, y_floored = (torch.maximum(cues.energy, floor) for cues in (x, y))
    coherence = _coherence(x.cross, x_floored)
    return CueErrors(
        ild=_weighted_mean((_level_difference(x_floored) - _level_difference(y_floored)).abs(), weight),
        ipd=_phase_error(x.cross, y.cross, weight * coherence),
        ic=_weighted_mean((coherence - _coherence(y.cross, y_floored)).abs(), weight),
    )


def mid_and_side(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Split stereo into mid `(L + R) / 2` and side `(L - R) / 2`.

    Args:
        audio: `[2, samples]`, left and right.

    Returns:
        Mid and side, each `[samples]`.
    """
    left, right = audio
    return (left + right) / 2, (left - right) / 2


def sdr_mid(reference: Tensor, estimate: Tensor) -> Score:
    """Return the signal-to-distortion ratio of the mid signal, `10 log10(sum x^2 / sum (x - y)^2)`, in dB."""
    return _sdr(reference, estimate, 0, "mid")


def sdr_side(reference: Tensor, estimate: Tensor) -> Score:
    """Return the signal-to-distortion ratio of the side signal in dB; missing if the reference is mono."""
    return _sdr(reference, estimate, 1, "side")


def width_error(reference: Tensor, estimate: Tensor) -> Score:
    """Return the absolute difference of the widths in dB.

    The width is `10 log10(E_side / E_mid)`, limited to ±WIDEST_RATIO_DB.
    """
    if reason := _unscorable_stereo(reference, estimate):
        return Score.missing(reason)
    if is_silent(estimate):
        return Score.missing("the estimate is silent: it has no width")
    return Score(abs(_width(reference) - _width(estimate)))


def phase_consistency(reference: Tensor, estimate: Tensor) -> Score:
    """Return `sum Re(X Y*) / sum |X| |Y|` over the STFT of both channels: 1 for equal phases, 0 for random phases."""
    if reason := _unscorable_stereo(reference, estimate):
        return Score.missing(reason)
    x, y = spectrum(reference, LONGEST_WINDOW), spectrum(estimate, LONGEST_WINDOW)
    magnitudes = float((power(x) * power(y)).sqrt().double().sum())
    if magnitudes == 0:
        return Score.missing("the estimate is silent: it has no phase")
    return Score(float((x * y.conj()).real.double().sum()) / magnitudes)


def _unscorable_stereo(reference: Tensor, estimate: Tensor) -> str:
    if reference.shape[0] != 2:
        raise ValueError(f"a stereo metric needs [2, samples]; given {list(reference.shape)}")
    return unscorable(reference, estimate)


def _cues(audio: Tensor) -> _Cues:
    X = spectrum(audio, LONGEST_WINDOW)  # [2, bins, frames]
    bands = _erb_bands().to(audio)  # [bands, bins]
    energy = bands @ power(X)  # [2, bands, frames]
    product = X[0] * X[1].conj()  # [bins, frames]
    cross = torch.complex(bands @ product.real, bands @ product.imag)  # [bands, frames]
    return _Cues(_smooth(energy), _smooth(cross))


def _smooth(tiles: Tensor) -> Tensor:
    return tiles.unfold(-1, SMOOTHED_FRAMES, 1).mean(-1)


def _level_difference(energy: Tensor) -> Tensor:
    return 10 * (energy[0] / energy[1]).log10()


def _coherence(cross: Tensor, energy: Tensor) -> Tensor:
    return (cross.abs() / (energy[0] * energy[1]).sqrt()).clamp(max=1)


def _phase_error(x: Tensor, y: Tensor, weight: Tensor) -> Score:
    low = band_centres() < PHASE_BELOW_HZ
    x, y, weight = x[low], y[low], weight[low]
    if not y.abs().any():
        return Score.missing("one channel of the estimate is silent: there is no phase between the channels")
    # The angle of x times conj(y) is the difference of the two angles, already wrapped to (-pi, pi].
    return _weighted_mean((x * y.conj()).angle().abs(), weight)


def _weighted_mean(error: Tensor, weight: Tensor) -> Score:
    total = float(weight.double().sum())
    if total == 0:
        return Score.missing("no tile of the reference counts: too quiet, or its channels have nothing in common")
    return Score(float((error.double() * weight.double()).sum()) / total)


def _sdr(reference: Tensor, estimate: Tensor, which: int, name: str) -> Score:
    if reason := _unscorable_stereo(reference, estimate):
        return Score.missing(reason)
    x, y = mid_and_side(reference)[which].double(), mid_and_side(estimate)[which].double()
    if is_silent(x):
        return Score.missing(f"the {name} signal of the reference is silent")
    return ratio_in_db(float(x @ x), float((x - y) @ (x - y)))


def _width(audio: Tensor) -> float:
    mid, side = (float(signal.double().square().sum()) for signal in mid_and_side(audio))
    if mid == 0:
        return WIDEST_RATIO_DB
    ratio = 10 * math.log10(side / mid) if side > 0 else -math.inf
    return min(max(ratio, -WIDEST_RATIO_DB), WIDEST_RATIO_DB)


# ---- bands ----------------------------------------------------------------------------------------------------------


def band_edges() -> Tensor:
    """Return the edges of the bands in Hz, `[BANDS + 1]`.

    They are equally spaced in ERB number, `21.4 log10(1 + 0.00437 f)` (Glasberg and Moore 1990).
    """
    low, high = (math.log1p(0.00437 * f) for f in (LOWEST_HZ, HIGHEST_HZ))
    return torch.linspace(low, high, BANDS + 1, dtype=torch.float64).expm1() / 0.00437


def band_centres() -> Tensor:
    """Return the centres of the bands in Hz, `[BANDS]`: the geometric mean of each band's edges."""
    edges = band_edges()
    return (edges[:-1] * edges[1:]).sqrt()


@lru_cache
def _erb_bands() -> Tensor:
    """`[BANDS, bins]`: 1 where the bin lies in the band, else 0. No bin lies in two bands."""
    frequencies = torch.arange(LONGEST_WINDOW // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / LONGEST_WINDOW
    edges = band_edges()[:, None]
    return ((frequencies >= edges[:-1]) & (frequencies < edges[1:])).float()
