"""Whether a compressed file gives the same samples after a seek as when it is read from its start.

libsndfile 1.2.2 misplaces the position in an Ogg stream that was cut out of a longer one without re-encoding: after a
seek, everything beyond the first pages lies thousands of samples off (see also libsndfile issue 885). No header shows
it, so each compressed file is put to the test once per process: three places are read after a seek and compared.

What a decoder must have seen before a place so that it is settled there is another matter. In MP3 it depends on the
place, and three of them show nothing: it is calculated for the worst one.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from datamodules.audio.mp3_length import samples_to_decode_before
from datamodules.audio.opening import REMEMBERED_FILES, decode, open_audio

_COMPRESSED = ("OGG", "MP3")
# Where to compare, in seconds. An Ogg page holds up to 64 kB: below 10 s the test could lie within the first pages.
_PLACES_SECONDS = (10.0, 11.5, 13.0)
_COMPARED_FRAMES = 4096
_TOLERANCE = 1e-5
# Source frames decoded before the wanted ones, so that a decoder of Ogg has settled after a seek: most need none.
_OGG_LEAD_INS = (0, 8192)
_BLOCK_FRAMES = 2**16


def read_frames(file: soundfile.SoundFile, path: Path, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop` as decoded from the start, float32 `[channels, frames]`; fewer where the file ends.

    Args:
        file: open, nothing read yet.
        path: of the file.
        start: first frame.
        stop: one past the last.

    Raises:
        OSError, SoundFileError, AudioFileError: the file has vanished or is damaged.
    """
    if file.format not in _COMPRESSED:
        return _read_after_seek(file, start, stop, 0)
    lead_ins = _OGG_LEAD_INS if file.format == "OGG" else (samples_to_decode_before(file.samplerate, file.channels),)
    if start <= max(lead_ins):
        return _read_from_start(file, start, stop)
    status = path.stat()
    lead_in = _lead_in_needed(path, status.st_size, status.st_mtime_ns, lead_ins)
    if lead_in is None:
        return _read_from_start(file, start, stop)
    return _read_after_seek(file, start, stop, lead_in)


def _read_after_seek(file: soundfile.SoundFile, start: int, stop: int, lead_in: int) -> np.ndarray:
    file.seek(start - lead_in)
    return decode(file, lead_in + stop - start)[:, lead_in:]


def _read_from_start(file: soundfile.SoundFile, start: int, stop: int) -> np.ndarray:
    for skipped in range(0, start, _BLOCK_FRAMES):
        decode(file, min(_BLOCK_FRAMES, start - skipped))
    return decode(file, stop - start)


@lru_cache(REMEMBERED_FILES)
def _lead_in_needed(path: Path, size_bytes: int, modified_ns: int, lead_ins: tuple[int, ...]) -> int | None:
    """The first that is enough, found out once for each state of a file; None where none is.

    None also where it cannot be shown: in a file that is too short, silent at these places, or refuses to seek.
    """
    del size_bytes, modified_ns
    with open_audio(path) as file:
        places = [round(seconds * file.samplerate) for seconds in _PLACES_SECONDS]
        beginning = decode(file, places[-1] + _COMPARED_FRAMES)
    expected = [beginning[:, place : place + _COMPARED_FRAMES] for place in places]
    if any(part.shape[1] < _COMPARED_FRAMES or np.abs(part).max() <= 2 * _TOLERANCE for part in expected):
        return None
    for lead_in in lead_ins:
        if all(_equals(path, place, part, lead_in) for place, part in zip(places, expected, strict=True)):
            return lead_in
    return None


def _equals(path: Path, place: int, expected: np.ndarray, lead_in: int) -> bool:
    try:
        with open_audio(path) as file:
            found = _read_after_seek(file, place, place + _COMPARED_FRAMES, lead_in)
    except soundfile.SoundFileError:
        return False
    return found.shape == expected.shape and np.abs(found - expected).max() <= _TOLERANCE
