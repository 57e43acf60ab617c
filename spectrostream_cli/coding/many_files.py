"""One file to a file, or many files and folders into a folder: which file becomes which, and doing them all."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from spectrostream.errors import UserError

if TYPE_CHECKING:
    from spectrostream_cli.progress import AudioProgress

T = TypeVar("T")


class Job(NamedTuple):
    """A file, and what it becomes."""

    source: Path
    target: Path


class Plan(NamedTuple):
    """The jobs, and whether they are a batch, in which one failure does not stop the rest."""

    jobs: list[Job]
    is_batch: bool


def planned(inputs: Sequence[str], output: str, *, extensions: Collection[str], target_extension: str) -> Plan:
    """Which file becomes which.

    inputs: files, and folders in which files with these extensions are searched, hidden ones apart.
    output: a file if there is one input file and no folder of this name; else a folder, where names below an input
        folder are kept and end in `target_extension`.
    Raises UserError: a folder without such files, a file where the folder should be, two files with one target.
    """
    into_folder = len(inputs) > 1 or Path(inputs[0]).is_dir() or Path(output).is_dir() or output.endswith(os.sep)
    if not into_folder:
        if Path(inputs[0]).absolute() == Path(output).absolute():
            raise UserError(f"{output} is the input too; type another name for the output")
        return Plan([Job(Path(inputs[0]), Path(output))], is_batch=False)
    if Path(output).is_file():
        raise UserError(f"{output} is a file; several files need a folder to go to")
    found = [pair for given in inputs for pair in _found(Path(given), extensions)]
    jobs = [Job(source, (Path(output) / name).with_suffix(target_extension)) for source, name in found]
    _refuse_shared_targets(jobs)
    return Plan(jobs, is_batch=len(inputs) > 1 or Path(inputs[0]).is_dir())


def _found(given: Path, extensions: Collection[str]) -> list[tuple[Path, Path]]:
    """Files, each with its name in the output folder."""
    if not given.is_dir():
        return [(given, Path(given.name))]
    found = []
    for path in sorted(given.rglob("*")):
        name = path.relative_to(given)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in extensions and not is_hidden and path.is_file():
            found.append((path, name))
    if not found:
        raise UserError(f"{given} holds none of the files that are looked for: {', '.join(sorted(extensions))}")
    return found


def _refuse_shared_targets(jobs: Sequence[Job]) -> None:
    sources: dict[Path, Path] = {}
    for source, target in jobs:
        other = sources.setdefault(target, source)
        if other != source:
            raise UserError(f"{other} and {source} would both become {target}; give them different output folders")


class Outcome(Generic[T]):
    """done: what the finished jobs returned. skipped: how many were finished before. failed: which, and why."""

    def __init__(self) -> None:
        self.done: list[T] = []
        self.skipped = 0
        self.failed: list[tuple[Path, str]] = []
        self.seconds = 0.0

    def last_line(self, line: str) -> str:
        """The line, with what was skipped; UserError with line and reasons if a job failed."""
        skipped = f"; {self.skipped} finished before and skipped, --overwrite repeats them" if self.skipped else ""
        if not self.failed:
            return line + skipped
        reasons = "".join(f"\n  {source}: {reason}" for source, reason in self.failed)
        raise UserError(f"{len(self.failed)} of {self._total} files failed:{reasons}\nthe others: {line}{skipped}")

    @property
    def _total(self) -> int:
        return len(self.done) + self.skipped + len(self.failed)


def run_jobs(plan: Plan, work: Callable[[Job], T | None], progress: AudioProgress) -> Outcome[T]:
    """All jobs; `work` returns None for one that was finished before. A single file's error is raised as it is."""
    outcome: Outcome[T] = Outcome()
    begin = time.perf_counter()
    with progress:
        for job in plan.jobs:
            progress.name(job.source.name)
            try:
                _add(outcome, work(job))
            except (UserError, OSError) as error:
                if not plan.is_batch:
                    raise
                outcome.failed.append((job.source, _reason(error, job.source)))
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _add(outcome: Outcome[T], result: T | None) -> None:
    if result is None:
        outcome.skipped += 1
    else:
        outcome.done.append(result)


def _reason(error: UserError | OSError, source: Path) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or source}: {error.strerror or error}"
    # Many messages begin with the file's name, which stands before the reason already.
    message = str(error)
    for prefix in (f"{str(source)!r}: ", f"{source}: "):
        message = message.removeprefix(prefix)
    return message


def make_parent(path: Path) -> None:
    """The folder that the file goes to. UserError: it cannot be made or written to, or the file is a folder."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; type the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder {path.parent} is not writable")


def require_free(path: Path, arguments: argparse.Namespace) -> None:
    """UserError if the file is there and `--overwrite` is not given."""
    if path.exists() and not arguments.overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it")


def is_finished(job: Job, fits: Callable[[Path], bool]) -> bool:
    """Whether the target is there and is what the job would make; UserError if something else is there.

    fits: whether an existing target has the properties that the job gives it.
    """
    source, target = job
    if not target.exists():
        return False
    try:
        is_it = fits(target)
    except UserError:
        is_it = False
    if not is_it:
        raise UserError(f"{target} exists and was not made from {source} in this way; --overwrite replaces it")
    if source.stat().st_mtime_ns > target.stat().st_mtime_ns:
        raise UserError(f"{target} exists and is older than {source}; --overwrite replaces it")
    return True
