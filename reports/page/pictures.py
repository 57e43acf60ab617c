"""The figures of a page: which ones, in which section, with which captions."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from markupsafe import Markup
from PIL import Image

from reports.figures import curves as figures
from reports.figures import spectrograms as spectrogram_figures
from reports.figures.curves import Drawn
from reports.figures.spectrograms import Audio
from reports.figures.style import DOTS_PER_INCH, WIDTH, inline_svg
from reports.page.audio_players import data_uri, file_name
from reports.page.report_input import ReportInput
from reports.tables.peer_tables import matched_pairs
from reports.tables.rendering import number
from reports.track_scores import Point, TrackScores


@dataclass(frozen=True)
class Picture:
    """A figure in its section of the page, with either `svg` or `source`."""

    name: str
    section: str
    alt: str
    caption: str
    file: str
    svg: Markup | None = None  # inline markup
    source: str = ""  # a data: URI
    share: float = 1.0  # of the text's width, so that letters have one size in all figures


def draw_pictures(report: ReportInput, scores: TrackScores, drawn: Drawn, folder: Path) -> tuple[Picture, ...]:
    """Draw all figures for which the report has data.

    Args:
        report: The data of the report.
        scores: The scores of its records.
        drawn: Titles and styles of the systems.
        folder: Is created and receives the figures.

    Returns:
        The figures in the order of the page.
    """
    folder.mkdir()
    place = _Folder(folder)
    drawings = (_axes, _other_codecs, _training, _sound)
    return tuple(picture for draw in drawings for picture in draw(report, scores, drawn, place))


class _Folder:
    """Writes figures and wraps them for the page."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def svg(self, name: str, section: str, text: str, alt: str, caption: str) -> Picture:
        file = f"{name}.svg"
        (self._folder / file).write_text(text, encoding="utf-8")
        return Picture(name, section, alt, caption, file, svg=Markup(inline_svg(text, name)))

    def webp(self, name: str, section: str, content: bytes, alt: str, caption: str) -> Picture:
        file = f"{name}.webp"
        (self._folder / file).write_bytes(content)
        share = Image.open(io.BytesIO(content)).width / (DOTS_PER_INCH * WIDTH)
        return Picture(name, section, alt, caption, file, source=data_uri(content, "image/webp"), share=share)


def _axes(report: ReportInput, scores: TrackScores, drawn: Drawn, place: _Folder) -> Iterator[Picture]:
    anchor = (report.baseline, report.ablation_levels)
    if not scores.points(report.baseline):
        return
    explanation = (
        "Every dot is one training run. The dot with a ring is the baseline, a hollow dot is a further seed, and n/a "
        "means that the run has no score. Bars: 95 % interval of the paired difference to the baseline over tracks; a "
        "bar that does not cross the dashed line is a difference."
    )
    for title, positions in report.axes.items():
        if not positions:
            continue
        name = file_name("axis", title)
        text = figures.ablation_axis(title, scores, positions, anchor, drawn, name)
        caption = f"{title}, at {report.ablation_levels} levels. {explanation}"
        explanation = "Drawn as above."
        yield place.svg(name, "axes", text, f"Quality and stereo-cue error over {title}", caption)


def _other_codecs(report: ReportInput, scores: TrackScores, drawn: Drawn, place: _Folder) -> Iterator[Picture]:
    systems = [system for system in (report.baseline, *report.peers) if scores.points(system)]
    if not systems:
        return
    text = figures.rate_curves(scores, systems, drawn)
    caption = "Mean over tracks at every measured rate; bands are 95 % bootstrap intervals over tracks."
    yield place.svg("rate_curves", "peers", text, "Quality over total bit rate", caption)
    metric = figures.quality_metric(scores)
    for index, other in enumerate(report.peers):
        pairs = [(ours, theirs) for _, ours, theirs in matched_pairs(scores, report.baseline, (other,))]
        if pairs:
            name = f"scatter_{index + 1}" if len(report.peers) > 1 else "scatter"
            text = figures.track_scatter(scores, pairs, metric, drawn, name)
            caption = "One dot per track. In the shaded half our codec is better; on the line both are equal."
            yield place.svg(name, "peers", text, f"{drawn.titles[other]} and ours, track by track", caption)


