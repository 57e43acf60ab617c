"""`data build`: build a corpus of free music from Debian's packages."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream.errors import UserError
from spectrostream_cli.command import Commands, add_command

if TYPE_CHECKING:
    from rich.console import Console

    from datamodules.free_corpora.building import Built
    from datamodules.free_corpora.contract import Recipe

_EXAMPLES = """  spectrostream data build freedoom --out /music/freedoom
  spectrostream data build freedoom --out trial --only 'D_E1M*' --renderer tinysoundfont
  spectrostream data build naev --out /music/naev --licence 'CC*'
  spectrostream data build ufoai --out /music/ufoai --package-file ufoai-music_2.5-2_all.deb
  spectrostream data build hyperrogue --out /music/held-out --source unpacked

Packages are downloaded with apt-get and read without installing them. Without apt-get, give copies:
--package-file FILE.deb, or --source FOLDER with the output of `dpkg-deb -x FILE.deb FOLDER` (--source / for installed
packages). The folder also gets ATTRIBUTION.md, LICENSES/ and recipe.json. Run the same command again to resume.

recipes:"""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add build."""
    from datamodules.free_corpora.catalog import RECIPES, SOUNDFONTS
    from datamodules.free_corpora.renderers import NAMES

    examples = "\n".join((_EXAMPLES, *map(_described, RECIPES.values())))
    build = add_command(commands, "build", _build, "free music from Debian's packages", examples)
    build.add_argument("recipe", choices=tuple(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    build.add_argument("--out", required=True, metavar="DIR", help="a new folder, or the folder of a build to resume")
    build.add_argument("--only", action="append", default=[], metavar="PATTERN", help="tracks by name (default: all)")
    build.add_argument(
        "--licence", action="append", default=[], metavar="PATTERN", help="licences to take (default: the recipe's)"
    )
    build.add_argument(
        "--package-file", action="append", default=[], metavar="DEB", help="a package file on this machine"
    )
    build.add_argument("--source", action="append", default=[], metavar="FOLDER", help="unpacked packages")
    build.add_argument("--cache", metavar="DIR", help=f"where downloads are kept (default: {_default_cache()})")
    build.add_argument("--jobs", type=int, default=_processors(), help="tracks at a time (default: all processors)")
    notes = build.add_argument_group("for music that is rendered from notes")
    notes.add_argument("--renderer", choices=NAMES, default=NAMES[0], help="default: auto, the first that is installed")
    fonts = ", ".join(f"{name} ({font.megabytes} MB)" for name, font in SOUNDFONTS.items())
    notes.add_argument("--soundfont", default="small", metavar="FONT", help=f"{fonts}, or a file (default: small)")
    notes.add_argument("--bits", type=int, choices=(16, 24), default=16, help="of the FLAC files (default: 16)")


def _described(recipe: Recipe) -> str:
    purpose = "  held out: for evaluation" if recipe.held_out else ""
    size = f"{recipe.minutes:4d} min {recipe.megabytes:5d} MB"
    return f"  {recipe.name:17}{size}  {recipe.licence}\n{'':19}{recipe.summary}{purpose and ';'}{purpose[1:]}"


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache")) / "spectrostream" / "packages"


def _processors() -> int:
    # A scheduler may grant this process fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.free_corpora.building import Options, build
    from datamodules.free_corpora.catalog import RECIPES
    from datamodules.free_corpora.packages import Given

    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}, allowed is 1 or more")
    cache = Path(arguments.cache) if arguments.cache else _default_cache().expanduser()
    given = Given([Path(p) for p in arguments.source], [Path(p) for p in arguments.package_file], cache)
    options = Options(
        arguments.renderer,
        arguments.soundfont,
        arguments.bits,
        tuple(arguments.licence),
        tuple(arguments.only),
        arguments.jobs,
    )
    with _MusicProgress(console) as progress:
        built = build(RECIPES[arguments.recipe], Path(arguments.out), given, options, progress)
    return _last_line(built, arguments.out)


def _last_line(built: Built, out: str) -> str:
    notes = "" if built.new else "; all there before"
    notes += f"; {built.left_out} left out by licence" if built.left_out else ""
    notes += f"; {built.scaled} made softer to avoid clipping" if built.scaled else ""
    size = f"{built.tracks} tracks, {built.seconds / 60:.0f} minutes, {built.size_bytes / 1e6:.0f} MB"
    return f"built: {out} ({size}{notes}; next: spectrostream data scan {shlex.quote(out)})"


class _MusicProgress:
    """Shows minutes of music as a bar or plain lines; a context manager, and a `Report` of `datamodules`."""

    def __init__(self, console: Console) -> None:
        from rich.progress import TextColumn

        from spectrostream_cli.progress import PlainLines, progress_bar

        self._progress = progress_bar(console, TextColumn("{task.fields[minutes]}"))
        self._task = self._progress.add_task("", total=None, minutes="")
        self._lines = PlainLines(console)

    def __enter__(self) -> _MusicProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def doing(self, what: str) -> None:
        """Show the present work before the bar."""
        self._progress.update(self._task, description=what)
        self._offer_line()

    def total(self, seconds: float) -> None:
        """Set the length of the bar."""
        self._progress.reset(self._task, total=seconds)
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        """Add finished seconds of music."""
        self._progress.advance(self._task, seconds)
        task = self._progress.tasks[0]
        self._progress.update(
            self._task, minutes=f"{task.completed / 60:.1f}/{(task.total or 0) / 60:.1f} min of music"
        )
        self._offer_line()

    def _offer_line(self) -> None:
        (task,) = self._progress.tasks
        self._lines.offer(", ".join(filter(None, (task.description, task.fields["minutes"]))), task)
