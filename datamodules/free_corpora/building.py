"""Build the corpus of a recipe: packages, tracks, rendering or copying, attribution. A killed build can resume."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.free_corpora.attribution import write_attribution, write_licences
from datamodules.free_corpora.catalog import SOUNDFONTS
from datamodules.free_corpora.contract import Recipe, RecipeError, Report, Track
from datamodules.free_corpora.ledger import Ledger
from datamodules.free_corpora.packages import Given, Package, found_packages, matching
from datamodules.free_corpora.planning import Plan, planned
from datamodules.free_corpora.renderers import Renderer, chosen_renderer
from datamodules.free_corpora.rendering import Rendering
from spectrostream.atomic_files import copy_whole
from spectrostream.errors import UserError


@dataclass(frozen=True)
class Options:
    """How a corpus is built.

    Attributes:
        renderer: One of `renderers.NAMES`.
        soundfont: A name in `SOUNDFONTS`, or a file.
        bits: Of rendered FLAC files.
        licences: Patterns of the licences that are taken; () takes those that the recipe accepts.
        only: Patterns of the tracks that are taken, by path or by name without folder and extension; () takes all.
        jobs: Number of tracks at a time.
    """

    renderer: str = "auto"
    soundfont: str = "small"
    bits: int = 16
    licences: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    jobs: int = 1


@dataclass(frozen=True)
class Built:
    """A finished corpus. `left_out` tracks have other licences; `scaled` ones were made softer, `new` ones made now."""

    tracks: int
    seconds: float
    size_bytes: int
    left_out: int
    scaled: int
    new: int


@dataclass(frozen=True)
class _Tools:
    """What notes are rendered with."""

    renderer: Renderer
    soundfont: Path
    licence: str

    def record(self, bits: int) -> dict[str, Any]:
        """The ledger's entry."""
        name, version, manner = self.renderer.name, self.renderer.version, self.renderer.manner
        soundfont = {"soundfont": self.soundfont.name, "soundfont_licence": self.licence}
        return {"renderer": name, "version": version, "manner": manner, **soundfont, "bits": bits}


def build(recipe: Recipe, out: Path, given: Given, options: Options, report: Report) -> Built:
    """Build the corpus in `out`, or resume it.

    Raises:
        RecipeError: Something is missing or wrong, or tracks failed; the finished ones stay.
        OSError: The disk is full, or writing is not allowed.
    """
    renders = recipe.music.is_notes
    ledger = Ledger(out, _asked(recipe, options))
    if ledger.is_complete:
        return _built(ledger, left_out=0, new=0)
    # A missing renderer must be noticed before the download.
    renderer = chosen_renderer(options.renderer) if renders else None
    with ledger.locked():
        packages = found_packages(_needed(recipe, options), given, ledger.work / "packages", report)
        tools = _tools(renderer, packages, options) if renderer else None
        made_with = _made_with(packages, tools, options)
        report.doing("looking for music")
        plan = planned(
            recipe,
            packages[recipe.package].root,
            ledger.work / "sources",
            only=options.only,
            licences=options.licences,
            soundfont_licence=tools.licence if tools else "",
        )
        ledger.begin(made_with)
        new = _make_all(plan, ledger, tools, options, report)
        write_licences(out, packages, ledger.tracks)
        write_attribution(out, recipe, ledger.tracks, made_with)
        ledger.complete()
    return _built(ledger, plan.left_out, new)


def _asked(recipe: Recipe, options: Options) -> dict[str, Any]:
    asked: dict[str, Any] = {"recipe": recipe.name}
    if recipe.music.is_notes:
        asked |= {"renderer": options.renderer, "soundfont": options.soundfont, "bits": options.bits}
    return {**asked, "licences": list(options.licences or recipe.accepted), "only": list(options.only)}


