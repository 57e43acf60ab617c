"""The authors and licences of a package's music, from Debian's copyright files or a project's own list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from datamodules.free_corpora.contract import Credit, CreditOf, RecipeError


@dataclass(frozen=True)
class Stated:
    """One credit for all tracks."""

    author: str
    licence: str
    wanted: ClassVar[tuple[str, ...]] = ()

    def read(self, root: Path, package: str) -> CreditOf:
        """Return the same credit for every name."""
        del root, package
        return lambda name: Credit(self.author, self.licence)


@dataclass(frozen=True)
class DebianCopyright:
    """The package's machine-readable copyright file.

    Attributes:
        prefix: Folder of the music in the source package, whose files the copyright file lists.
    """

    prefix: str
    wanted: ClassVar[tuple[str, ...]] = ()  # every package has its copyright file

    def read(self, root: Path, package: str) -> CreditOf:
        """Use the last paragraph that matches, as the format says; RecipeError if the file is missing."""
        path = root / "usr" / "share" / "doc" / package / "copyright"
        try:
            text = path.read_text("utf-8", "replace")
        except OSError as error:
            raise RecipeError(f"The licences of {package} are unknown: {str(path)!r}: {error.strerror}") from error
        paragraphs = copyright_paragraphs(text)[::-1]
        return lambda name: next((credit for files, credit in paragraphs if files.fullmatch(self.prefix + name)), None)


@dataclass(frozen=True)
class LicenceList:
    """A YAML list of authors, each with a licence and names of files.

    Attributes:
        path: The list.
        titles: A YAML list of `name` and `filename`.
        names: Name of a licence in the list -> its short name.
    """

    path: str
    titles: str
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Paths of both lists."""
        return self.path, self.titles

    def read(self, root: Path, package: str) -> CreditOf:
        """Use the lists; RecipeError if one is missing or not of this form."""
        try:
            titles = {entry["filename"]: entry["name"] for entry in _yaml(root / self.titles)}
            credits = {
                name: Credit(
                    _without_address(author), self.names.get(works["license"], works["license"]), titles.get(name, "")
                )
                for entry in _yaml(root / self.path)
                for author, works in entry.items()
                for name in works.get("music", ())
            }
            return credits.get
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"The licences of {package} are unknown: {str(root / self.path)!r} is not the list that was expected "
                f"({error!r})"
            ) from error


def copyright_paragraphs(text: str) -> list[tuple[re.Pattern[str], Credit]]:
    """Parse a copyright file in Debian's format 1.0: the paragraphs about files, each with their pattern and credit."""
    paragraphs = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = _fields(paragraph)
        if {"files", "copyright", "license"} <= fields.keys():
            authors = [" ".join(line.split()) for line in fields["copyright"].splitlines() if line.strip()]
            licence = fields["license"].splitlines()[0].strip()
            credit = Credit("; ".join(dict.fromkeys(authors)), licence)
            paragraphs.append((_file_pattern(fields["files"].split()), credit))
    return paragraphs


def _fields(paragraph: str) -> dict[str, str]:
    """Parse the fields, by name in lower case; a line that begins with a space continues the line before."""
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line[:1] in (" ", "\t") and name:
            fields[name] += f"\n{line}"
        elif found := re.match(r"([A-Za-z-]+):(.*)", line):
            name = found[1].lower()
            fields[name] = found[2].strip()
    return fields


def _file_pattern(patterns: list[str]) -> re.Pattern[str]:
    # The format has the wildcards * and ?, which also match slashes.
    translated = (re.escape(p.removeprefix("./")).replace(r"\*", ".*").replace(r"\?", ".") for p in patterns)
    return re.compile("|".join(f"(?:{pattern})" for pattern in translated), re.DOTALL)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"The list {str(path)!r} cannot be read: {error}") from error


def _without_address(author: str) -> str:
    """Remove mail addresses in angle brackets; the credit does not need them."""
    return re.sub(r"\s*<[^<>]*@[^<>]*>", "", author)
