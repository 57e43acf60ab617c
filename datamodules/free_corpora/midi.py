"""Standard MIDI files of type 0 and 1: what sounds when, and how long it all is.

After "Standard MIDI Files 1.0" (RP-001): chunks of a four-letter name and a length; in a track, times are
variable-length numbers of ticks since the event before, and a status byte that is left out is that of the event before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from datamodules.free_corpora.contract import RecipeError

# Microseconds per quarter note until the file says otherwise.
_DEFAULT_TEMPO = 500_000
_META, _SET_TEMPO, _END_OF_TRACK = 0xFF, 0x51, 0x2F
_SYSTEM_EXCLUSIVE = (0xF0, 0xF7)
# Data bytes of channel messages by the upper half of their status.
_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}


class MidiError(RecipeError):
    """Not a Standard MIDI file of type 0 or 1, or a broken one."""


@dataclass(frozen=True)
class ChannelEvent:
    """A channel message: at so many seconds, its kind (0x80 note off ... 0xE0 pitch bend), its channel and data."""

    seconds: float
    kind: int
    channel: int
    data: tuple[int, ...]


@dataclass(frozen=True)
class Song:
    """Events in the order in which they happen, and the time of the last event or end of a track."""

    events: tuple[ChannelEvent, ...]
    seconds: float


@dataclass(frozen=True)
class _Event:
    tick: int
    status: int
    data: bytes
    meta: int = -1


def read_song(content: bytes) -> Song:
    """The song that a MIDI file holds.

    Raises:
        MidiError: no header, type 2, a length beyond the end, an event that cannot be.
    """
    kind, division, chunks = _header(content)
    if kind not in (0, 1):
        raise MidiError(f"it is a MIDI file of type {kind}, allowed are 0 and 1")
    tracks = [list(_track(body)) for name, body in chunks if name == b"MTrk"]
    if not any(tracks):
        raise MidiError("it has no track with events")
    # Stable: events of one moment stay in their tracks' order.
    merged = sorted((event for track in tracks for event in track), key=lambda event: event.tick)
    return _timed(merged, division)


def _header(content: bytes) -> tuple[int, int, list[tuple[bytes, bytes]]]:
    chunks = list(_chunks(content))
    if not chunks or chunks[0][0] != b"MThd" or len(chunks[0][1]) < 6:
        raise MidiError("it has no MIDI header (MThd)")
    kind, _, division = struct.unpack(">HHH", chunks[0][1][:6])
    if division & 0x7FFF == 0 or (division & 0x8000 and not division & 0xFF):
        raise MidiError("its header has no unit of time")
    return kind, division, chunks[1:]


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        name, size = struct.unpack_from(">4sI", content, position)
        position += 8
        if position + size > len(content):
            raise MidiError(f"its chunk {name!r} of {size} bytes ends beyond the file")
        yield name, content[position : position + size]
        position += size


def _track(body: bytes) -> Iterator[_Event]:
    position = tick = status = 0
    while position < len(body):
        delta, position = _number(body, position)
        tick += delta
        first = _byte(body, position)
        if first >= 0x80:
            position += 1
            status = first
        elif not 0x80 <= status < 0xF0:
            raise MidiError(f"a track has the data byte {first} where an event should begin")
        event, position = _event(body, position, tick, status)
        yield event
        if event.meta == _END_OF_TRACK:
            return


def _event(body: bytes, position: int, tick: int, status: int) -> tuple[_Event, int]:
    if status == _META:
        meta = _byte(body, position)
        size, position = _number(body, position + 1)
        return _Event(tick, status, _bytes(body, position, size), meta), position + size
    if status in _SYSTEM_EXCLUSIVE:
        size, position = _number(body, position)
        return _Event(tick, status, _bytes(body, position, size)), position + size
    size = _DATA_BYTES.get(status & 0xF0, 0)
    if not size:
        raise MidiError(f"a track has an event with status {status:#x}, which no file may have")
    return _Event(tick, status, _bytes(body, position, size)), position + size


def _number(body: bytes, position: int) -> tuple[int, int]:
    """A variable-length number of up to four bytes, seven bits in each, and where it ends."""
    number = 0
    for length in range(1, 5):
        byte = _byte(body, position)
        position += 1
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, position
        if length == 4:
            break
    raise MidiError("a track has a number of more than four bytes")


def _byte(body: bytes, position: int) -> int:
    return _bytes(body, position, 1)[0]


def _bytes(body: bytes, position: int, size: int) -> bytes:
    if position + size > len(body):
        raise MidiError("a track ends in the middle of an event")
    return body[position : position + size]


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
