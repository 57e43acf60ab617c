from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
from workbench import codec_on_disk, noise, write_sound

from spectrostream import SpectroStream


class Bench(NamedTuple):
    """A folder with sounds, and a codec with its weights' file."""

    folder: Path
    codec: SpectroStream
    weights: Path


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    codec, weights = codec_on_disk(folder / "run")
    write_sound(folder / "good.wav", 12.345)  # more than one piece
    write_sound(folder / "short.flac", 1.0, seed=1)
    write_sound(folder / "six.wav", 0.1, channels=6)
    (folder / "text.wav").write_text("no audio at all")
    for extension in ("flac", "mp3", "ogg"):
        path = folder / f"mono.{extension}"
        soundfile.write(path, noise(2.5, rate=44100, channels=1).clip(-0.9, 0.9), 44100)
    return Bench(folder, codec, weights)
