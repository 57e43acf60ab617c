"""Which tracks a recipe makes of a package: those that are asked for, with their credits and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from datamodules.audio.files import verify_ends
from datamodules.free_corpora.contract import Credit, Recipe, RecipeError, Track
from datamodules.free_corpora.midi import read_song
from spectrostream.errors import UserError

# Longer than any music; a broken MIDI file can claim years.
_LONGEST_SECONDS = 2 * 3600


@dataclass(frozen=True)
class Plan:
    """The tracks to make; names of broken ones, and why they failed; the number of those with other licences."""

    tracks: tuple[Track, ...]
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
    """Plan the tracks of an unpacked package.

    Args:
        recipe: What to make.
        root: The package's folder.
        work: Folder for files that are taken out of archives.
        only: See `building.Options`.
        licences: See `building.Options`.
        soundfont_licence: The second licence of a rendered track.

    Raises:
        RecipeError: Nothing is left, or the package is not as the recipe expects.
    """
    sources = recipe.music.sources(root, work)
    asked = [name for name in sources if _is_asked(name, only)]
    if not asked:
        raise _none_called(recipe, only, list(sources))
    credit_of = recipe.credits.read(root, recipe.package)
    credits = {name: _credit(name, credit_of(name), soundfont_licence) for name in asked}
    accepted = licences or recipe.accepted
    taken = [name for name in asked if any(fnmatchcase(credits[name].licence, pattern) for pattern in accepted)]
    if not taken:
        offered = ", ".join(sorted({credit.licence for credit in credits.values()}))
        raise RecipeError(f"No track has a licence {' or '.join(accepted)}; there are: {offered}")
    tracks, failed = [], []
    for name in taken:
        try:
            tracks.append(Track(name, sources[name], _seconds(sources[name]), credits[name]))
        except UserError as error:
            failed.append((name, str(error)))
    return Plan(tuple(tracks), tuple(failed), len(asked) - len(taken))


def _seconds(source: Path) -> float:
    is_notes = source.suffix == ".mid"
    seconds = read_song(source.read_bytes()).seconds if is_notes else verify_ends(source).duration_seconds
    if seconds > _LONGEST_SECONDS:
        raise RecipeError(f"it would be {seconds:.0f} s long, allowed are {_LONGEST_SECONDS}; is the package damaged?")
    return seconds


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
        f"No track of {recipe.name} is called {' or '.join(only)}; the {len(names)} are called like {sorted(names)[0]}"
    )
