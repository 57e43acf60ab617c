"""A small corpus in shards and its data module, for tests of what a training meets."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from manifests import manifest_of
from music_files import write_raw
from torch import Tensor

from datamodules.corpora.folder_corpus import demo_corpus_root
from datamodules.crop_dataset import CropDataset
from datamodules.preparing.jobs import Settings
from datamodules.preparing.prepare import prepare
from datamodules.shards.windows import WindowedCrops
from datamodules.stereo_music import DataConfig, StereoMusicDataModule

SECONDS = 3.0
SIDES = ("train",) * 8 + ("validation",) * 2 + ("test",) * 2
GENRES = ("loud", "soft") * 6
TARS = tuple(f"train-{place}0000000.tar" for place in "048c")


def write_cuts(folder: Path) -> Path:
    """Twelve cuts of three seconds: two of each excerpt of the demo corpus, 44.1 and 48 kHz."""
    excerpts = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))
    for number, (turn, path) in enumerate(itertools.product(range(2), excerpts)):
        rate = soundfile.info(path).samplerate
        frames, _ = soundfile.read(path, round(SECONDS * rate), start=(3 + 8 * turn) * rate)
        write_raw(folder / f"b{number:02d}.wav", 0.8 * frames / np.abs(frames).max(), rate, subtype="PCM_16")
    return folder


def shards_of(originals: Path, out: Path, shard_bytes: int = 1_300_000) -> Path:
    table = manifest_of(originals, sorted(originals.iterdir()), split=SIDES, genre=GENRES)
    prepare(table, out, Settings("pcm16", as_shards=True, shard_bytes=shard_bytes))
    return out


def config_of(shards: object, cache: Path | None = None, **options: object) -> DataConfig:
    settings = {"crop_seconds": 0.3, "batch_size": 2, "seed": 5, "window_shards": 1, "evaluation_segment_seconds": 2.0}
    settings |= {"shard_cache": None if cache is None else str(cache), "read_timeout_seconds": 5.0}
    return DataConfig(shards=str(shards), **(settings | options))  # type: ignore[arg-type]


def first(data: StereoMusicDataModule, count: int) -> list[Tensor]:
    return list(itertools.islice(data.train_dataloader(), count))


def on_rank(config: DataConfig, rank: int, world_size: int, step: int = 0) -> StereoMusicDataModule:
    data = StereoMusicDataModule(config)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, global_step=step)  # type: ignore[assignment]
    return data


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def windows_of(dataset: CropDataset) -> WindowedCrops:
    crops = dataset._crops
    assert isinstance(crops, WindowedCrops)
    return crops
