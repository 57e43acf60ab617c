"""The picture of a corpus: every hour is in it, labels do not overlap, the same table gives the same bytes."""

from __future__ import annotations

import io
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from reports.figures.corpus_figures import _figure, corpus_picture
from reports.figures.style import drawing

HISTOGRAMS = ("Bandwidth", "Loudness", "Stereo width", "Length")


def _tracks(count: int, corpus: str = "folder", seed: int = 0, **columns: object) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    mono = random.random(count) < 0.1
    return pd.DataFrame(
        {
            "corpus": corpus,
            "duration_seconds": random.lognormal(5, 1, count),
            "sample_rate": pd.array(random.choice([44100, 48000], count), dtype="Int64"),
            "channels": pd.array(np.where(mono, 1, 2), dtype="Int64"),
            "container": "FLAC",
            "subtype": "PCM_16",
            "genre": random.choice(["Rock", "Pop", ""], count),
            "bandwidth_hz": random.uniform(8000, 24000, count),
            "loudness_lufs": random.normal(-16, 5, count),
            "side_to_mid_db": np.where(mono, np.nan, random.normal(-9, 4, count)),
        }
        | columns
    )


def _panels(figure: Figure) -> dict[str, Axes]:
    return {panel.get_title(loc="left"): panel for panel in figure.get_axes()}


def _drawn_hours(panel: Axes) -> float:
    return sum(bar.get_height() for container in panel.containers for bar in container.patches)


@pytest.mark.slow
@pytest.mark.parametrize("corpora", [1, 3, 9])
def test_every_hour_is_in_every_panel(corpora: int) -> None:
    table = pd.concat([_tracks(20, f"corpus {n}", n) for n in range(corpora)], ignore_index=True)
    table.loc[3, ["loudness_lufs", "side_to_mid_db"]] = [-90.0, -math.inf]  # beyond the axes, so in the outer bins
    table.loc[4, "duration_seconds"] = 9e4
    hours = table["duration_seconds"] / 3600
    with drawing("test"):
        panels = _panels(_figure(table))

    assert len(panels) == len(HISTOGRAMS) + 2
    expected = {name: hours.sum() for name in HISTOGRAMS}
    expected["Stereo width"] = hours[table["side_to_mid_db"].notna()].sum()
    for name, value in expected.items():
        tops = np.max([[bar.get_y() + bar.get_height() for bar in bars] for bars in panels[name].containers], axis=0)
        assert tops.sum() == pytest.approx(value), name
        assert _drawn_hours(panels[name]) == pytest.approx(value), name
    for name in panels.keys() - set(HISTOGRAMS):
        widths = [bar.get_width() for container in panels[name].containers for bar in container.patches]
        assert sum(widths) == pytest.approx(hours.sum()), name


def test_every_axis_says_where_its_outer_bins_hold_what_lies_beyond() -> None:
    """Bandwidth has no such bins: its axis grows."""
    columns = {"Bandwidth": "bandwidth_hz", "Loudness": "loudness_lufs", "Stereo width": "side_to_mid_db"}
    beyond = {name: [-500.0, 500.0] for name in columns.values()} | {"bandwidth_hz": [0.0, 95000.0]}
    with drawing("test"):
        figure = _figure(_tracks(2, **beyond, duration_seconds=[1.0, 1e6]))
        FigureCanvasAgg(figure).draw()
        panels = _panels(figure)

    for name in HISTOGRAMS:
        ticks = {label.get_text(): label.get_position()[0] for label in panels[name].get_xticklabels()}
        lowest, highest = panels[name].get_xlim()
        marked = {word[0]: place for word, place in ticks.items() if word[0] in "≤≥"}
        assert marked == ({} if name == "Bandwidth" else {"≤": lowest, "≥": highest}), name
    assert panels["Bandwidth"].get_xlim()[1] >= 95
    assert [label.get_text() for label in panels["Stereo width"].get_xticklabels()] == ["≤ −40", "−20", "0", "≥ 20"]


