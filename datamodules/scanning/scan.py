"""Make the manifest of a corpus: the layout finds the tracks, worker processes measure those that are not yet known."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas
from pandas.api.types import pandas_dtype

from datamodules.corpora.manifest import COLUMNS, file_path, table_name, typed
from datamodules.layouts import LAYOUTS, Entry, Found, Layout, LayoutError
from datamodules.scanning.duplicates import mark_duplicates
from datamodules.scanning.earlier import known_rows, with_additions
from datamodules.scanning.journal import Finished, ScanJournal, TrackKey, read_journal
from datamodules.scanning.measuring import Measurement
from datamodules.scanning.pool import Job, Outcome, measured
from spectrostream.errors import UserError

_MEASURED = tuple(field.name for field in fields(Measurement))
_STAT_THREADS = 16  # on a network disk each call waits for the server

_OF_ENTRIES = ("name", "split", "group", "artist", "genre")
# Columns that a file's tags fill if the corpus does not.
_FROM_TAGS = {"group": "album", "artist": "artist", "genre": "genre"}
_OF_FILES = ("size_bytes", "modified_ns", "problem")
# The name becomes a folder's name when the music is prepared.
_NAME = re.compile(r"\w[\w.-]{0,63}")


class ScanError(UserError):
    """A folder that cannot be scanned; the message says what to type."""


@dataclass(frozen=True)
class ScanProgress:
    """Progress of a scan: `known` tracks need no measurement, `done` of `waiting` are measured; their files' bytes."""

    known: int
    done: int
    waiting: int
    bytes_done: int
    bytes_waiting: int


ProgressReport = Callable[[ScanProgress], None]


def layout_named(name: str) -> Layout:
    """Return the layout of a known corpus; LayoutError lists all names."""
    if name not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise LayoutError(
            f"There is no corpus {name!r}; known are {known}. For any folder of music type --corpus folder"
        )
    return LAYOUTS[name]


def require_name(name: str, layout: str) -> None:
    """Raise ScanError unless a corpus of this layout may have the name."""
    if not _NAME.fullmatch(name):
        raise ScanError(
            f"A corpus cannot be called {name!r}; allowed are up to 64 letters, digits, _ - and dots, beginning with a "
            "letter, digit or _. Type for instance --name live"
        )
    if name in LAYOUTS and name != layout:
        raise ScanError(
            f"{name!r} is the name of a layout, and this corpus is laid out as {layout!r}; type another --name, or "
            f"--corpus {name}"
        )


def scan(
    root: str | Path,
    corpus: str = "folder",
    *,
    journal: Path,
    name: str | None = None,
    workers: int = 1,
    timeout_seconds: float = 60.0,
    headers_only: bool = False,
    known: pandas.DataFrame | None = None,
    progress: ProgressReport = lambda progress: None,
) -> pandas.DataFrame:
    """Make the manifest of the music below `root`: a row for each track and each file that cannot be used, by name.

    A script that calls this needs `if __name__ == "__main__":`, because it starts processes.

    Args:
        root: The corpus' folder.
        corpus: Name of its layout, see `datamodules.layouts`.
        journal: File for the finished tracks. An existing one resumes the scan. Remove it when the manifest is written.
        name: For the column `corpus`; None keeps the name in `known`, or takes the layout's.
        workers: Number of processes that measure.
        timeout_seconds: For one track, see `pool.measured`.
        headers_only: Leave loudness, bandwidth, hash and so on empty, unless `known` has them for the same file.
        known: An earlier manifest. Files with the same size and time of change are not measured again, except unusable
            files and those that another version measured. With `headers_only`, unusable files stay so unless they could
            not be reached, and only headers are read again. Cells and columns that a user added are kept.
        progress: Called after each batch, in this thread.

    Raises:
        LayoutError: There is no such corpus, or the folder does not have its layout.
        ScanError: `root` is no folder or has no music, or the name is not allowed.
        WorkersError: The processes cannot start.
        OSError: The journal cannot be written.
    """
    root = _require_folder(root)
    layout = layout_named(corpus)
    if name is not None:
        require_name(name, corpus)
    found = layout(root)
    if not found.entries and not found.skipped:
        raise ScanError(f"There is no music in {str(root)!r}; give a folder with music in it")
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        tracks = list(pool.map(lambda entry: _tracked(root, entry), found.entries))
    earlier = known_rows(known, headers_only=headers_only) | read_journal(journal)
    done = _remembered(tracks, earlier, headers_only)
    # Names that are one file on disk (hard links) are measured once.
    waiting = list({track.identity: track for track in tracks if track.identity not in done}.values())
    jobs = [Job(number, track.paths, track.size_bytes) for number, track in enumerate(waiting)]
    outcomes = measured(jobs, workers=workers, timeout_seconds=timeout_seconds, headers_only=headers_only)
    with ScanJournal(journal) as written, closing(outcomes):
        for batch in _counted(outcomes, jobs, len(tracks), progress):
            for job, outcome in batch:
                track = waiting[job.number]
                done[track.identity] = finished = _finished(track, outcome, earlier.get(track.key))
                written.add(track.key, finished)
    rows = [(track.entry, done[track.identity]) for track in tracks]
    called = name or _name_before(known) or corpus
    return with_additions(_table(called, root, rows + _skipped_rows(root, found)), known)


