"""Whether a compressed file gives the same samples after a seek as when it is read from its start.

libsndfile 1.2.2 misplaces the position in an Ogg stream that was cut out of a longer one without re-encoding: after a
seek, everything beyond the first pages lies thousands of samples off (see also libsndfile issue 885). No header shows
it, so each compressed file is put to the test once per process: three places are read after a seek and compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soundfile

_COMPRESSED = ("OGG", "MP3")
# Where to compare, in seconds. An Ogg page holds up to 64 kB: below 10 s the test could lie within the first pages.
_PLACES_SECONDS = (10.0, 11.5, 13.0)
_COMPARED_FRAMES = 4096
_TOLERANCE = 1e-5
# Source frames decoded before the wanted ones, so that a lossy decoder has settled after a seek.
_LEAD_IN_FRAMES = 8192
_BLOCK_FRAMES = 2**16

# Per process; a file that changes gets a new verdict.
_verdicts: dict[tuple[str, int, int], bool] = {}


def read_frames(
    open_file: Callable[[], soundfile.SoundFile], identity: tuple[str, int, int], start: int, stop: int
) -> np.ndarray:
    """Frames `start` to `stop` as decoded from the start, float32 `[frames, channels]`; fewer where the file ends.

    Args:
        open_file: opens the file anew.
        identity: name, size and time of the file, under which the verdict is remembered.
        start: first frame.
        stop: one past the last.
    """
    with open_file() as file:
        if start <= _LEAD_IN_FRAMES or file.format not in _COMPRESSED:
            return _read_after_seek(file, start, stop)
    if identity not in _verdicts:
        _verdicts[identity] = _seeks_exactly(open_file)
    with open_file() as file:
        return _read_after_seek(file, start, stop) if _verdicts[identity] else _read_from_start(file, start, stop)


def _read_after_seek(file: soundfile.SoundFile, start: int, stop: int) -> np.ndarray:
    if file.format not in _COMPRESSED:
        file.seek(start)
        return file.read(stop - start, dtype="float32", always_2d=True)
    lead_in = min(start, _LEAD_IN_FRAMES)
    if start > lead_in:
        file.seek(start - lead_in)
    return file.read(lead_in + stop - start, dtype="float32", always_2d=True)[lead_in:]


def _read_from_start(file: soundfile.SoundFile, start: int, stop: int) -> np.ndarray:
    for skipped in range(0, start, _BLOCK_FRAMES):
        file.read(min(_BLOCK_FRAMES, start - skipped), dtype="float32")
    return file.read(stop - start, dtype="float32", always_2d=True)


def _seeks_exactly(open_file: Callable[[], soundfile.SoundFile]) -> bool:
    """False also where it cannot be shown: in a file that is too short, silent at these places, or refuses to seek."""
    with open_file() as file:
        places = [round(seconds * file.samplerate) for seconds in _PLACES_SECONDS]
        beginning = file.read(places[-1] + _COMPARED_FRAMES, dtype="float32", always_2d=True)
    for place in places:
        expected = beginning[place : place + _COMPARED_FRAMES]
        if len(expected) < _COMPARED_FRAMES or np.abs(expected).max() <= 2 * _TOLERANCE:
            return False
        try:
            with open_file() as file:
                found = _read_after_seek(file, place, place + _COMPARED_FRAMES)
        except soundfile.SoundFileError:
            return False
        if found.shape != expected.shape or np.abs(found - expected).max() > _TOLERANCE:
            return False
    return True
