"""Measures how fast corpora are scanned: many short files, or real music.

    python -m benchmarks.scanning --tracks 1000 10000 100000
    python -m benchmarks.scanning --music /music --workers 1

Each folder has a hundred short files. They are hard links to a few files, which are read once each, so that finding the
files and writing the table take most of the time; or they are copies, which are all read. Every row runs in its own
process; the system counts its peak memory and that of its largest worker.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TRACKS_PER_FOLDER = 100
ORIGINALS = 5
SECONDS = 0.25
RATE = 48000


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--music", type=Path, help="a folder of real music to measure")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(scanned(json.loads(arguments.one))))
        return
    if arguments.music:
        _music_row(arguments.music, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        _synthetic_rows(Path(folder), arguments.tracks, arguments.workers)


def _synthetic_rows(folder: Path, sizes: list[int], workers: int) -> None:
    print("| tracks | what | seconds | tracks per s | growth | peak memory, MB | of a worker, MB |")
    print("|---|---|---|---|---|---|---|")
    modes = (("headers of links", False, True), ("headers of files", True, True), ("measured files", True, False))
    for what, is_copied, headers_only in modes:
        earlier: tuple[int, float] | None = None
        for tracks in sizes:
            root = folder / f"{what}-{tracks}"
            make_tree(root, tracks, is_copied)
            row = _in_process({"root": str(root), "workers": workers, "headers_only": headers_only})
            growth = _growth(earlier, (tracks, row["seconds"]))
            earlier = tracks, row["seconds"]
            shutil.rmtree(root)
            print(
                f"| {tracks} | {what} | {row['seconds']:.2f} | {tracks / row['seconds']:.0f} | {growth} "
                f"| {row['megabytes']:.0f} | {row['worker_megabytes']:.0f} |",
                flush=True,
            )


def _music_row(root: Path, workers: int) -> None:
    row = _in_process({"root": str(root), "workers": workers, "headers_only": False})
    print("| hours | files | workers | seconds | MB per s | times real time, per worker | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {row['audio'] / 3600:.2f} | {row['tracks']} | {workers} | {row['seconds']:.1f} "
        f"| {row['bytes'] / 1e6 / row['seconds']:.1f} | {row['audio'] / row['seconds'] / workers:.0f} "
        f"| {row['worker_megabytes']:.0f} |"
    )


def _growth(earlier: tuple[int, float] | None, now: tuple[int, float]) -> str:
    """Return the exponent e of seconds = tracks ** e between two rows; 1 is linear growth."""
    if earlier is None:
        return ""
    return f"{math.log(now[1] / earlier[1]) / math.log(now[0] / earlier[0]):.2f}"


def make_tree(root: Path, tracks: int, is_copied: bool) -> None:
    """Make a corpus below `root` from a few files: links to them, or copies."""
    import soundfile

    originals = [root / "originals" / f"{number}.flac" for number in range(ORIGINALS)]
    originals[0].parent.mkdir(parents=True)
    for number, path in enumerate(originals):
        noise = 0.002 * np.random.default_rng(number).standard_normal((round(SECONDS * RATE), 2))
        soundfile.write(path, noise.clip(-1, 1), RATE)
    for number in range(tracks - ORIGINALS):
        path = root / f"album {number // TRACKS_PER_FOLDER:05}" / f"{number:06}.flac"
        if number % TRACKS_PER_FOLDER == 0:
            path.parent.mkdir()
        original = originals[number % ORIGINALS]
        if is_copied:
            shutil.copyfile(original, path)
        else:
            os.link(original, path)


def scanned(case: dict) -> dict[str, float]:
    """Scan a folder and write its manifest; return the seconds, the sizes and the peak memory of this process."""
    from datamodules.corpora.manifest import write_manifest
    from datamodules.scanning.scan import scan

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        table = scan(
            case["root"],
            journal=Path(folder) / "journal",
            workers=case["workers"],
            headers_only=case["headers_only"],
        )
        write_manifest(table, Path(folder) / "manifest.parquet")
    seconds = time.perf_counter() - begin
    if (table["problem"] != "").any():
        raise RuntimeError(f"{int((table['problem'] != '').sum())} files could not be scanned")
    return {
        "seconds": seconds,
        "tracks": len(table),
        "audio": float(table["duration_seconds"].sum()),
        "bytes": int(table["size_bytes"].sum()),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _in_process(case: dict) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scanning", "--one", json.dumps(case)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    largest = 0.0
    while process.poll() is None:
        largest = max(largest, _largest_worker(process.pid))
        time.sleep(0.2)
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the scan ended with exit code {process.returncode}")
    return json.loads(output) | {"worker_megabytes": largest}


def _largest_worker(session: int) -> float:
    """Return the peak memory in MB of the largest process of a session, without its first process."""
    largest = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != session and os.getsid(int(folder.name)) == session:
                status = (folder / "status").read_text()
                largest = max(largest, int(status.split("VmHWM:")[1].split()[0]) / 1024)
        except (OSError, IndexError):  # the process has ended
            continue
    return largest


if __name__ == "__main__":
    main()