def _name_before(known: pandas.DataFrame | None) -> str | None:
    """Return the corpus' name in an earlier manifest; None if it is the name of a layout."""
    names = [] if known is None else known["corpus"].unique().tolist()
    return names[0] if len(names) == 1 and names[0] not in LAYOUTS else None


@dataclass(frozen=True, slots=True)
class _Track:
    """An entry and the state of its files before they are read; `identity` is equal for names of the same files."""

    entry: Entry
    key: TrackKey
    paths: tuple[Path, ...]
    identity: object
    size_bytes: int = 0
    modified_ns: int = 0
    problem: str = ""


def _tracked(root: Path, entry: Entry) -> _Track:
    text = table_name(root)
    key = TrackKey(text, entry.name, "\n".join(entry.parts))
    paths = tuple(file_path(text, name) for name in entry.parts or (entry.name,))
    try:
        states = [path.stat() for path in paths]
    except OSError as error:
        where = f" ({Path(error.filename).name!r})" if entry.parts else ""
        return _Track(entry, key, paths, key, problem=f"cannot be opened: {error.strerror}{where}")
    identity = tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
    size, modified = sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
    return _Track(entry, key, paths, identity, size, modified)


def _remembered(
    tracks: Iterable[_Track], earlier: Mapping[TrackKey, Finished], headers_only: bool
) -> dict[object, Finished]:
    """Return the tracks that need no measurement, by identity: measured before and not changed, or missing."""
    done = {}
    for track in tracks:
        finished = earlier.get(track.key)
        if track.problem:
            done[track.identity] = Finished(None, None, None, track.problem)
        elif (
            finished
            and finished.is_about(track.size_bytes, track.modified_ns)
            and finished.is_current
            and (headers_only or finished.is_whole)
        ):
            done[track.identity] = finished
    return done


def _counted(
    outcomes: Iterable[list[tuple[Job, Outcome]]], jobs: Sequence[Job], tracks: int, report: ProgressReport
) -> Iterator[list[tuple[Job, Outcome]]]:
    """Yield the same, and report how much is done."""
    progress = ScanProgress(tracks - len(jobs), 0, len(jobs), 0, sum(job.size_bytes for job in jobs))
    report(progress)
    for batch in outcomes:
        yield batch
        size = sum(job.size_bytes for job, _ in batch)
        progress = replace(progress, done=progress.done + len(batch), bytes_done=progress.bytes_done + size)
        report(progress)


def _finished(track: _Track, outcome: Outcome, earlier: Finished | None) -> Finished:
    if isinstance(outcome, Measurement):
        return Finished(track.size_bytes, track.modified_ns, _completed(track, outcome, earlier))
    return Finished(track.size_bytes, track.modified_ns, None, _printable(outcome))


def _completed(track: _Track, outcome: Measurement, earlier: Finished | None) -> Measurement:
    """Complete a header with an earlier measurement of the same file, also one of another version."""
    before = earlier.measurement if earlier and earlier.is_about(track.size_bytes, track.modified_ns) else None
    return before.with_header(outcome) if before and before.content_hash and not outcome.content_hash else outcome


def _skipped_rows(root: Path, found: Found) -> list[tuple[Entry, Finished]]:
    names = {entry.name for entry in found.entries}
    rows = []
    for file in found.skipped:
        name = table_name(file.path.relative_to(root) if file.path.is_relative_to(root) else file.path)
        if name not in names:
            rows.append((Entry(name), Finished(None, None, None, _printable(file.reason))))
    return rows


def _printable(reason: str) -> str:
    # A reason may quote a file name that is no UTF-8.
    return reason.encode("utf-8", "backslashreplace").decode()


def _table(corpus: str, root: Path, rows: Sequence[tuple[Entry, Finished]]) -> pandas.DataFrame:
    rows = sorted(rows, key=lambda row: row[0].name)
    entries, finished = [entry for entry, _ in rows], [outcome for _, outcome in rows]
    columns: dict[str, object] = {"corpus": corpus, "root": table_name(root)}
    columns |= {name: [getattr(entry, name) for entry in entries] for name in _OF_ENTRIES}
    columns["parts"] = ["\n".join(entry.parts) for entry in entries]
    columns |= {name: _column(name, [getattr(outcome, name) for outcome in finished]) for name in _OF_FILES}
    measurements = [outcome.measurement for outcome in finished]
    columns |= {name: _column(name, [getattr(one, name, None) for one in measurements]) for name in _MEASURED}
    for name, tag in _FROM_TAGS.items():
        columns[name] = [
            getattr(entry, name) or getattr(one, tag, "") for entry, one in zip(entries, measurements, strict=True)
        ]
    return mark_duplicates(typed(pandas.DataFrame(columns, index=range(len(rows)))))


def _column(name: str, values: list[object]) -> pandas.Series:
    # With its type from the start: with a missing value, nanoseconds would become floats and lose digits.
    return pandas.Series(values, dtype=pandas_dtype(COLUMNS[name][0]))


def _require_folder(root: str | Path) -> Path:
    root = Path(os.path.abspath(Path(root).expanduser()))  # noqa: PTH100  links stay as they were typed
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise ScanError(f"The music folder {str(root)!r} {kind}; type one that exists")
    return root
