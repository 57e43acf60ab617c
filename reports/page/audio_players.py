"""The audio of a page: one player per segment; the files lie beside the page, and small ones are embedded in it."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reports.figures.style import SystemStyle
from reports.records import SystemCard
from reports.tables.rendering import number
from reports.track_scores import Point, TrackScores

EMBEDDED_BYTES = 25_000_000  # the most that a page embeds; base64 takes 4/3 of a file

Decoded = Mapping[tuple[str, int, str], Path]  # (system, levels, segment) -> audio file

_MEDIA = {".flac": "audio/flac", ".wav": "audio/wav", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".mp3": "audio/mpeg"}


@dataclass(frozen=True)
class Choice:
    """One recording in a player."""

    title: str
    rate: str  # as text; "" for the reference
    color: str
    file: str  # name in audio/
    source: str  # the address in the page: a data: URI or audio/<file>


@dataclass(frozen=True)
class Player:
    """All recordings of one segment, the reference first."""

    segment: str
    key: str
    choices: tuple[Choice, ...]


def file_name(*parts: str) -> str:
    """Make a plain file name from free texts: lower-case letters, digits, dots, underscores and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9._]+", "-", part.lower()).strip("-.") or "x" for part in parts)


def build_players(
    reference: Mapping[str, Path],
    decoded: Decoded,
    cards: Sequence[SystemCard],
    scores: TrackScores,
    styles: Mapping[str, SystemStyle],
    folder: Path,
) -> tuple[tuple[Player, ...], bool]:
    """Copy the audio to a folder and make one player per segment.

    Args:
        reference: Segment -> audio file.
        decoded: (system, levels, segment) -> audio file.
        cards: The cards of all systems, in the order of the players.
        scores: Gives the measured rates.
        styles: Gives the colour of each system.
        folder: Is created and receives the copies.

    Returns:
        The players, and whether their audio is embedded.
    """
    folder.mkdir()
    titles = {card.name: card.title for card in cards}
    order = {card.name: index for index, card in enumerate(cards)}
    players, sizes = [], 0
    for index, (segment, path) in enumerate(reference.items()):
        key = f"segment-{index + 1}"
        choices = [_copy(path, folder, "Reference", "", "var(--ink)", key, "reference")]
        points = sorted((point[:2] for point in decoded if point[2] == segment), key=lambda p: (order[p[0]], p[1]))
        for system, levels in points:
            rate = _rate((system, levels), scores)
            path = decoded[system, levels, segment]
            color = styles[system].color
            choices.append(
                _copy(path, folder, titles[system], rate, color, key, f"{order[system]:02}", system, f"{levels}")
            )
        sizes += sum((folder / choice.file).stat().st_size for choice in choices)
        players.append(Player(segment, key, tuple(choices)))
    embedded = sizes * 4 / 3 <= EMBEDDED_BYTES
    return tuple(_embed(player, folder) if embedded else player for player in players), embedded


def data_uri(content: bytes, media_type: str) -> str:
    """Write `content` as a data: URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _copy(path: Path, folder: Path, title: str, rate: str, color: str, *name: str) -> Choice:
    file = file_name(*name) + path.suffix.lower()
    shutil.copyfile(path, folder / file)
    return Choice(title, rate, color, file, f"audio/{file}")


def _embed(player: Player, folder: Path) -> Player:
    choices = []
    for choice in player.choices:
        path = folder / choice.file
        media = _MEDIA.get(path.suffix, "application/octet-stream")
        choices.append(replace(choice, source=data_uri(path.read_bytes(), media)))
    return replace(player, choices=tuple(choices))


def _rate(point: Point, scores: TrackScores) -> str:
    kbps = scores.rates.get(point)
    return f"{number(kbps, 2)} kbps" if kbps else f"{point[1]} levels"
