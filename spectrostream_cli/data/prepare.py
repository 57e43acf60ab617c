"""`data prepare`."""

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

# What --encoding makes of --format; the first is the default.
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

Every track is resampled once, stems are summed, and every file is read back and its SHA-256 kept. Mono stays mono.
What lies beyond full scale (decoded Vorbis) is kept by float32; for the other encodings such a track is made softer as
a whole, by the `gain_db` in the new manifest. Tracks that cannot be used are listed in OUT/passed-over.csv.
Shards are tar files that WebDataset reads; tracks of more than 5 minutes are divided evenly, and a shard never holds
tracks of two splits. The same music gives the same bytes. Which tracks share a shard depends on a hash of their names:
one more track re-makes its own shard alone, and shards that the new index does not name are removed.
DIR is a folder of its own, outside of the music; a manifest that has nothing in common with what is there is refused.
When it is stopped or killed, the same command goes on; typed once more it makes again what was lost, and with --verify
what was damaged."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Declares prepare."""
    prepare = add_command(
        commands, "prepare", _prepare, "transcode the tracks of a manifest once, to FLAC files or shards", _PREPARE
    )
    prepare.add_argument("manifest", metavar="MANIFEST", help=".parquet or .csv that `data scan` wrote")
    prepare.add_argument("--out", required=True, metavar="DIR", help="folder for the files and the new manifest")
    prepare.add_argument(
        "--format", required=True, choices=list(_ENCODINGS), help="a file for each track, or tar files"
    )
    prepare.add_argument(
        "--encoding",
        choices=["pcm16", "float32", "flac24"],
        help="of the samples (default: flac24 for --format flac, pcm16 for --format shards, which is the fastest)",
    )
    prepare.add_argument("--sample-rate", type=int, default=48000, metavar="HZ", help="default: 48000")
    prepare.add_argument("--channels", type=int, default=2, help="mono and this many can be used (default: 2)")
    prepare.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    prepare.add_argument("--shard-megabytes", type=int, default=256, metavar="MB", help="default: 256")
    prepare.add_argument("--verify", action="store_true", help="compare all that was made before with its SHA-256")
    prepare.add_argument("--retry", action="store_true", help="try again what could not be used before")


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
        notes.append("went on with what was there")
    else:
        notes.append(f"{prepared.seconds / max(wall_seconds, 1e-9):.0f} times as fast as real time")
    if prepared.scaled:
        notes.append(f"{prepared.scaled} made softer so as not to clip")
    if prepared.removed:
        notes.append(f"{prepared.removed} shards of an earlier manifest removed")
    if prepared.passed_over:
        notes.append(f"{prepared.passed_over} passed over, see {prepared.path.parent / 'passed-over.csv'}")
    return f"prepared: {prepared.path} ({'; '.join(notes)})"
