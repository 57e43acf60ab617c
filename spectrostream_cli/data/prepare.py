"""`data prepare`: transcode the tracks of a manifest to FLAC files or shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

    from datamodules.preparing.jobs import Job, Made, Settings
    from datamodules.preparing.prepare import Prepared

# --format -> --encoding -> the name of the encoding; the first encoding is the default.
_ENCODINGS = {
    "flac": {"flac24": "flac24", "pcm16": "flac16"},
    "shards": {"pcm16": "pcm16", "float32": "float32", "flac24": "flac24"},
}
_RATES = (8_000, 384_000)
_MOST_CHANNELS = 8
_SMALLEST_SHARD_MEGABYTES = 1
_PREPARE = """  spectrostream data prepare music.parquet --out prepared --format flac
  spectrostream data prepare music.parquet --out shards --format shards --workers 8
  spectrostream data prepare music.parquet --out shards --format shards --encoding float32 --shard-megabytes 512

Every track is resampled once and stems are summed. Every file is read back, and its SHA-256 is recorded. Mono stays
mono. Samples beyond full scale (decoded Vorbis) are kept by float32; for the other encodings the whole track is made
softer, by the `gain_db` in the new manifest. Unusable tracks are listed in DIR/passed-over.csv.
Shards are tar files that WebDataset reads. Tracks of more than 5 minutes are divided evenly, and a shard never holds
tracks of two splits. The same music gives the same bytes. A hash of its name chooses the shard of a track: a new track
changes only its own shard. Shards that the new index does not name are removed.
DIR must be outside of the music folder. If it holds other prepared music, the command refuses to write there.
Run the same command again to resume. It also makes lost files again, and with --verify damaged ones."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add prepare."""
    prepare = add_command(
        commands, "prepare", _prepare, "transcode the tracks of a manifest once, to FLAC files or shards", _PREPARE
    )
    prepare.add_argument("manifest", metavar="MANIFEST", help=".parquet or .csv that `data scan` wrote")
    prepare.add_argument("--out", required=True, metavar="DIR", help="folder for the files and the new manifest")
    prepare.add_argument(
        "--format", required=True, choices=list(_ENCODINGS), help="one file for each track, or tar files"
    )
    prepare.add_argument(
        "--encoding",
        choices=["pcm16", "float32", "flac24"],
        help="of the samples (default: flac24 for --format flac, pcm16 for --format shards, which is the fastest)",
    )
    prepare.add_argument("--sample-rate", type=int, default=48000, metavar="HZ", help="default: 48000")
    prepare.add_argument("--channels", type=int, default=2, help="tracks have one channel or this many (default: 2)")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    prepare.add_argument("--shard-megabytes", type=int, default=256, metavar="MB", help="default: 256")
    prepare.add_argument("--verify", action="store_true", help="compare all existing files with their SHA-256")
    prepare.add_argument("--retry", action="store_true", help="try the tracks again that could not be used before")


def _prepare(arguments: argparse.Namespace, console: Console) -> str:
    import time

    from datamodules.corpora.manifest import read_manifest
    from datamodules.preparing.prepare import prepare
    from spectrostream_cli.progress import AudioProgress

    settings = _settings(arguments)
    workers = _workers(arguments)
    out = _out(arguments)
    manifest = Path(arguments.manifest)
    table = read_manifest(manifest)
    begin = time.perf_counter()
    usable = table[table["problem"] == ""]
    seconds = float((usable["frames"] / usable["sample_rate"]).sum())
    with AudioProgress(console, seconds or None) as progress:

        def done(job: Job, made: Made) -> None:
            progress.name(job.name)
            progress.advance(job.seconds)
            for name, reason in made.problems.items():
                progress.say(f"passed over: {name}: {reason}")

        prepared = prepare(
            table,
            out,
            settings,
            workers=workers,
            verify=arguments.verify,
            retry=arguments.retry,
            manifest=manifest,
            done=done,
        )
    return _last_line(prepared, time.perf_counter() - begin)


def _settings(arguments: argparse.Namespace) -> Settings:
    from datamodules.preparing.jobs import Settings

    encodings = _ENCODINGS[arguments.format]
    encoding = arguments.encoding or next(iter(encodings))
    if encoding not in encodings:
        raise UserError(
            f"--encoding {encoding} is not possible with --format {arguments.format}, which allows "
            f"{' or '.join(encodings)}; type another one, or --format shards"
        )
    _require_within("--sample-rate", arguments.sample_rate, *_RATES)
    _require_within("--channels", arguments.channels, 1, _MOST_CHANNELS)
    _require_within("--shard-megabytes", arguments.shard_megabytes, _SMALLEST_SHARD_MEGABYTES, 100_000)
    return Settings(
        encoding=encodings[encoding],
        as_shards=arguments.format == "shards",
        sample_rate=arguments.sample_rate,
        channels=arguments.channels,
        shard_bytes=arguments.shard_megabytes * 10**6,
    )


def _workers(arguments: argparse.Namespace) -> int:
    if arguments.workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _require_within("--workers", arguments.workers, 1, 1024)
    return int(arguments.workers)


def _out(arguments: argparse.Namespace) -> Path:
    out = Path(arguments.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {arguments.out} is a file; type the name of a folder")
    return out


def _require_within(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise UserError(f"{option} {value} is not possible, allowed are {lowest} to {highest}")


def _last_line(prepared: Prepared, wall_seconds: float) -> str:
    notes = [f"{prepared.tracks} tracks, {prepared.seconds / 3600:.2f} h, {prepared.size_bytes / 1e9:.2f} GB"]
    if not prepared.made:
        notes.append("all of it was there")
    elif prepared.kept:
        notes.append("resumed")
    else:
        notes.append(f"{prepared.seconds / max(wall_seconds, 1e-9):.0f} times as fast as real time")
    if prepared.scaled:
        notes.append(f"{prepared.scaled} made softer to avoid clipping")
    if prepared.removed:
        notes.append(f"{prepared.removed} shards of an earlier manifest removed")
    if prepared.passed_over:
        notes.append(f"{prepared.passed_over} passed over, see {prepared.path.parent / 'passed-over.csv'}")
    return f"prepared: {prepared.path} ({'; '.join(notes)})"
