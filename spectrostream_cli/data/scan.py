"""`data scan` and `data stats`: measure a folder of music into a manifest; describe manifests."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

    from datamodules.scanning.scan import ProgressReport, ScanProgress

_SHOWN_PROBLEMS = 3
_LONGEST_SECTION = 12  # rows on the screen; all are in the file
_SCAN = """  spectrostream data scan /music
  spectrostream data scan /corpora/musdb18hq --corpus musdb18hq --out runs/data/musdb.parquet
  spectrostream data scan /net/fma_large --corpus fma --workers 16 --timeout 300
  spectrostream data scan /music --headers-only --out music.csv
  spectrostream data scan /other/music --name live --out live.parquet

Each track is decoded once, at its own rate: loudness, peak, clipping, silence, stereo width, bandwidth, a hash of its
samples. Run the same command again to measure only new and changed files, or to resume. Your own columns in the
manifest stay, and so do your splits, groups and genres where the corpus has none. Unusable files are in the manifest
with the reason. Folders with the same file names need different values of --name if you train on them together; a
later scan keeps the name."""
_STATS = """  spectrostream data stats runs/data/music.parquet
  spectrostream data stats runs/data/musdb.parquet runs/data/fma.parquet --out runs/data/both

Prints hours and tracks by corpus, split, rate, channels, format and genre, quantiles of the measurements (weighted by
hours), unusual tracks, and why files cannot be used; writes statistics.csv, corpus.svg and corpus.png."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add scan and stats."""
    scan = add_command(commands, "scan", _scan, "measure the music in a folder, into a manifest", _SCAN)
    scan.add_argument("path", metavar="PATH", help="folder of the corpus")
    scan.add_argument("--corpus", default="folder", metavar="NAME", help="the corpus' layout (default: any folder)")
    scan.add_argument("--name", metavar="NAME", help="the corpus' name in the manifest (default: that of the layout)")
    scan.add_argument(
        "--out", metavar="FILE", help=".parquet or .csv (default: runs/data/<name of the folder>.parquet)"
    )
    scan.add_argument("--workers", type=_at_least_one, metavar="N", help="processes (default: one for each processor)")
    scan.add_argument(
        "--timeout", type=_positive, default=60.0, metavar="SECONDS", help="for each 64 MB of a file (default: 60)"
    )
    scan.add_argument("--headers-only", action="store_true", help="decode nothing; new files get no measurements")
    stats = add_command(commands, "stats", _stats, "describe manifests: a table and pictures", _STATS)
    stats.add_argument("manifests", nargs="+", metavar="MANIFEST", help="tables of `data scan`")
    stats.add_argument("--out", metavar="FOLDER", help="default: <name of the first manifest>-stats beside it")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")


