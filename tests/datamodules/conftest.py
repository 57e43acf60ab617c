from __future__ import annotations

from pathlib import Path

import pytest
from music_files import noisy_tones, write_raw
from shard_music import TARS, shards_of, write_cuts


@pytest.fixture(scope="session")
def music_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 6 to 9 s: FLAC and Vorbis, 44.1 and 48 kHz, one of them mono."""
    root = tmp_path_factory.mktemp("music")
    write_raw(root / "a.flac", noisy_tones(6.0, 44100, 1), 44100)
    write_raw(root / "b.ogg", noisy_tones(7.0, 44100, 2), 44100)
    write_raw(root / "deep" / "c.flac", noisy_tones(8.0, 48000, 3, channels=1), 48000)
    write_raw(root / "deep" / "d.ogg", noisy_tones(9.0, 48000, 4), 48000)
    return root


@pytest.fixture(scope="session")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cuts(tmp_path_factory.mktemp("cuts"))


@pytest.fixture(scope="session")
def cut_shards(cuts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of two cuts, about a megabyte each: four to train on, one to validate, one to test."""
    out = shards_of(cuts, tmp_path_factory.mktemp("shards"))
    assert {path.name for path in out.glob("*.tar")} == {"test-00000000.tar", *TARS, "validation-00000000.tar"}
    return out


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
