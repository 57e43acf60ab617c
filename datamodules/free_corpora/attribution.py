"""The files that must go with music that is passed on: authors, licences and changes of each track, licence texts."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.free_corpora.contract import Recipe, RecipeError
from datamodules.free_corpora.packages import Package
from spectrostream.atomic_files import write_whole

_LICENCE_TEXTS = Path("/usr/share/common-licenses")
# Pages of the texts that this folder may lack.
_PAGES = {
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/legalcode",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "CC-BY-SA-3.0": "https://creativecommons.org/licenses/by-sa/3.0/legalcode",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/legalcode",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/legalcode",
    "GPL-2": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
    "GPL-3": "https://www.gnu.org/licenses/gpl-3.0.html",
}
_DOCUMENTS = ("copyright", "CREDITS.gz", "CREDITS")


def write_licences(out: Path, packages: Mapping[str, Package], tracks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `LICENSES/`: the packages' copyright files and credits, and the texts that they only name."""
    folder = out / "LICENSES"
    for package in packages.values():
        for document in _DOCUMENTS:
            path = package.root / "usr" / "share" / "doc" / package.name / document
            if path.is_file():
                _copy(path, folder / package.name / document.removesuffix(".gz"))
    for licence in _licences(tracks):
        if (_LICENCE_TEXTS / licence).is_file():
            _copy(_LICENCE_TEXTS / licence, folder / licence)


def write_attribution(
    out: Path, recipe: Recipe, tracks: Mapping[str, Mapping[str, Any]], made_with: Mapping[str, Any]
) -> None:
    """Write `ATTRIBUTION.md`, with a row for each track; `tracks` and `made_with` are those of the ledger."""
    pages = [f"{licence}: {_PAGES[licence]}\n" for licence in _licences(tracks) if licence in _PAGES]
    title = f"# {recipe.name}: {recipe.summary}"
    lines = [title, "", *_provenance(made_with), "", *_table(tracks), "", *pages]
    write_whole(out / "ATTRIBUTION.md", "\n".join(lines).encode("utf-8", "backslashreplace"))


def _provenance(made_with: Mapping[str, Any]) -> list[str]:
    sources = ", ".join(f"{name} {package['version']}" for name, package in made_with["packages"].items())
    lines = [f"Taken from Debian's packages: {sources}. Their copyright files are in `LICENSES/`.", ""]
    rendering = made_with.get("rendering")
    if rendering is None:
        return [*lines, "The files are copied as they are."]
    return [
        *lines,
        f"Rendered from MIDI with {rendering['renderer']} {rendering['version']} and the soundfont "
        f"{rendering['soundfont']} ({rendering['soundfont_licence']}): {rendering['manner']}; then FLAC with "
        f"{rendering['bits']} bits. A track that came within 1 dB of full scale was made softer as a whole, by what "
        "the table says; what fades out below -90 dB re full scale after the last note is cut off.",
    ]


def _table(tracks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = ["| file | title | author | licence | seconds | change |", "|---|---|---|---|---|---|"]
    for name, facts in sorted(tracks.items()):
        scaled = facts.get("scaled_db", 0.0)
        change = f"{scaled:+.1f} dB" if scaled else ""
        cells = (name, facts["title"], facts["author"], facts["licence"], f"{facts['seconds']:.1f}", change)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return rows


def _licences(tracks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the short names of the licences; the text of `GPL-2+` is `GPL-2`."""
    words = {word for facts in tracks.values() for word in facts["licence"].replace(",", " ").split()}
    return sorted(word.removesuffix("+") for word in words if "/" not in word and word not in ("and", "or"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    try:
        text = gzip.decompress(content) if source.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecipeError(f"The text {str(source)!r} is damaged ({error}); get the package again") from error
    write_whole(target, text)
