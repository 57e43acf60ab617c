"""Pictures of audio: spectrograms of mid and side, inter-channel phase error, goniometer, as WebP bytes.

Audio is `[2, samples]`, left and right. All audio in one picture is of one segment, of one length and aligned to the
sample.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from reports.figures.style import MUTED, WIDTH, drawing, new_figure, webp
from reports.tables.rendering import number

# White is no error, blue and vermilion are lead and lag, and black, where both meet, is inverted polarity.
_PHASE_COLORS = LinearSegmentedColormap.from_list("phase", ["#111111", "#0072b2", "#ffffff", "#d55e00", "#111111"])

Audio = NDArray[np.float32]
Spectrum = NDArray[np.complex128]

WINDOW = 2048
HOP = 512
RANGE_DB = 80.0  # below the loudest tile of the reference
AUDIBLE_DB = 60.0  # phase is drawn only where the reference is within this of its loudest tile
GONIOMETER_BINS = 141
PHASE_FRAMES = 4  # cross-spectra are averaged over this many frames, as the metrics do
PHASE_LIMIT_HZ = 6000.0


def spectrograms(audio: Mapping[str, Audio], sample_rate: int) -> bytes:
    """Draw spectrograms: mid above side, one column per system, one dB scale for all panels.

    Args:
        audio: Title -> `[2, samples]`, the reference first. Its loudest tile is 0 dB.
        sample_rate: Hz.

    Returns:
        WebP.
    """
    spectra = {title: _mid_side(samples) for title, samples in audio.items()}
    extent = (next(iter(audio.values())).shape[1] / sample_rate, sample_rate / 2)
    peak = max(np.abs(part).max() for part in next(iter(spectra.values()))) or 1.0
    with drawing("spectrograms"):
        figure = new_figure(4.2)
        panels = figure.subplots(2, len(spectra), sharex=True, sharey=True, squeeze=False)
        for column, (title, parts) in enumerate(spectra.items()):
            for row, (label, part) in enumerate(zip(("mid", "side"), parts, strict=True)):
                image = spectrogram_panel(panels[row, column], decibels(part, peak), extent, "magma", (-RANGE_DB, 0))
                panels[row, column].set_title(_wrapped(f"{title}, {label}"))
            panels[1, column].set_xlabel("seconds")
        for row in range(2):
            panels[row, 0].set_ylabel("kHz")
        bar = figure.colorbar(image, ax=panels, shrink=0.9, pad=0.01, aspect=40)
        bar.set_label("dB, re loudest tile of the reference")
        return webp(figure)


def phase_errors(reference: Audio, decoded: Mapping[str, Audio], sample_rate: int) -> bytes:
    """Draw the error of the phase between left and right, up to `PHASE_LIMIT_HZ`.

    White is no error, black is inverted polarity, grey is where the reference is too quiet to matter.

    Args:
        reference: `[2, samples]`.
        decoded: Title -> `[2, samples]`, aligned with the reference.
        sample_rate: Hz.

    Returns:
        WebP.
    """
    with drawing("phase-errors"):
        figure = new_figure(2.6, width=min(WIDTH, 1.0 + 3.1 * len(decoded)))
        panels = figure.subplots(1, len(decoded), sharey=True, squeeze=False)[0]
        extent = (reference.shape[1] / sample_rate, PHASE_LIMIT_HZ)
        for panel, (title, samples) in zip(panels, decoded.items(), strict=True):
            error, weights = _phase_error(reference, samples, sample_rate)
            shown = np.ma.masked_where(weights == 0, error)
            image = spectrogram_panel(panel, shown, extent, _PHASE_COLORS, (-np.pi, np.pi))
            panel.set_facecolor("#c8ccd0")
            panel.set_title(_wrapped(f"{title}: mean {number(_mean_error(error, weights), 2)} rad"))
            panel.set_xlabel("seconds")
        panels[0].set_ylabel("kHz")
        bar = figure.colorbar(image, ax=panels, pad=0.01, aspect=30, ticks=[-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi])
        bar.ax.set_yticklabels(["−π", "−π/2", "0", "π/2", "π"])
        bar.set_label("phase error, rad")
        return webp(figure)


def mean_phase_error(reference: Audio, decoded: Audio, sample_rate: int) -> float:
    """Compute the mean absolute phase error in rad, weighted by the reference's energy.

    Args:
        reference: `[2, samples]`.
        decoded: `[2, samples]`, aligned with the reference.
        sample_rate: Hz.

    Returns:
        Radians in [0, pi]; NaN if the reference is silent.
    """
    return _mean_error(*_phase_error(reference, decoded, sample_rate))


def goniometers(audio: Mapping[str, Audio]) -> bytes:
    """Draw the density of (left, right) sample pairs, rotated so that mid is vertical and side is horizontal.

    The reference sets the extent of all panels; one scale of counts holds for all.

    Args:
        audio: Title -> `[2, samples]`, the reference first.

    Returns:
        WebP.
    """
    reach = float(np.quantile(np.abs(_turned(next(iter(audio.values())))), 0.999)) * 1.25 or 1.0
    densities = {title: np.log10(1 + goniometer_density(samples, reach)) for title, samples in audio.items()}
    highest = max(density.max() for density in densities.values())
    with drawing("goniometers"):
        figure = new_figure(2.6, width=min(WIDTH, 2.4 * len(audio)))
        panels = figure.subplots(1, len(audio), sharex=True, sharey=True, squeeze=False)[0]
        for panel, (title, density) in zip(panels, densities.items(), strict=True):
            box = (-reach, reach, -reach, reach)
            panel.imshow(density, origin="lower", extent=box, cmap="magma", vmin=0, vmax=highest)
            _diagonals(panel, reach)
            panel.set_title(_wrapped(title))
        return webp(figure)


def goniometer_density(audio: Audio, reach: float) -> NDArray[np.float64]:
    """Count sample pairs in a grid over mid and side.

    Args:
        audio: `[2, samples]`.
        reach: Both axes go from `-reach` to `reach`.

    Returns:
        Counts, `[mid, side]`, `GONIOMETER_BINS` bins each.
    """
    side, mid = _turned(audio)
    edges = np.linspace(-reach, reach, GONIOMETER_BINS + 1)
    counts, _, _ = np.histogram2d(mid, side, bins=(edges, edges))
    return counts


def _diagonals(panel: Axes, reach: float) -> None:
    panel.plot([-reach, reach], [-reach, reach], color="white", linewidth=0.4, alpha=0.5)
    panel.plot([-reach, reach], [reach, -reach], color="white", linewidth=0.4, alpha=0.5)
    for label, x, y in (("L", 0.06, 0.94), ("R", 0.94, 0.94)):
        panel.text(x, y, label, transform=panel.transAxes, color="white", ha="center", va="center")
    panel.set(xticks=[], yticks=[], xlabel="side", ylabel="mid")
    panel.xaxis.label.set_color(MUTED)
    panel.yaxis.label.set_color(MUTED)


def _turned(audio: Audio) -> Audio:
    """(side, mid) of `[2, samples]`; left lies on the upper left diagonal, as on a hardware goniometer."""
    left, right = audio
    return (np.stack([right - left, left + right]) / np.sqrt(2)).astype(np.float32)


def spectrogram_panel(
    panel: Axes,
    values: NDArray[np.float64],
    extent: tuple[float, float],
    colors: str | Colormap,
    limits: tuple[float, float],
) -> AxesImage:
    """Draw values over time and frequency.

    Args:
        panel: Where to draw.
        values: `[frequency, frame]`.
        extent: Width in seconds and height in Hz.
        colors: The colour map.
        limits: The values at its two ends.

    Returns:
        The image, for a colour bar.
    """
    seconds, hertz = extent
    panel.grid(visible=False)
    return panel.imshow(
        values,
        origin="lower",
        aspect="auto",
        interpolation="nearest",  # an average of two phases may be far from both
        extent=(0, seconds, 0, hertz / 1000),
        cmap=colors,
        vmin=limits[0],
        vmax=limits[1],
    )


def _mid_side(audio: Audio) -> tuple[Spectrum, Spectrum]:
    left, right = audio
    return stft((left + right) / 2), stft((left - right) / 2)


def _phase_error(reference: Audio, decoded: Audio, sample_rate: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """angle(X_L X_R* . conj(Y_L Y_R*)) of reference X and decoded Y, and weights: X's energy where it is audible."""
    bins = int(PHASE_LIMIT_HZ / sample_rate * WINDOW) + 1
    target, given = _cross_spectrum(reference), _cross_spectrum(decoded)
    level = np.abs(target)
    weights = np.where(level > level.max() * 10 ** (-AUDIBLE_DB / 10), level, 0.0)
    return np.angle(target * np.conj(given))[:bins], weights[:bins]