def _needed(recipe: Recipe, options: Options) -> dict[str, tuple[str, ...]]:
    needed = {recipe.package: (*recipe.music.wanted, *recipe.credits.wanted)}
    if recipe.music.is_notes and options.soundfont in SOUNDFONTS:
        soundfont = SOUNDFONTS[options.soundfont]
        needed[soundfont.package] = (soundfont.pattern,)
    return needed


def _tools(renderer: Renderer, packages: Mapping[str, Package], options: Options) -> _Tools:
    if options.soundfont not in SOUNDFONTS:
        path = Path(options.soundfont)
        if not path.is_file():
            raise RecipeError(
                f"There is no soundfont {options.soundfont!r}; type {' or '.join(SOUNDFONTS)}, or the name of a file "
                "(.sf2, .sf3)"
            )
        return _Tools(renderer, path.absolute(), "licence unknown")
    known = SOUNDFONTS[options.soundfont]
    found = matching(packages[known.package].root, [known.pattern])
    if not found:
        raise RecipeError(f"The package {known.package} has no file {known.pattern}; download it again")
    return _Tools(renderer, max(found, key=lambda path: path.stat().st_size), known.licence)


def _made_with(packages: Mapping[str, Package], tools: _Tools | None, options: Options) -> dict[str, Any]:
    record: dict[str, Any] = {
        "packages": {name: {"version": package.version, "sha256": package.sha256} for name, package in packages.items()}
    }
    return {**record, "rendering": tools.record(options.bits)} if tools else record


def _make_all(plan: Plan, ledger: Ledger, tools: _Tools | None, options: Options, report: Report) -> int:
    """Make the tracks that are not finished, and count them; RecipeError lists those that failed."""
    tracks = [track for track in plan.tracks if not ledger.has(track.name)]
    # With the longest tracks first, the processors end at about the same time.
    tracks.sort(key=lambda track: track.seconds, reverse=True)
    rendering = Rendering(tools.renderer, tools.soundfont, _new_folder(ledger.work), options.bits) if tools else None
    report.doing("rendering" if rendering else "copying")
    report.total(sum(track.seconds for track in tracks))
    failed = list(plan.failed)
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        try:
            futures = {pool.submit(_make, ledger.out, rendering, track): track for track in tracks}
            for future in as_completed(futures):
                track = futures[future]
                try:
                    ledger.add(track.name, future.result())
                except UserError as error:
                    failed.append((track.name, str(error)))
                report.advance(track.seconds)
        finally:
            if rendering:
                rendering.stop()
            pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        raise _failure(failed, len(plan.tracks) + len(plan.failed), ledger.out)
    return len(tracks)


def _new_folder(work: Path) -> Path:
    folder = work / "audio"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _failure(failed: Sequence[tuple[str, str]], total: int, out: Path) -> RecipeError:
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in sorted(failed))
    return RecipeError(
        f"{len(failed)} of {total} tracks failed:{reasons}\nThe others are in {str(out)!r}; type the same command "
        "again to try these once more"
    )


def _make(out: Path, rendering: Rendering | None, track: Track) -> dict[str, Any]:
    """Make a track; return its entry in the ledger."""
    target = out / track.name
    credit = track.credit
    facts: dict[str, Any] = {"title": credit.title, "author": credit.author, "licence": credit.licence}
    facts["seconds"] = track.seconds
    try:
        if track.is_rendered and rendering:
            facts |= asdict(rendering.render(track.source, target, track.seconds))
        else:
            with track.source.open("rb") as source:
                copy_whole(source, target)
        return {**facts, "size_bytes": target.stat().st_size}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # the next track would fail for the same reason
        raise RecipeError(f"{error.filename or target}: {error.strerror or error}") from error


def _built(ledger: Ledger, left_out: int, new: int) -> Built:
    tracks = ledger.tracks.values()
    seconds = sum(track["seconds"] for track in tracks)
    scaled = sum(1 for track in tracks if track.get("scaled_db"))
    return Built(len(tracks), seconds, sum(track["size_bytes"] for track in tracks), left_out, scaled, new)