def _scan(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.corpora.manifest import require_format, write_manifest
    from datamodules.scanning.scan import layout_named, require_name, scan

    layout_named(arguments.corpus)
    if arguments.name is not None:
        require_name(arguments.name, arguments.corpus)
    root = Path(arguments.path)
    out = Path(arguments.out) if arguments.out else Path("runs/data", f"{root.resolve().name or 'music'}.parquet")
    require_format(out)
    known = _older_manifest(out, root)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = out.with_name(f".{out.name}.journal")
    with _progress(console, f"looking for music in {root}") as report:
        table = scan(
            root,
            arguments.corpus,
            journal=journal,
            name=arguments.name,
            workers=arguments.workers or _processors(),
            timeout_seconds=arguments.timeout,
            headers_only=arguments.headers_only,
            known=known,
            progress=report,
        )
    write_manifest(table, out)
    journal.unlink(missing_ok=True)
    return _scanned(table, out, console)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _older_manifest(out: Path, root: Path) -> Any:
    """Return the manifest of an earlier scan of the same folder; None if there is none."""
    if not out.exists():
        return None
    from datamodules.corpora.manifest import ManifestError, read_manifest, table_name

    remedy = "type another name with --out, or remove it"
    try:
        known = read_manifest(out)
    except ManifestError as error:
        raise UserError(f"{out} exists and is not a manifest: {error}\nTo write one, {remedy}") from error
    others = set(known["root"]) - {table_name(Path(os.path.abspath(root.expanduser())))}  # noqa: PTH100
    if others:
        raise UserError(f"{out} is the manifest of {min(others)}; {remedy}")
    return known


@contextmanager
def _progress(console: Console, looking: str) -> Iterator[ProgressReport]:
    """Show a line while the layout is read, then a bar over the measured bytes."""
    from rich.filesize import decimal
    from rich.progress import DownloadColumn, TransferSpeedColumn

    from spectrostream_cli.progress import PlainLines, progress_bar

    lines = PlainLines(console)
    with progress_bar(console, DownloadColumn(), TransferSpeedColumn()) as bar:
        number = bar.add_task(looking, total=None)
        (task,) = bar.tasks
        # The walk through a large folder can take minutes.
        lines.offer(looking, task)

        def report(progress: ScanProgress) -> None:
            known = f" ({progress.known} known)" if progress.known else ""
            words = f"measured {progress.done}/{progress.waiting} tracks{known}"
            bar.update(number, description=words, total=progress.bytes_waiting, completed=progress.bytes_done)
            lines.offer(f"{words}, {decimal(progress.bytes_done)} of {decimal(progress.bytes_waiting)}", task)

        yield report


def _scanned(table: Any, out: Path, console: Console) -> str:
    """Print the unusable files; return the last line."""
    from datamodules.scanning.corpus_statistics import usable
    from datamodules.scanning.duplicates import count_duplicates

    good, bad = usable(table), table[table["problem"] != ""]
    for name, problem in zip(bad["name"][:_SHOWN_PROBLEMS], bad["problem"], strict=False):
        console.print(f"cannot be used: {name}: {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(bad) > _SHOWN_PROBLEMS:
        console.print(f"cannot be used: {len(bad) - _SHOWN_PROBLEMS} more, all in the manifest under `problem`")
    if not len(good):
        raise UserError(f"none of {len(bad)} files can be used; the reasons are in {out} under `problem`")
    duplicates = count_duplicates(good)
    hours = good["duration_seconds"].sum() / 3600
    counts = [f"{len(good)} tracks", f"{hours:.2f} hours", f"{len(bad)} files cannot be used"]
    if duplicates.copies:
        counts.append(f"{duplicates.copies} copies of other tracks")
    if duplicates.across_splits:
        counts.append(f"{duplicates.across_splits} tracks with the same content in two splits")
    return f"manifest: {out} ({', '.join(counts)})"


def _stats(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.scanning.corpus_statistics import corpus_statistics, read_manifests, usable

    paths = [Path(name) for name in arguments.manifests]
    folder = Path(arguments.out) if arguments.out else paths[0].with_name(f"{paths[0].stem}-stats")
    with console.status("reading"):
        table = read_manifests(paths)
        statistics = corpus_statistics(table)
    good = usable(table)
    if not len(good):
        raise UserError(f"no track in {', '.join(map(str, paths))} can be used; the reasons are there under `problem`")
    from reports.figures.corpus_figures import corpus_picture

    with console.status("drawing"):
        picture = corpus_picture(good)
    _print_statistics(statistics, console)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "statistics.csv", statistics.to_csv(index=False).encode())
    _write(folder / "corpus.svg", picture.svg.encode())
    _write(folder / "corpus.png", picture.png)
    return f"statistics: {folder} (statistics.csv, corpus.svg, corpus.png)"


def _print_statistics(statistics: Any, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table("", "", *(_right(name) for name in ("tracks", "hours", "value")), box=None, pad_edge=False)
    for section, rows in statistics.groupby("section", sort=False):
        if shown.row_count:
            shown.add_section()
            shown.add_row()
        first_rows = rows.head(_LONGEST_SECTION)
        for number, row in enumerate(first_rows.itertuples(index=False)):
            shown.add_row(
                Text(section if number == 0 else "", style="bold"),
                Text(str(row.item)),
                str(row.tracks),
                _number(row.hours, 2),
                _number(row.value, 1),
            )
        if len(rows) > len(first_rows):
            shown.add_row("", f"{len(rows) - len(first_rows)} more in statistics.csv")
    console.print(shown)


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _number(value: float, digits: int) -> str:
    return "" if value != value else f"{value:.{digits}f}"


def _write(path: Path, content: bytes) -> None:
    from spectrostream.atomic_files import whole_file

    with whole_file(path) as file:
        file.write(content)