def test_what_lies_in_a_bin_is_drawn_there() -> None:
    table = _tracks(2, bandwidth_hz=[10500.0, 20500.0], duration_seconds=[3600.0, 7200.0])
    with drawing("test"):
        panel = _panels(_figure(table))["Bandwidth"]

    heights = {round(bar.get_x() + bar.get_width() / 2, 1): bar.get_height() for bar in panel.containers[0].patches}
    assert {place: height for place, height in heights.items() if height} == {10.5: 1, 20.5: 2}


def test_the_median_line_has_half_of_the_hours_below_it() -> None:
    table = _tracks(3, loudness_lufs=[-30.0, -20.0, -10.0], duration_seconds=[600.0, 600.0, 6000.0])
    with drawing("test"):
        panel = _panels(_figure(table))["Loudness"]

    assert [line.get_xdata()[0] for line in panel.lines] == [-10]


def test_many_genres_are_the_longest_bars_and_the_rest() -> None:
    table = _tracks(
        12, genre=[f"genre {n:02}" for n in range(12)], duration_seconds=[3600.0 * (n + 1) for n in range(12)]
    )
    with drawing("test"):
        panel = _panels(_figure(table))["Genre"]

    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert labels == [f"genre {n:02}" for n in range(11, 4, -1)] + ["others (5)"]


def test_without_genres_the_formats_are_shown() -> None:
    with drawing("test"):
        assert "Format" in _panels(_figure(_tracks(5, genre="")))


def test_what_was_not_measured_says_so() -> None:
    table = _tracks(5, bandwidth_hz=np.nan, loudness_lufs=np.nan, side_to_mid_db=np.nan)
    with drawing("test"):
        panels = _panels(_figure(table))

    for name in ("Bandwidth", "Loudness", "Stereo width"):
        assert [text.get_text() for text in panels[name].texts] == ["not measured"]
    assert panels["Length"].containers


def _words(figure: Figure) -> list[object]:
    figure.canvas.draw()
    texts = [text for panel in figure.get_axes() for text in (panel.xaxis.label, panel.yaxis.label, panel.title)]
    for panel in figure.get_axes():
        texts += [panel._left_title, *panel.texts]
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.slow
@pytest.mark.parametrize("corpora", [1, 6])
def test_no_words_overlap_or_leave_the_page(corpora: int) -> None:
    long_names = [f"a genre with a rather long name {n}" for n in range(20)]
    table = pd.concat([_tracks(20, f"corpus {n}", n, genre=long_names) for n in range(corpora)], ignore_index=True)
    with drawing("test"):
        figure = _figure(table)
        FigureCanvasAgg(figure)
        boxes = [(text.get_text(), text.get_window_extent()) for text in _words(figure)]

    page = figure.bbox
    for text, box in boxes:
        assert page.x0 - 1 <= box.x0, text
        assert box.x1 <= page.x1 + 1, text
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.shrunk(0.98, 0.9).overlaps(second.shrunk(0.98, 0.9)), (one, other)


@pytest.mark.slow
def test_the_picture_is_the_same_each_time_and_opens() -> None:
    table = _tracks(30)
    first, second = corpus_picture(table), corpus_picture(table)

    assert first == second
    assert first.svg.startswith("<?xml")
    assert "integrated" in first.svg
    with Image.open(io.BytesIO(first.png)) as image:
        assert image.format == "PNG"
        assert image.width == 1440


@pytest.mark.slow
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])  # to shrink pictures takes minutes
@given(data=st.data())
def test_any_table_is_drawn(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    numbers = st.floats(-200, 200) | st.sampled_from([math.nan, -math.inf, math.inf])
    table = _tracks(
        count,
        duration_seconds=data.draw(st.lists(st.floats(1e-4, 1e6), min_size=count, max_size=count)),
        loudness_lufs=data.draw(st.lists(numbers, min_size=count, max_size=count)),
        side_to_mid_db=data.draw(st.lists(numbers, min_size=count, max_size=count)),
        bandwidth_hz=data.draw(st.lists(st.floats(0, 96000) | st.just(math.nan), min_size=count, max_size=count)),
        corpus=data.draw(st.lists(st.sampled_from(["a", "$b_", "others"]), min_size=count, max_size=count)),
        genre=data.draw(st.lists(st.text(max_size=30), min_size=count, max_size=count)),
    )

    assert corpus_picture(table).png.startswith(b"\x89PNG")
