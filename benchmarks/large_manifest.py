"""Measures how long a training takes to start on a manifest of many tracks; no audio file is opened.

    python -m benchmarks.large_manifest                # a million tracks
    python -m benchmarks.large_manifest --tracks 100000

Every measurement runs in its own process, without the time of imports; the medians are printed. `start` is the time
before the first crop is read: the table is read, filtered, weighted and split, the identity of the run is computed, and
the crops of the first batch are drawn.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.corpora.manifest import typed, write_manifest
from datamodules.stereo_music import DataConfig, StereoMusicDataModule


def make_manifest(path: Path, tracks: int) -> None:
    """Write a manifest with names, albums and measurements like those of a large corpus."""
    chance = np.random.default_rng(0)
    numbers = range(tracks)
    columns = {
        "corpus": "large",
        "root": "/music",
        "name": [f"{number // 1000:04d}/{number:07d} a usual name.mp3" for number in numbers],
        "group": [f"album {number // 12}" for number in numbers],
        "artist": [f"artist {number // 40}" for number in numbers],
        "genre": chance.choice(["Rock", "Jazz", "Pop"], tracks),
        "sample_rate": 44100,
        "channels": 2,
        "frames": chance.integers(30 * 44100, 300 * 44100, tracks),
        "size_bytes": 5_000_000,
        "loudness_lufs": chance.uniform(-30, -6, tracks),
        "side_to_mid_db": chance.uniform(-60, 0, tracks),
        "bandwidth_hz": chance.uniform(8000, 22000, tracks),
        "content_hash": [f"{number:032x}" for number in numbers],
    }
    write_manifest(typed(pd.DataFrame(columns)), path)


def one_turn(path: Path) -> None:
    """Print the seconds to start, the seconds and megabytes to send the corpus to a worker, the peak memory in GB."""
    config = DataConfig(
        manifests=(str(path),), keep="bandwidth_hz > 10000", weights=("2 where genre == 'Rock'",), batch_size=16
    )
    begin = time.perf_counter()
    data = StereoMusicDataModule(config)
    data.setup()
    _ = data.fingerprint
    dataset = data.train_dataset()
    for slot in range(config.batch_size):
        dataset._crops.crop_for(0, 0, slot)
    start = time.perf_counter() - begin
    begin = time.perf_counter()
    content = pickle.dumps(dataset)
    pickle.loads(content)
    sent = time.perf_counter() - begin
    print(start, sent, len(content) / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    """Write the manifest, measure, print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=10**6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--manifest", type=Path, help=argparse.SUPPRESS)  # measure in this process
    arguments = parser.parse_args()
    if arguments.manifest:
        one_turn(arguments.manifest)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.parquet"
        make_manifest(path, arguments.tracks)
        command = [sys.executable, "-m", "benchmarks.large_manifest", "--manifest", str(path)]
        answers = [
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            for _ in range(arguments.turns)
        ]
        megabytes = path.stat().st_size / 1e6
    start, sent, size, peak = (statistics.median(map(float, values)) for values in zip(*answers, strict=True))
    print(
        f"{arguments.tracks} tracks, Parquet of {megabytes:.0f} MB: start {start:.1f} s, peak memory {peak:.1f} GB; "
        f"to a worker {size:.0f} MB in {sent:.1f} s"
    )


if __name__ == "__main__":
    main()
