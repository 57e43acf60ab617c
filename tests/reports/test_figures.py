"""Figures are well-formed, deterministic, say what they show, and give one system one look."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import synthetic_report as study
from PIL import Image

from reports.figures import curves as figures
from reports.figures import spectrograms as spectrogram_figures
from reports.figures.curves import Drawn
from reports.figures.style import inline_svg, system_styles
from reports.track_scores import TrackScores

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def scores() -> TrackScores:
    return TrackScores(study.records())


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return Drawn({card.name: card.title for card in study.cards()}, system_styles(study.cards()))


def words(svg: str) -> set[str]:
    """The texts of an SVG, which must parse as XML."""
    return {"".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")}


@pytest.mark.slow
def test_rate_curves(scores: TrackScores, drawn: Drawn) -> None:
    svg = figures.rate_curves(scores, ["base", "dac"], drawn)
    assert {"STFT <6/6>", "DAC", "ViSQOL-LR", "ViSQOL-S", "Mel distance", "IPD error (rad)"} <= words(svg)
    assert {"higher is better", "lower is better", "total kbps, measured (log scale)", "3"} <= words(svg)
    for system in ("base", "dac"):
        assert drawn.styles[system].color in svg


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(scores: TrackScores, drawn: Drawn) -> None:
    first, second = (figures.rate_curves(scores, ["base", "dac"], drawn) for _ in range(2))
    assert first == second
    assert "<dc:date>" not in first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "expected"),
    [("Fusion point", {"0", "3", "6", "7", "n/a"}), ("Front-end", {"complex STFT", "waveform"})],
)
def test_ablation_axis(scores: TrackScores, drawn: Drawn, axis: str, expected: set[str]) -> None:
    svg = figures.ablation_axis(axis, scores, study.axes()[axis], ("base", 8), drawn)
    assert {axis, "ViSQOL-LR", "IPD error (rad)", "IC error", *expected} <= words(svg)


def test_track_scatter_counts_the_wins(scores: TrackScores, drawn: Drawn) -> None:
    svg = figures.track_scatter(scores, [(("base", 8), ("dac", 2)), (("base", 4), ("dac", 1))], "mel_distance", drawn)
    assert {"Mel distance: better on 6 of 6", "DAC, 3.45 kbps", "STFT <6/6>, 3.20 kbps"} <= words(svg)


def test_training_curves_of_eight_systems(drawn: Drawn) -> None:
    curves = study.curves()
    svg = figures.training_curves(curves, drawn)
    assert {drawn.titles[system] for system in curves} <= words(svg)
    assert {"validation/mel loss", "train/discriminator loss", "step", "12k"} <= words(svg)
    assert len(svg) < 400_000


def test_a_dollar_in_a_name_is_a_dollar(scores: TrackScores, drawn: Drawn) -> None:
    dollars = Drawn({**drawn.titles, "dac": "DAC $1 $2"}, drawn.styles)
    assert "DAC $1 $2" in words(figures.rate_curves(scores, ["base", "dac"], dollars))


def test_every_system_has_its_own_look_and_seeds_share_a_colour() -> None:
    styles = system_styles(study.cards())
    shown = [card.name for card in study.cards() if card.role != "check"]
    looks = {(style.color, style.dash, style.hollow) for name, style in styles.items() if name in shown}
    assert len(looks) == len(shown)
    assert styles["base"].color == styles["base-seed-2"].color
    assert styles["base-seed-2"].hollow
    assert not styles["base"].hollow
    assert system_styles(study.cards()) == styles


def test_inline_svg_has_identifiers_of_its_own(scores: TrackScores, drawn: Drawn) -> None:
    svg = figures.rate_curves(scores, ["base", "dac"], drawn)
    inline = inline_svg(svg, "one")
    assert inline.startswith("<svg")
    assert "<?xml" not in inline
    root = ElementTree.fromstring(inline)
    identifiers = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert all(identifier.startswith("one-") for identifier in identifiers)
    references = {value[1:] for element in root.iter() for key, value in element.items() if key.endswith("}href")}
    assert references
    assert references <= set(identifiers)
    assert "var(--ink)" in inline


# ---- pictures of sound ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stereo() -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((2, 24000))).astype(np.float32)


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def test_spectrograms_share_one_scale(stereo: np.ndarray) -> None:
    image = opened(spectrogram_figures.spectrograms({"Reference": stereo, "<ours> & $": stereo}, 48000))
    assert image.format == "WEBP"
    assert min(image.size) > 400


def test_silence_draws_without_a_warning() -> None:
    silence = np.zeros((2, 12000), dtype=np.float32)
    for content in (
        spectrogram_figures.spectrograms({"Reference": silence, "ours": silence}, 48000),
        spectrogram_figures.phase_errors(silence, {"ours": silence}, 48000),
        spectrogram_figures.goniometers({"Reference": silence, "ours": silence}),
    ):
        assert opened(content).format == "WEBP"


def test_phase_error_of_identity_is_zero_and_of_a_flip_is_pi(stereo: np.ndarray) -> None:
    flipped = stereo * np.array([[1], [-1]], dtype=np.float32)
    errors = [spectrogram_figures.mean_phase_error(stereo, decoded, 48000) for decoded in (stereo, flipped)]
    assert errors == [pytest.approx(0, abs=1e-6), pytest.approx(np.pi, abs=1e-6)]


def test_mono_is_an_upright_line_in_the_goniometer(stereo: np.ndarray) -> None:
    mono = np.stack([stereo[0], stereo[0]])
    density = spectrogram_figures.goniometer_density(mono, reach=1.0)
    middle = density.shape[1] // 2
    assert density[:, middle].sum() == density.sum() > 0
    left = spectrogram_figures.goniometer_density(np.stack([abs(stereo[0]), 0 * stereo[0]]), reach=1.0)
    rows, columns = np.nonzero(left)
    assert (rows[columns < middle] > middle).all(), "left lies up and to the left"
