from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reports.figures.sample_pictures import codebook_picture, segment_picture

RATE = 48000


def sound(channels: int = 2, seconds: float = 0.5) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((channels, round(RATE * seconds)))).astype(np.float32)


def share(picture: Image.Image, is_such: str) -> float:
    """Of the pixels right of two thirds, where the difference is drawn: how many are blue, or vermilion."""
    pixels = np.asarray(picture).astype(int)[:, picture.width * 2 // 3 : picture.width * 9 // 10]
    red, blue = pixels[..., 0], pixels[..., 2]
    return float(np.mean(blue - red > 60 if is_such == "blue" else red - blue > 60))


@pytest.mark.slow
def test_what_is_missing_is_blue_and_what_is_too_much_is_vermilion() -> None:
    original = sound()
    quiet, loud = segment_picture(original, original / 10, RATE), segment_picture(original, original * 10, RATE)
    assert share(quiet, "blue") > 0.5
    assert share(quiet, "vermilion") < 0.01
    assert share(loud, "vermilion") > 0.5
    assert share(loud, "blue") < 0.01
    same = segment_picture(original, original, RATE)
    assert share(same, "blue") + share(same, "vermilion") < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 3])
def test_every_number_of_channels_has_its_rows(channels: int) -> None:
    picture = segment_picture(sound(channels), sound(channels), RATE)
    other = segment_picture(sound(1), sound(1), RATE)
    assert picture.width == other.width == 1800
    assert picture.height - other.height == pytest.approx((channels - 1) * 340, abs=1)


@pytest.mark.slow
def test_silence_and_a_segment_shorter_than_a_window_are_drawn() -> None:
    assert segment_picture(np.zeros((2, 4000), np.float32), sound()[:, :4000], RATE).height > 400
    assert segment_picture(sound()[:, :100], sound()[:, :100], RATE).height > 400


def test_bars_are_as_high_as_the_values() -> None:
    def blue(perplexity: float, used: float) -> int:
        pixels = np.asarray(codebook_picture([perplexity] * 4, [used] * 4, 256)).astype(int)
        return int(np.sum(pixels[..., 2] - pixels[..., 0] > 100))

    full, half = blue(256.0, 1.0), blue(128.0, 0.5)
    assert half == pytest.approx(full / 2, rel=0.03)
    assert blue(0.0, 0.0) < full / 100
