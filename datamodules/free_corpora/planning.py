"""Which pieces a recipe makes of a package: those that are asked for, with their credits and how long they play."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from datamodules.audio.files import verify_ends
from datamodules.free_corpora.contract import Credit, Piece, Recipe, RecipeError
from datamodules.free_corpora.midi import read_song
from spectrostream.errors import UserError

# Longer than any piece of music; a broken MIDI file can claim years.
_LONGEST_SECONDS = 2 * 3600


@dataclass(frozen=True)
class Plan:
    """What is to be made. failed: names of pieces that cannot be, and why. left_out: how many, for their licence."""

    pieces: tuple[Piece, ...]
    failed: tuple[tuple[str, str], ...]
    left_out: int


def planned(
    recipe: Recipe,
    root: Path,
    work: Path,
    *,
    only: Sequence[str] = (),
    licences: Sequence[str] = (),
    soundfont_licence: str = "",
) -> Plan:
    """The pieces of a package that was unpacked in `root`.

    work: where files may be taken out of archives.
    only, licences: patterns, see `building.Options`; without them all, and those that the recipe accepts.
    soundfont_licence: what a rendered piece is licensed under besides.

    Raises RecipeError: nothing is left, or the package is not as the recipe expects.
    """
    sources = recipe.music.sources(root, work)
    named = {name: source for name, source in sources.items() if _is_asked(name, only)}
    if not named:
        raise _none_called(recipe, only, list(sources))
    credit_of = recipe.credits.read(root, recipe.package)
    credits = {name: _credit(name, credit_of(name), soundfont_licence) for name in named}
    accepted = licences or recipe.accepted
    taken = [name for name in named if any(fnmatchcase(credits[name].licence, pattern) for pattern in accepted)]
    if not taken:
        offered = ", ".join(sorted({credit.licence for credit in credits.values()}))
        raise RecipeError(f"No piece has a licence {' or '.join(accepted)}; there are: {offered}")
    return _measured([Piece(name, named[name], 0.0, credits[name]) for name in taken], len(named) - len(taken))


def _measured(pieces: Sequence[Piece], left_out: int) -> Plan:
    """With lengths; a broken file does not stop the others."""
    good, failed = [], []
    for piece in pieces:
        try:
            good.append(replace(piece, seconds=_seconds(piece)))
        except UserError as error:
            failed.append((piece.name, str(error)))
    return Plan(tuple(good), tuple(failed), left_out)


def _seconds(piece: Piece) -> float:
    length: Callable[[Path], float] = _song_seconds if piece.is_rendered else _audio_seconds
    seconds = length(piece.source)
    if seconds > _LONGEST_SECONDS:
        raise RecipeError(f"it would be {seconds:.0f} s long, allowed are {_LONGEST_SECONDS}; is the package damaged?")
    return seconds


def _song_seconds(path: Path) -> float:
    return read_song(path.read_bytes()).seconds


def _audio_seconds(path: Path) -> float:
    return verify_ends(path).duration_seconds


def _is_asked(name: str, patterns: Sequence[str]) -> bool:
    stem = PurePosixPath(name).stem
    return not patterns or any(fnmatchcase(name, pattern) or fnmatchcase(stem, pattern) for pattern in patterns)


def _credit(name: str, credit: Credit | None, soundfont_licence: str) -> Credit:
    credit = credit or Credit("unknown", "unknown")
    licence = f"{credit.licence} and {soundfont_licence}" if soundfont_licence else credit.licence
    return Credit(credit.author, licence, credit.title or PurePosixPath(name).stem)


def _none_called(recipe: Recipe, only: Sequence[str], names: Sequence[str]) -> RecipeError:
    if not names:
        expected = " or ".join(recipe.music.wanted)
        return RecipeError(f"The package {recipe.package} has no music where it should be ({expected}); get it again")
    return RecipeError(
        f"No piece of {recipe.name} is called {' or '.join(only)}; the {len(names)} are called like {sorted(names)[0]}"
    )
