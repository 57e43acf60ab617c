"""`data segments`: write the table of evaluation segments, the same for every run and every system."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

_EXAMPLES = """  spectrostream data segments musdb18hq.parquet --out segments.csv
  spectrostream data segments a.parquet b.parquet --out segments.csv --count 200 --seconds 10 --split track

The segments are spread evenly over the held-out music for the test. An existing file is never replaced, because results
depend on it. Train and evaluate with data.evaluation_segments=segments.csv: a training whose data overlaps the segments
is refused. An evaluation takes all of them, or evaluation.segments=N, spread evenly."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add segments."""
    command = add_command(commands, "segments", _segments, "choose the music for the evaluation, once", _EXAMPLES)
    command.add_argument("manifests", nargs="+", metavar="MANIFEST", help="tables of `data scan` or `data prepare`")
    command.add_argument("--out", required=True, type=Path, metavar="FILE.csv", help="file for the table")
    command.add_argument("--count", type=int, default=100, help="largest number of segments (default: 100)")
    command.add_argument("--seconds", type=float, default=10.0, help="length of each (default: 10)")
    command.add_argument("--split", choices=("official", "track", "end"), help="as data.split (default: official)")
    command.add_argument("--held-out-fraction", type=float, default=0.25, help="as data.held_out_fraction")
    command.add_argument("--keep", metavar="CONDITION", help="as data.keep, for instance 'bandwidth_hz > 18000'")


def _segments(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.corpora.segments import write_segments
    from datamodules.stereo_music import DataConfig, StereoMusicDataModule

    if arguments.count < 1:
        raise UserError(f"--count {arguments.count} is not possible; allowed: a whole number, 1 or more")
    if arguments.out.suffix != ".csv":
        raise UserError(f"--out {str(arguments.out)!r} is not possible; allowed: a file that ends in .csv")
    config = DataConfig(
        manifests=tuple(arguments.manifests),
        evaluation_segment_seconds=arguments.seconds,
        split=arguments.split,
        held_out_fraction=arguments.held_out_fraction,
        keep=arguments.keep,
    )
    with console.status("choosing segments"):
        data = StereoMusicDataModule(config)
        segments = data.evaluation_ranges(arguments.count)
        if not len(segments):
            raise UserError(f"nothing is held out of {data.corpus.where}; raise --held-out-fraction")
        write_segments(arguments.out, data.corpus, segments)
    tracks = len(set(segments.tracks.tolist()))
    return f"segments: {arguments.out} ({len(segments)} of {arguments.seconds:g} s at most, from {tracks} tracks)"
