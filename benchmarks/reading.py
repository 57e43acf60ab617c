"""Measures how fast crops are read from files, compared with plain soundfile, and the memory over many crops.

    python -m benchmarks.reading                   # a corpus made from the demo music: WAV, FLAC, Vorbis, MP3
    python -m benchmarks.reading --crops 100000 --formats flac --memory-only
    python -m benchmarks.reading --crops 20000 --formats ogg --memory-only --resampled   # every other file is 44.1 kHz

Both read the same crops of 1.28 s of stereo in the same order, in batches as a loader does, alternately in one process.
The table shows medians of several rounds.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from datamodules.corpora.folder_corpus import demo_corpus_root, scan_folder
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crop_dataset import CropDataset
from datamodules.crops import Crop, RandomCrops
from datamodules.track_reader import TrackReader

CROP_SECONDS = 1.28
SAMPLE_RATE = 48000
BATCH_SIZE = 8
# Name -> soundfile's format and subtype.
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def make_corpus(
    folder: Path, kind: str, *, files: int, seconds: float, rates: tuple[int, ...] = (SAMPLE_RATE,)
) -> None:
    """Write tracks in one format: the joined demo music, each track from another place on.

    Args:
        kind: A key of `FORMATS`.
        files: Number of tracks.
        seconds: Length of each track.
        rates: Sample rates in Hz, used in turn.
    """
    tracks = []
    for path in sorted(demo_corpus_root().glob("*.*")):
        if path.suffix in (".flac", ".ogg"):
            tracks.append(soundfile.read(path, dtype="float32", always_2d=True)[0][:, :2])
    music = np.concatenate([track if track.shape[1] == 2 else np.repeat(track, 2, 1) for track in tracks])
    container, subtype = FORMATS[kind]
    for number in range(files):
        frames = np.roll(music, -number * len(music) // files, axis=0)
        rate = rates[number % len(rates)]
        frames = np.resize(frames, (round(seconds * rate), 2)).clip(-1, 1)
        with soundfile.SoundFile(
            folder / f"{number:02d}.{kind.removesuffix('24')}", "w", rate, 2, subtype, format=container
        ) as file:
            for start in range(0, len(frames), SAMPLE_RATE):  # libsndfile's Vorbis encoder overflows on long writes
                file.write(frames[start : start + SAMPLE_RATE])


def bare_read(path: Path, crop: Crop) -> torch.Tensor:
    """Read a crop with soundfile alone."""
    with soundfile.SoundFile(path) as file:
        file.seek(round(crop.start_seconds * SAMPLE_RATE))
        frames = file.read(round(CROP_SECONDS * SAMPLE_RATE), dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(frames.T))


def rate(read: Callable[[range], object], numbers: range) -> float:
    """Return the crops per second of `read`, which reads one batch at a time."""
    start = time.perf_counter()
    for first in numbers[::BATCH_SIZE]:
        read(range(first, min(first + BATCH_SIZE, numbers.stop)))
    return len(numbers) / (time.perf_counter() - start)


def compare(folder: Path, *, crops: int, rounds: int) -> tuple[float, float]:
    """Return the crops per second of our reader and of plain soundfile."""
    corpus = scan_folder(folder)
    ranges = TimeRanges(np.arange(len(corpus.tracks)), np.zeros(len(corpus.tracks)), corpus.durations)
    draws = RandomCrops(ranges, crop_seconds=CROP_SECONDS, sample_rate=SAMPLE_RATE)
    reader = TrackReader(corpus, sample_rate=SAMPLE_RATE, channels=2, cache_audio=False, timeout_seconds=60)
    dataset = CropDataset(reader, draws, crop_seconds=CROP_SECONDS, silence_redraws=0)
    paths = [track.path for track in corpus.tracks]

    def bare(numbers: range) -> list[torch.Tensor]:
        drawn = [draws.crop_for(0, number, 0) for number in numbers]
        return [bare_read(paths[crop.track_index], crop) for crop in drawn]

    def ours(numbers: range) -> list[torch.Tensor]:
        return dataset.__getitems__([(number, 0) for number in numbers])

    rate(ours, range(crops // 4))
    rate(bare, range(crops // 4))
    pairs = [(rate(ours, range(i, i + crops)), rate(bare, range(i, i + crops))) for i in range(rounds)]
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def memory_over(folder: Path, crops: int) -> None:
    """Print the resident memory from time to time while crops are read."""
    corpus = scan_folder(folder)
    ranges = TimeRanges(np.arange(len(corpus.tracks)), np.zeros(len(corpus.tracks)), corpus.durations)
    draws = RandomCrops(ranges, crop_seconds=CROP_SECONDS, sample_rate=SAMPLE_RATE)
    reader = TrackReader(corpus, sample_rate=SAMPLE_RATE, channels=2, cache_audio=False, timeout_seconds=60)
    dataset = CropDataset(reader, draws, crop_seconds=CROP_SECONDS)
    step = max(crops // 10 // BATCH_SIZE, 1) * BATCH_SIZE
    for first in range(0, crops + 1, BATCH_SIZE):
        dataset.__getitems__([(number, 0) for number in range(first, first + BATCH_SIZE)])
        if first % step == 0:
            print(f"after {first:>7} crops: {resident_megabytes():.1f} MB", flush=True)


def resident_megabytes() -> float:
    """Return the present memory of this process; its peak comes from writing the corpus and would hide a leak."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Write the files, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=180.0, help="length of each file")
    parser.add_argument("--crops", type=int, default=400, help="in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-only", action="store_true", help="read the crops once and print the memory")
    parser.add_argument("--resampled", action="store_true", help="with --memory-only: every other file is 44.1 kHz")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.memory_only:
        print("| files | crops/s | audio-s/s | bare soundfile, crops/s | share |\n|---|---|---|---|---|")
    for kind in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            rates = (SAMPLE_RATE, 44100) if arguments.memory_only and arguments.resampled else (SAMPLE_RATE,)
            make_corpus(Path(folder), kind, files=arguments.files, seconds=arguments.seconds, rates=rates)
            if arguments.memory_only:
                memory_over(Path(folder), arguments.crops)
                continue
            ours, bare = compare(Path(folder), crops=arguments.crops, rounds=arguments.rounds)
            print(f"| {kind} | {ours:.0f} | {ours * CROP_SECONDS:.0f} | {bare:.0f} | {ours / bare:.0%} |", flush=True)


if __name__ == "__main__":
    main()
