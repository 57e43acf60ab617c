"""A recipe carried out: packages, pieces, rendering or copying, attribution; killed at any moment, it goes on."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.free_corpora.attribution import write_attribution, write_licences
from datamodules.free_corpora.catalog import SOUNDFONTS
from datamodules.free_corpora.contract import Piece, Recipe, RecipeError, Report
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

    renderer, soundfont, bits: of music that is rendered; soundfont is a name in SOUNDFONTS or a file.
    licences: patterns of those that are taken; () for the recipe's own.
    only: patterns of pieces that are taken, by path or by name without folder and extension; () for all.
    jobs: pieces at a time.
    """

    renderer: str = "auto"
    soundfont: str = "small"
    bits: int = 16
    licences: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    jobs: int = 1


@dataclass(frozen=True)
class Built:
    """A finished corpus. left_out: pieces whose licence was not asked for. scaled: pieces that were made softer."""

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
        """For the ledger."""
        name, version, manner = self.renderer.name, self.renderer.version, self.renderer.manner
        soundfont = {"soundfont": self.soundfont.name, "soundfont_licence": self.licence}
        return {"renderer": name, "version": version, "manner": manner, **soundfont, "bits": bits}


def build(recipe: Recipe, out: Path, given: Given, options: Options, report: Report) -> Built:
    """Builds the corpus in `out`, or goes on with it.

    Raises:
        RecipeError: anything missing or wrong, or pieces that failed; the finished ones stay.
        OSError: no room, no permission.
    """
    renders = recipe.music.is_notes
    ledger = Ledger(out, _asked(recipe, options, renders))
    if ledger.is_complete:
        return _built(ledger, left_out=0, new=0)
    # Before anything is downloaded.
    renderer = chosen_renderer(options.renderer) if renders else None
    with ledger.locked():
        packages = found_packages(_needed(recipe, options, renders), given, ledger.work / "packages", report)
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
        write_licences(out, packages, ledger.pieces)
        write_attribution(out, recipe, ledger.pieces, made_with)
        ledger.complete()
    return _built(ledger, plan.left_out, new)


def _asked(recipe: Recipe, options: Options, renders: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {"recipe": recipe.name}
    if renders:
        asked |= {"renderer": options.renderer, "soundfont": options.soundfont, "bits": options.bits}
    return {**asked, "licences": list(options.licences or recipe.accepted), "only": list(options.only)}


def _needed(recipe: Recipe, options: Options, renders: bool) -> dict[str, tuple[str, ...]]:
    needed = {recipe.package: (*recipe.music.wanted, *recipe.credits.wanted)}
    if renders and options.soundfont in SOUNDFONTS:
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
    """Makes what is not finished, several pieces at a time, and counts it; RecipeError lists those that failed."""
    pieces = [piece for piece in plan.pieces if not ledger.has(piece.name)]
    rendering = _rendering(ledger.work / "audio", tools, options.bits) if tools else None
    report.doing("rendering" if rendering else "copying")
    report.total(sum(piece.seconds for piece in pieces))
    failed = list(plan.failed)
    with _running(partial(_make, ledger.out, rendering), pieces, rendering, options.jobs) as futures:
        for future in as_completed(futures):
            piece = futures[future]
            try:
                ledger.add(piece.name, future.result())
            except UserError as error:
                failed.append((piece.name, str(error)))
            report.advance(piece.seconds)
    if failed:
        raise _failure(failed, len(plan.pieces) + len(plan.failed), ledger.out)
    return len(pieces)


def _rendering(work: Path, tools: _Tools, bits: int) -> Rendering:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return Rendering(tools.renderer, tools.soundfont, work, bits)


@contextmanager
def _running(
    make: Callable[[Piece], dict[str, Any]], pieces: Sequence[Piece], rendering: Rendering | None, jobs: int
) -> Iterator[dict[Future[dict[str, Any]], Piece]]:
    """Pieces being made; at the end, whatever it is, nothing runs any more."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            # Long pieces first, so that the last minutes are not one processor's.
            ordered = sorted(pieces, key=lambda piece: piece.seconds, reverse=True)
            yield {pool.submit(make, piece): piece for piece in ordered}
        finally:
            if rendering:
                rendering.stop()
            pool.shutdown(wait=True, cancel_futures=True)


def _failure(failed: Sequence[tuple[str, str]], total: int, out: Path) -> RecipeError:
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in sorted(failed))
    return RecipeError(
        f"{len(failed)} of {total} pieces failed:{reasons}\nThe others are in {str(out)!r}; type the same command "
        "again to try these once more"
    )


def _make(out: Path, rendering: Rendering | None, piece: Piece) -> dict[str, Any]:
    """One piece, and what is known of it then."""
    target = out / piece.name
    facts: dict[str, Any] = {
        "title": piece.credit.title,
        "author": piece.credit.author,
        "licence": piece.credit.licence,
        "seconds": piece.seconds,
    }
    try:
        if piece.is_rendered and rendering:
            rendered = rendering.render(piece.source, target, piece.seconds)
            facts |= {"seconds": rendered.seconds, "peak_dbfs": rendered.peak_dbfs, "scaled_db": rendered.scaled_db}
        else:
            with piece.source.open("rb") as source:
                copy_whole(source, target)
        return {**facts, "size_bytes": target.stat().st_size}
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # the next piece would fail likewise
        raise RecipeError(f"{error.filename or target}: {error.strerror or error}") from error


def _built(ledger: Ledger, left_out: int, new: int) -> Built:
    pieces = ledger.pieces.values()
    seconds = sum(piece["seconds"] for piece in pieces)
    scaled = sum(1 for piece in pieces if piece.get("scaled_db"))
    return Built(len(pieces), seconds, sum(piece["size_bytes"] for piece in pieces), left_out, scaled, new)
