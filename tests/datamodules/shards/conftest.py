from __future__ import annotations

from pathlib import Path

import pytest
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import prepare

SECONDS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight float files; the third is mono."""
    root = tmp_path_factory.mktemp("originals")
    for seed, seconds in enumerate(SECONDS):
        frames = noisy_tones(seconds, 48000, seed, channels=1 if seed == 2 else 2)
        write_raw(root / f"{seed}.wav", frames.clip(-1, 1), 48000, subtype="PCM_16")
    return root


def prepared(originals: Path, out: Path, encoding: str) -> Path:
    table = manifest_of(originals, sorted(originals.iterdir()))
    prepare(table, out, Settings(encoding, as_shards=True, shard_bytes=1_300_000, piece_seconds=3.0))
    return out


@pytest.fixture(scope="session")
def shard_folder(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 16 bits, five or so, about a megabyte each."""
    return prepared(originals, tmp_path_factory.mktemp("pcm16"), "pcm16")


@pytest.fixture(scope="session")
def flac_shard_folder(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(originals, tmp_path_factory.mktemp("flac24"), "flac24")


@pytest.fixture(scope="session")
def float_shard_folder(originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(originals, tmp_path_factory.mktemp("float32"), "float32")
