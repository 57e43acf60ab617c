"""Standard MIDI files of type 0 and 1: when each note sounds, and how long the song is.

Source: "Standard MIDI Files 1.0" (RP-001). A file is a list of chunks, each with a four-letter name and a length. Each
event of a track begins with its distance from the event before, in ticks. An event without a status byte has the status
of the event before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from datamodules.free_corpora.contract import RecipeError

# Microseconds per quarter note until the file sets another tempo.
_DEFAULT_TEMPO = 500_000
_META, _SET_TEMPO, _END_OF_TRACK = 0xFF, 0x51, 0x2F
_SYSTEM_EXCLUSIVE = (0xF0, 0xF7)
# Number of data bytes of channel messages, by the upper half of their status.
_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}


@dataclass(frozen=True)
class ChannelEvent:
    """A channel message: its time, its kind (0x80 note off ... 0xE0 pitch bend), its channel and data."""

    seconds: float
    kind: int
    channel: int
    data: tuple[int, ...]


@dataclass(frozen=True)
class Song:
    """Events in the order of their times, and the time of the last event or end of a track."""

    events: tuple[ChannelEvent, ...]
    seconds: float


@dataclass(frozen=True)
class _Event:
    tick: int
    status: int
    data: bytes
    meta: int = -1


def read_song(content: bytes) -> Song:
    """Read the song of a MIDI file.

    Raises:
        RecipeError: It has no header, is of type 2, has a length beyond its end, or an event that is not allowed.
    """
    kind, division, chunks = _header(content)
    if kind not in (0, 1):
        raise RecipeError(f"it is a MIDI file of type {kind}, allowed are 0 and 1")
    tracks = [list(_track(BytesIO(body))) for name, body in chunks if name == b"MTrk"]
    if not any(tracks):
        raise RecipeError("it has no track with events")
    # A stable sort: events at the same tick keep the order of their tracks.
    merged = sorted((event for track in tracks for event in track), key=lambda event: event.tick)
    return _timed(merged, division)


def _header(content: bytes) -> tuple[int, int, list[tuple[bytes, bytes]]]:
    chunks = list(_chunks(content))
    if not chunks or chunks[0][0] != b"MThd" or len(chunks[0][1]) < 6:
        raise RecipeError("it has no MIDI header (MThd)")
    kind, _, division = struct.unpack(">HHH", chunks[0][1][:6])
    if division & 0x7FFF == 0 or (division & 0x8000 and not division & 0xFF):
        raise RecipeError("its header has no unit of time")
    return kind, division, chunks[1:]


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        name, size = struct.unpack_from(">4sI", content, position)
        position += 8
        if position + size > len(content):
            raise RecipeError(f"its chunk {name!r} of {size} bytes ends beyond the file")
        yield name, content[position : position + size]
        position += size


def _track(body: BytesIO) -> Iterator[_Event]:
    tick = status = 0
    while body.tell() < len(body.getbuffer()):
        tick += _number(body)
        first = _bytes(body, 1)[0]
        if first >= 0x80:
            status = first
        elif 0x80 <= status < 0xF0:
            body.seek(-1, 1)
        else:
            raise RecipeError(f"a track has the data byte {first} where an event should begin")
        event = _event(body, tick, status)
        yield event
        if event.meta == _END_OF_TRACK:
            return


def _event(body: BytesIO, tick: int, status: int) -> _Event:
    if status == _META:
        meta = _bytes(body, 1)[0]
        return _Event(tick, status, _bytes(body, _number(body)), meta)
    size = _number(body) if status in _SYSTEM_EXCLUSIVE else _DATA_BYTES.get(status & 0xF0)
    if size is None:
        raise RecipeError(f"a track has an event with status {status:#x}, which no file may have")
    return _Event(tick, status, _bytes(body, size))


def _number(body: BytesIO) -> int:
    """Read a variable-length number: up to four bytes, seven bits in each."""
    number = 0
    for _ in range(4):
        byte = _bytes(body, 1)[0]
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number
    raise RecipeError("a track has a number of more than four bytes")


def _bytes(body: BytesIO, size: int) -> bytes:
    content = body.read(size)
    if len(content) < size:
        raise RecipeError("a track ends in the middle of an event")
    return content


def _timed(events: list[_Event], division: int) -> Song:
    seconds_per_tick = _seconds_per_tick(division, _DEFAULT_TEMPO)
    seconds, tick = 0.0, 0
    timed = []
    for event in events:
        seconds += (event.tick - tick) * seconds_per_tick
        tick = event.tick
        if event.meta == _SET_TEMPO and len(event.data) == 3:
            seconds_per_tick = _seconds_per_tick(division, int.from_bytes(event.data, "big"))
        elif event.status < 0xF0:
            data = tuple(byte & 0x7F for byte in event.data)
            timed.append(ChannelEvent(seconds, event.status & 0xF0, event.status & 0x0F, data))
    return Song(tuple(timed), seconds)


def _seconds_per_tick(division: int, tempo: int) -> float:
    if division & 0x8000:
        # SMPTE: the upper byte is minus the frames per second, the lower one the ticks per frame.
        frames_per_second = 256 - (division >> 8)
        return 1 / (frames_per_second * (division & 0xFF))
    return tempo / 1e6 / division
