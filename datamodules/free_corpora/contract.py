"""What a recipe is: which package, which files in it are music, who made it and under what licence."""

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
    """The author of a track, and its licence by the short name that Debian uses."""

    author: str
    licence: str
    title: str = ""


@dataclass(frozen=True)
class Track:
    """A track before it is rendered or copied.

    Attributes:
        name: Path in the corpus with forward slashes, and with the extension that it gets there.
        source: The MIDI or audio file that it is made from.
        seconds: Its length, without what fades out after the last note.
    """

    name: str
    source: Path
    seconds: float
    credit: Credit

    @property
    def is_rendered(self) -> bool:
        """Whether it is made from notes; other tracks are copied as they are."""
        return self.source.suffix == ".mid"


class Music(Protocol):
    """The place of the music in a package. `is_notes` says that it is MIDI files, which must be rendered."""

    is_notes: ClassVar[bool]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Patterns of the files that are needed from the package."""

    def sources(self, root: Path, work: Path) -> dict[str, Path]:
        """Find the MIDI or audio files.

        Args:
            root: The package's folder, with `usr` in it.
            work: Folder for files that are taken out of archives.

        Returns:
            Name in the corpus -> file.

        Raises:
            RecipeError: The package lacks an archive, or an archive is broken.
        """


class Credits(Protocol):
    """The place where a package names the authors."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Patterns of the files that are needed from the package, besides its copyright file."""

    def read(self, root: Path, package: str) -> CreditOf:
        """Read the credits; RecipeError if they are missing or broken."""


CreditOf = Callable[[str], Credit | None]
"""Name of a track -> its credit; None if the package says nothing about it."""


@dataclass(frozen=True)
class Recipe:
    """A corpus as data.

    Attributes:
        package: Debian's package with the music.
        minutes: Length of all music.
        megabytes: Size of the download, with the soundfont.
        licence: Of the whole, in words.
        accepted: Patterns of the licences that are taken by default.
        held_out: True if it is meant for evaluation: style and composers differ from the other recipes.
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
    """Shows how far a build is."""

    def doing(self, what: str) -> None:
        """Show what is being worked on."""

    def total(self, seconds: float) -> None:
        """Set how much music there will be."""

    def advance(self, seconds: float) -> None:
        """Count more finished music."""
