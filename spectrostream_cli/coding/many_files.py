"""Plans and runs the jobs of a command: one file to a file, or files and folders into a folder."""

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
    """An input file and its output file."""

    source: Path
    target: Path


class Plan(NamedTuple):
    """The jobs of one command."""

    jobs: list[Job]
    is_batch: bool
    """True if a failed job does not stop the rest."""


def planned(inputs: Sequence[str], output: str, *, extensions: Collection[str], target_extension: str) -> Plan:
    """Plan the output file of each input file.

    Args:
        inputs: Files, and folders that are searched for files. Hidden files are left out.
        output: A file if there is one input file and no folder of this name, otherwise a folder. It keeps the names
            below an input folder.
        extensions: Extensions of input files in folders.
        target_extension: Extension of output files in a folder.

    Raises:
        UserError: A folder has no such files, the output folder is a file, or two inputs have the same output.
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
    """Return input files, each with its name in the output folder."""
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
    """The results of the jobs.

    Attributes:
        done: What the finished jobs returned.
        skipped: Number of jobs that were finished before.
        failed: Source and reason of each failed job.
        seconds: Time for all jobs.
    """

    def __init__(self) -> None:
        self.done: list[T] = []
        self.skipped = 0
        self.failed: list[tuple[Path, str]] = []
        self.seconds = 0.0

    def last_line(self, line: str) -> str:
        """Return the line with the number of skipped jobs.

        Raises:
            UserError: A job failed; the message has the reasons and the line.
        """
        skipped = f"; {self.skipped} finished before and skipped, --overwrite repeats them" if self.skipped else ""
        if not self.failed:
            return line + skipped
        reasons = "".join(f"\n  {source}: {reason}" for source, reason in self.failed)
        raise UserError(f"{len(self.failed)} of {self._total} files failed:{reasons}\nthe others: {line}{skipped}")

    @property
    def _total(self) -> int:
        return len(self.done) + self.skipped + len(self.failed)


def run_jobs(plan: Plan, work: Callable[[Job], T | None], progress: AudioProgress) -> Outcome[T]:
    """Run all jobs.

    Args:
        work: Runs one job; returns None if it was finished before.
        progress: Shows the present file.

    Raises:
        UserError: The job failed, in a plan that is no batch; also OSError.
    """
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
    # Many messages begin with the file's name, which is already before the reason.
    message = str(error)
    for prefix in (f"{str(source)!r}: ", f"{source}: "):
        message = message.removeprefix(prefix)
    return message


def make_parent(path: Path) -> None:
    """Create the folder of a file.

    Raises:
        UserError: The folder cannot be created or written to, or the file is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; type the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be created: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder {path.parent} is not writable")


def require_free(path: Path, arguments: argparse.Namespace) -> None:
    """Check that the file does not exist, or that `--overwrite` is given.

    Raises:
        UserError: It exists.
    """
    if path.exists() and not arguments.overwrite:
        raise UserError(f"{path} exists; --overwrite replaces it")


def is_finished(job: Job, fits: Callable[[Path], bool]) -> bool:
    """Return True if the target exists and was made by the same job.

    Args:
        fits: Returns True if an existing target has the properties that the job gives it.

    Raises:
        UserError: The target is another file, or older than the source.
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
