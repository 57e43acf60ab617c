"""Pictures of a codec in training: a segment before and after coding, and the usage of the codebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator
from PIL import Image

from reports.figures.spectrograms import RANGE_DB, Audio, Spectrum, decibels, spectrogram_panel, stft
from reports.figures.style import MUTED, OURS, drawing, new_figure, pixels

DIFFERENCE_DB = 30.0  # at the ends of the difference's colour map
# Blue is energy that is missing, vermilion is energy that was added.
_DIFFERENCE_COLORS = LinearSegmentedColormap.from_list(
    "difference", ["#003a5c", "#0072b2", "#ffffff", "#d55e00", "#6b2c00"]
)


def segment_picture(original: Audio, decoded: Audio, sample_rate: int) -> Image.Image:
    """Draw spectrograms of the original, the decoded audio and the difference of their levels, from left to right.

    Stereo is shown as mid above side, other audio channel by channel. 0 dB is the original's loudest tile. Lower levels
    than `-RANGE_DB` count as `-RANGE_DB`, so that the difference of two silences is zero.

    Args:
        original: `[channels, samples]`.
        decoded: `[channels, samples]`, aligned with the original.
        sample_rate: Hz.
    """
    rows = _rows(original)
    before, after = ([_spectrum(audio, row) for row in rows] for audio in (original, decoded))
    peak = max(np.abs(part).max() for part in before) or 1.0
    extent = (original.shape[1] / sample_rate, sample_rate / 2)
    with drawing("clip"):
        figure = new_figure(0.6 + 1.7 * len(rows), width=9.0)
        panels = figure.subplots(len(rows), 3, sharex=True, sharey=True, squeeze=False)
        for row, name in enumerate(rows):
            levels = [decibels(part[row], peak) for part in (before, after)]
            for panel, title, values in zip(panels[row], ("original", "decoded"), levels, strict=False):
                level_image = spectrogram_panel(panel, values, extent, "magma", (-RANGE_DB, 0))
                panel.set_title(f"{title}, {name}")
            limits = (-DIFFERENCE_DB, DIFFERENCE_DB)
            last = panels[row, 2]
            difference_image = spectrogram_panel(last, levels[1] - levels[0], extent, _DIFFERENCE_COLORS, limits)
            last.set_title(f"decoded − original, {name}")
            panels[row, 0].set_ylabel("kHz")
        for panel in panels[-1]:
            panel.set_xlabel("seconds")
        figure.colorbar(level_image, ax=panels[:, 1], pad=0.02, aspect=30).set_label("dB, re loudest tile")
        figure.colorbar(difference_image, ax=panels[:, 2], pad=0.02, aspect=30).set_label("dB: − missing, + too much")
        return pixels(figure)


def codebook_picture(perplexity: Sequence[float], used: Sequence[float], entries: int) -> Image.Image:
    """Draw the perplexity above the share of used entries, level by level.

    Args:
        perplexity: `[levels]`.
        used: `[levels]`, in [0, 1].
        entries: Entries of each codebook.
    """
    with drawing("codebooks"):
        figure = new_figure(3.2)
        upper, lower = figure.subplots(2, 1, sharex=True)
        _bars(upper, perplexity, entries, "perplexity", f"{entries} entries")
        _bars(lower, [100 * share for share in used], 100, "entries in use (%)", "all")
        upper.set_title("Codebooks: perplexity (effective number of entries) and entries in use")
        lower.set_xlabel("quantizer level")
        return pixels(figure)


def _bars(panel: Axes, values: Sequence[float], most: float, label: str, most_in_words: str) -> None:
    """Draw a bar for each level, and a line at the largest possible value."""
    panel.bar(range(1, len(values) + 1), values, color=OURS, width=0.8)
    panel.axhline(most, color=MUTED, linewidth=0.8, linestyle=(0, (5, 1.5)))
    panel.annotate(
        most_in_words,
        (1, most),
        (0, 1),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=MUTED,
        fontsize=7,
    )
    panel.grid(visible=False, axis="x")
    panel.set(ylim=(0, 1.2 * most), xlim=(0.3, len(values) + 0.7), ylabel=label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rows(audio: Audio) -> tuple[str, ...]:
    channels = audio.shape[0]
    return ("mid", "side") if channels == 2 else tuple(f"channel {number}" for number in range(1, channels + 1))


def _spectrum(audio: Audio, row: str) -> Spectrum:
    if row == "mid":
        return stft(audio.mean(axis=0))
    if row == "side":
        return stft((audio[0] - audio[1]) / 2)
    return stft(audio[int(row.rpartition(" ")[2]) - 1])
