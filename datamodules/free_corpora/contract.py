"""What a recipe is: which packages, which files in them are music, who made it and under what licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from spectrostream.errors import UserError


class RecipeError(UserError):
    """A corpus that cannot be built; the message says what is missing or wrong and what to type."""


@dataclass(frozen=True)
class Credit:
    """Who made a piece, and under what licence it is passed on, by the short name that Debian uses."""

    author: str
    licence: str
    title: str = ""


@dataclass(frozen=True)
class Piece:
    """One piece of music before it is rendered or copied.

    name: path in the corpus with forward slashes, with the extension that it will have there.
    source: the MIDI or audio file that it is made from.
    seconds: how long it plays, without what fades out after the last note.
    """

    name: str
    source: Path
    seconds: float
    credit: Credit

    @property
    def is_rendered(self) -> bool:
        """Whether it is made from notes; other pieces are copied as they are."""
        return self.source.suffix == ".mid"


class Music(Protocol):
    """Where the music lies in a package. is_notes: it is MIDI files, which are to be rendered."""

    is_notes: ClassVar[bool]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Patterns of the files that are needed from the package."""

    def sources(self, root: Path, work: Path) -> dict[str, Path]:
        """MIDI or audio files by their name in the corpus.

        root: the package's folder, with `usr` in it. work: where files may be taken out of archives.
        """


class Credits(Protocol):
    """Where it is written who made the music."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Patterns of the files that are needed from the package, besides its copyright file."""

    def read(self, root: Path, package: str) -> CreditOf:
        """Credits by the name of the piece."""


# From a piece's name to its credit; None where nothing is written about it.
CreditOf = Callable[[str], Credit | None]


@dataclass(frozen=True)
class Recipe:
    """A corpus as data.

    package: Debian's package with the music.
    minutes, megabytes: of music, and to download, soundfont included.
    licence: of the whole, in words.
    accepted: patterns of the licences that are taken unless others are asked for.
    held_out: meant for evaluation, because style and composers differ from the other recipes.
    """

    name: str
    summary: str
    package: str
    music: Music
    credits: Credits
    minutes: int
    megabytes: int
    licence: str
    accepted: tuple[str, ...] = ("*",)
    held_out: bool = False


class Report(Protocol):
    """Who is told how far it is."""

    def doing(self, what: str) -> None:
        """What is being worked on."""

    def total(self, seconds: float) -> None:
        """So much music there will be."""

    def advance(self, seconds: float) -> None:
        """So much more music is done."""