def _training(report: ReportInput, scores: TrackScores, drawn: Drawn, place: _Folder) -> Iterator[Picture]:
    curves = {name: report.curves[name] for name in _baseline_first(report) if not report.curves[name].empty}
    if curves:
        caption = (
            "All runs over the same steps, as running means over one thirtieth of the longest run; the thick line is "
            "the baseline."
        )
        text = figures.training_curves(curves, drawn)
        yield place.svg("training_curves", "training", text, "Training and validation curves of all runs", caption)


def _baseline_first(report: ReportInput) -> list[str]:
    return sorted(report.curves, key=lambda system: system != report.baseline)


def _sound(report: ReportInput, scores: TrackScores, drawn: Drawn, place: _Folder) -> Iterator[Picture]:
    segment, points = _shown_audio(report, scores)
    if not points:
        return
    reference, rate = _read(report.reference_audio[segment])
    decoded: dict[str, Audio] = {}
    for system, levels in points:
        audio, decoded_rate = _read(report.decoded_audio[system, levels, segment])
        if (audio.shape, decoded_rate) != (reference.shape, rate):
            raise ValueError(
                f"{report.decoded_audio[system, levels, segment]} is {audio.shape} at {decoded_rate} Hz, its reference "
                f"{reference.shape} at {rate} Hz; write decoded audio aligned to the reference, sample by sample"
            )
        decoded[drawn.titles[system]] = audio
    words = " and ".join(f"{drawn.titles[point[0]]} at {number(scores.rates.get(point), 2)} kbps" for point in points)
    about = f"Segment “{segment}”: the reference, {words}."
    yield from _sound_pictures({"Reference": reference, **decoded}, rate, about, place)


def _sound_pictures(audio: dict[str, Audio], rate: int, about: str, place: _Folder) -> Iterator[Picture]:
    decoded = {title: samples for title, samples in audio.items() if title != "Reference"}
    yield place.webp(
        "spectrograms",
        "pictures",
        spectrogram_figures.spectrograms(audio, rate),
        "Spectrograms of mid and side",
        f"{about} Mid above, side below, one dB scale for all panels.",
    )
    yield place.webp(
        "phase_errors",
        "pictures",
        spectrogram_figures.phase_errors(audio["Reference"], decoded, rate),
        "Error of the phase between left and right",
        f"{about} Error of the phase between left and right: white is no error, dark is inverted polarity, grey is "
        "where the reference is too quiet to matter. The mean is weighted by the reference's energy.",
    )
    yield place.webp(
        "goniometers",
        "pictures",
        spectrogram_figures.goniometers(audio),
        "Goniometers",
        f"{about} Density of left and right sample pairs: mono is an upright line, width spreads it sideways.",
    )


def _shown_audio(report: ReportInput, scores: TrackScores) -> tuple[str, list[Point]]:
    """The segment that most compared systems decoded: ours at the ablation's rate, other codecs near that rate."""
    choices = [(segment, _points(report, scores, segment)) for segment in report.reference_audio]
    return max(choices, key=lambda choice: len(choice[1]), default=("", []))


def _points(report: ReportInput, scores: TrackScores, segment: str) -> list[Point]:
    available = [(system, levels) for system, levels, name in report.decoded_audio if name == segment]
    ours = min(
        (point for point in available if point[0] == report.baseline),
        key=lambda point: abs(point[1] - report.ablation_levels),
        default=None,
    )
    if ours is None:
        return []
    rate = scores.rates.get(ours, math.nan)
    nearest = [
        min(theirs, key=lambda point: abs(scores.rates.get(point, math.inf) - rate))
        for other in report.peers
        if (theirs := [point for point in available if point[0] == other])
    ]
    return [ours, *nearest[:2]]


def _read(path: Path) -> tuple[Audio, int]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T), int(rate)
