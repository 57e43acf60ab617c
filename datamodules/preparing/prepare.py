"""Transcode the music of a manifest once, to FLAC files or shards of one sample rate, in worker processes.

The output folder also has `manifest.parquet` (FLAC files) or `index.parquet` (shards), `passed-over.csv` with the
tracks that cannot be used and the reasons, and `prepared.jsonl`, with which a killed run resumes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from datamodules.corpora.manifest import MANIFEST_NAME, typed, write_manifest
from datamodules.preparing.jobs import Job, Made, MadeFile, Settings, is_as_made
from datamodules.preparing.log import PrepareError, PrepareLog
from datamodules.preparing.plan import jobs_of, prepared_names
from datamodules.preparing.pool import run_jobs
from datamodules.preparing.refusals import (
    require_apart,
    require_known_splits,
    require_no_index,
    require_other_file,
    require_same_music,
    resolved,
)
from datamodules.preparing.table import prepared_table
from datamodules.shards.index import INDEX_NAME, write_index

PASSED_OVER_NAME = "passed-over.csv"
# Anybody can write the log. A name in it must not lead out of the folder.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: `path` is its manifest or index, `scaled` counts tracks that would have clipped.

    `made` and `kept` count jobs that were done now and before, `removed` counts shards of an earlier manifest.
    """

    path: Path
    tracks: int
    seconds: float
    size_bytes: int
    passed_over: int
    scaled: int
    made: int
    kept: int
    removed: int


def prepare(
    table: pandas.DataFrame,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    verify: bool = False,
    retry: bool = False,
    manifest: Path | None = None,
    done: Callable[[Job, Made], None] = lambda job, made: None,
) -> Prepared:
    """Prepare every usable track of a manifest; a second call resumes, and repairs damaged files.

    Args:
        table: The manifest.
        out: The output folder.
        settings: What is made of a track.
        workers: Number of processes.
        verify: Compare earlier files by SHA-256, not only by size and time.
        retry: Try tracks again that could not be used before.
        manifest: File of the table, if any; it is never overwritten.
        done: Called with each job that is done, or was done before.

    Raises:
        PrepareError: There is nothing to prepare, no room, or another process at work; the folder was prepared
            differently or from other music; the table is an index of shards or has unknown splits; music or the
            manifest could be overwritten.
        OSError: The folder cannot be written to.
    """
    require_no_index(table, manifest)
    table = typed(table.reset_index(drop=True))
    require_known_splits(table, manifest)
    path = out / (INDEX_NAME if settings.as_shards else MANIFEST_NAME)
    require_other_file(manifest, (path, out / PASSED_OVER_NAME))
    require_apart(table, out)
    names = prepared_names(table, settings)
    jobs = jobs_of(table, names, settings)
    if not jobs:
        raise PrepareError(f"None of the {len(table)} tracks of the manifest can be used; column 'problem' says why")
    with PrepareLog(out, settings) as log:
        require_same_music(table, names, path, log, manifest)
        log.begin([] if manifest is None else [str(resolved(manifest))], table["root"].unique().tolist())
        before = dict(_finished(jobs, log, out, verify, retry))
        results = _all_done(jobs, before, log, out, workers, done)
        passed_over = _passed_over(table, names, results)
        write_manifest(passed_over, out / PASSED_OVER_NAME)
        new = prepared_table(table, names, _rows(results, out), out, settings)
        write_index(new, path) if settings.as_shards else write_manifest(new, path)
        removed = _remove_stale_shards(out, log.files(), set(new["shard"])) if settings.as_shards else 0
    return _summary(new, path, results, passed_over=len(passed_over), kept=len(before), removed=removed)


def _all_done(
    jobs: Sequence[Job],
    before: Mapping[str, Made],
    log: PrepareLog,
    out: Path,
    workers: int,
    done: Callable[[Job, Made], None],
) -> list[Made]:
    """Return the result of each job, in their order; do the jobs that are not in `before`."""
    finished = dict(before)
    open_jobs = [job for job in jobs if job.name not in finished]
    _require_room(open_jobs, out)
    for job in jobs:
        if job.name in finished:
            done(job, finished[job.name])
    for job, made in run_jobs(open_jobs, out, workers):
        log.add(job, made)
        finished[job.name] = made
        done(job, made)
    return [finished[job.name] for job in jobs]


def _finished(jobs: Sequence[Job], log: PrepareLog, out: Path, verify: bool, retry: bool) -> Iterator[tuple[str, Made]]:
    for job in jobs:
        made = log.made(job)
        if made is None or (retry and made.problems):
            continue
        if all(is_as_made(out, file, by_hash=verify) for file in made.files):
            yield job.name, made


def _require_room(jobs: Sequence[Job], out: Path) -> None:
    needed = sum(track.expected_bytes(job.settings) for job in jobs for track in job.tracks)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise PrepareError(
            f"About {needed / 1e9:.1f} GB are needed in {str(out)!r}, {free / 1e9:.1f} GB are free; type another --out "
            "or a smaller --encoding"
        )


def _passed_over(table: pandas.DataFrame, names: pandas.Series, results: Sequence[Made]) -> pandas.DataFrame:
    """Return the rows that cannot be used, with reasons."""
    problems = {name: reason for result in results for name, reason in result.problems.items()}
    table = table.assign(problem=table["problem"].mask(names.isin(list(problems)), names.map(problems)))
    return table[table["problem"] != ""]


def _rows(results: Sequence[Made], out: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = [row for result in results for row in result.rows]
    if not rows:
        raise PrepareError(f"None of the tracks can be used; {str(out / PASSED_OVER_NAME)!r} says why")
    return rows


def _remove_stale_shards(out: Path, logged: Iterable[MadeFile], named: set[str]) -> int:
    """Remove the logged shards that the new index does not name, and count them.

    A tar file that is not as the log says belongs to somebody else and stays.
    """
    stale = [file for file in logged if _SHARD_NAME.fullmatch(file.name) and file.name not in named]
    removed = {out / file.name for file in stale if is_as_made(out, file, by_hash=False)}
    for path in removed:
        path.unlink(missing_ok=True)
    return len(removed)


def _summary(
    table: pandas.DataFrame, path: Path, results: Sequence[Made], *, passed_over: int, kept: int, removed: int
) -> Prepared:
    gains = {name: row["gain_db"] for result in results for name, row in result.rows}
    return Prepared(
        path=path,
        tracks=len(gains),
        seconds=float(table["duration_seconds"].sum()),
        size_bytes=sum(file.size_bytes for result in results for file in result.files),
        passed_over=passed_over,
        scaled=sum(gain < 0 for gain in gains.values()),
        made=len(results) - kept,
        kept=kept,
        removed=removed,
    )