def _mean_error(error: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(np.average(np.abs(error), weights=weights)) if weights.any() else math.nan


def _cross_spectrum(audio: Audio) -> Spectrum:
    """L R* averaged over `PHASE_FRAMES` frames, `[frequency, frame]`."""
    left, right = audio
    products = stft(left) * np.conj(stft(right))
    sums = np.cumsum(np.pad(products, ((0, 0), (PHASE_FRAMES, 0))), axis=1)
    return (sums[:, PHASE_FRAMES:] - sums[:, :-PHASE_FRAMES]) / PHASE_FRAMES


def stft(samples: NDArray[np.float32]) -> Spectrum:
    """Compute the STFT: Hann window of `WINDOW` samples, hop `HOP`.

    Args:
        samples: `[samples]`; less than one window is padded with zeros.

    Returns:
        Complex `[frequency, frame]`.
    """
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.fft.rfft(frames * np.hanning(WINDOW), axis=1).T


def decibels(spectrum: Spectrum, peak: float) -> NDArray[np.float64]:
    """Return the magnitude of each tile in dB relative to `peak`, at least `-RANGE_DB`.

    Args:
        spectrum: Complex, any shape.
        peak: The magnitude at 0 dB.
    """
    return 20 * np.log10(np.maximum(np.abs(spectrum) / peak, 10 ** (-RANGE_DB / 20)))


def _wrapped(title: str) -> str:
    """Break a long title, so that it does not run into the next one."""
    return textwrap.fill(title, 26)
