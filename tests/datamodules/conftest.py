from __future__ import annotations

from pathlib import Path

import pytest
from music_files import noisy_tones, write_raw


@pytest.fixture(scope="session")
def music_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 6 to 9 s: FLAC and Vorbis, 44.1 and 48 kHz, one of them mono."""
    root = tmp_path_factory.mktemp("music")
    write_raw(root / "a.flac", noisy_tones(6.0, 44100, 1), 44100)
    write_raw(root / "b.ogg", noisy_tones(7.0, 44100, 2), 44100)
    write_raw(root / "deep" / "c.flac", noisy_tones(8.0, 48000, 3, channels=1), 48000)
    write_raw(root / "deep" / "d.ogg", noisy_tones(9.0, 48000, 4), 48000)
    return root
