"""Reads parts of compressed files so that they equal the same parts of the whole file.

libsndfile 1.2.2 seeks to a wrong position in an Ogg stream that was cut out of a longer one without re-encoding. Beyond
the first pages, the error is thousands of samples (see also libsndfile issue 885). No header shows this. So each
compressed file is tested once per process: three places are read after a seek and compared.

A decoder must also decode some frames before the first one that is needed. In MP3 their number depends on the place,
and three places do not show the largest number. So it is calculated for the worst place.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from datamodules.audio.mp3_length import samples_to_decode_before
from datamodules.audio.opening import REMEMBERED_FILES, decode, open_audio

_COMPRESSED = ("OGG", "MP3")
# Where to compare, in seconds. An Ogg page holds up to 64 kB, so before 10 s the place could be on the first pages.
_PLACES_SECONDS = (10.0, 11.5, 13.0)
_COMPARED_FRAMES = 4096
_TOLERANCE = 1e-5
# Frames to decode before the first one that is needed in an Ogg file; most files need none.
_OGG_LEAD_INS = (0, 8192)
_BLOCK_FRAMES = 2**16


def read_frames(file: soundfile.SoundFile, path: Path, start: int, stop: int) -> np.ndarray:
    """Read frames `start` to `stop`, float32 `[channels, frames]`, as if decoded from the start; fewer at the end.

    Args:
        file: Open; nothing was read yet.
        path: Of the file.
        start: First frame.
        stop: One past the last frame.

    Raises:
        OSError, SoundFileError, AudioFileError: The file has vanished or is damaged.
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
    """Return the first lead-in that is enough, tested once for each state of a file; None if none is.

    It is also None if the test is not possible: the file is too short, silent at these places, or cannot seek.
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
