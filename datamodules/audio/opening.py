"""Opening an audio file and judging its header, and the one error for all that is wrong with audio files."""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.audio.mp3_length import Uncounted, open_counted, uncounted
from datamodules.audio.resampling import PartResampler
from spectrostream.errors import UserError

# libsndfile repairs the header of a cut file silently and only notes it in its log:
# "data : 1728000 (should be 1036782)".
_SIZE_MISMATCH = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Encoders that write to a pipe do not know the size and put one of the largest 32-bit numbers there.
_UNKNOWN_SIZE = 0x7FFFF000
# Bytes by which writers differ in what they count as the header.
_SIZE_TOLERANCE = 16
_LONGEST_TAG = 200

LOWEST_RATE = 4000  # Hz; the shelf of the K-weighting lies at 1500 Hz and needs room below half the rate
_HIGHEST_RATE = 768000
# No codec puts more samples of a channel into a byte: FLAC needs about 11 bytes for 65535 constant ones, and MPEG audio
# at its lowest bitrate has 24 in each. What promises more would fill memory that the file has no music for.
_MOST_FRAMES_PER_BYTE = 8192
_MOST_FRAMES_PER_BYTE_OF = {"MP3": 64}
_LONGEST_VORBIS_BLOCK = 8192
# Longer stretches are decoded in blocks: the header may promise what is not there.
_BLOCK_FRAMES = 2**22
# A 32-bit integer written as a float without being scaled. What lies beyond is damage, and its square overflows.
_LARGEST_SAMPLE = 2.0**31

# What a process has found out about files is kept for so many of them: some MB when they are full.
REMEMBERED_FILES = 30_000


class AudioFileError(UserError):
    """An audio file that cannot be used: the message names the file, what is wrong and what is allowed.

    `reason` is the message without the file's name.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason

    @classmethod
    def of(cls, path: Path, reason: str) -> AudioFileError:
        """The error of one file."""
        return cls(f"{str(path)!r}: {reason}", reason)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says; `frames` counts samples of one channel at `sample_rate` in Hz.

    container, subtype: libsndfile's names, for instance WAV and PCM_24.
    artist, album, genre: of the file's tags, "" where there are none.
    """

    path: Path
    sample_rate: int
    channels: int
    frames: int
    container: str = ""
    subtype: str = ""
    artist: str = ""
    album: str = ""
    genre: str = ""

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate

    def require_channels(self, channels: int) -> None:
        """AudioFileError unless the file is mono or has so many channels."""
        if self.channels in (1, channels):
            return
        raise AudioFileError.of(
            self.path,
            f"has {self.channels} channels, allowed are {' or '.join(map(str, sorted({1, channels})))}; "
            f"mix it down first, for instance `ffmpeg -i IN -ac {channels} OUT.flac`",
        )

    def resampler(self, sample_rate: int) -> PartResampler:
        """From the file's rate to another; AudioFileError if the two have too little in common."""
        try:
            return PartResampler(self.sample_rate, sample_rate)
        except ValueError as error:
            remedy = f"convert it first, for instance `ffmpeg -i IN -ar {sample_rate} OUT.flac`"
            raise AudioFileError.of(self.path, f"has an unusual sample rate: {error}; {remedy}") from error

    def completed(self, content: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The frames `[channels, frames]` that were decoded for `start` to `stop`, as many as that.

        Vorbis streams of good encoders end up to a block before what their last page says; the rest is silence. More
        that is missing is an AudioFileError.
        """
        missing = stop - start - content.shape[1]
        if missing <= 0:
            return content
        end = start + content.shape[1]
        if not (self.container == "OGG" and self.frames - end <= _LONGEST_VORBIS_BLOCK):
            self.require_frames(end, stop)
        return np.pad(content, ((0, 0), (0, missing)))

    def require_frames(self, end: int, promised: int) -> None:
        """AudioFileError if the file ends at frame `end`, before the one that was promised."""
        if end < promised:
            reason = f"is cut short: its header promises {self.frames} frames, it ends at {end}; copy it again"
            raise AudioFileError.of(self.path, reason)

    def broken(self, error: soundfile.SoundFileError) -> AudioFileError:
        """What a failure in the middle of the file means."""
        reason = f"is broken or cut short, {libsndfile_reason(error)} Copy it again or remove it"
        return AudioFileError.of(self.path, reason)


class ForwardFile(soundfile.SoundFile):
    """A file for reading that stays where a read has brought it.

    soundfile seeks there once more after each read, for which FLAC decodes up to a block again.
    """

    def seekable(self) -> bool:
        """False, which only says that reads need not seek; `seek` and `tell` work, unless `is_sequential`."""
        return False

    @property
    def is_sequential(self) -> bool:
        """Whether libsndfile reads this encoding only from its start on."""
        return not super().seekable()


class _OwningFile(ForwardFile):
    """A file that closes with it the stream that it was made of."""

    def close(self) -> None:
        super().close()
        self.name.close()


def open_audio(path: Path) -> ForwardFile:
    """The file, open for reading. Raises AudioFileError: missing, no regular file, empty, not audio."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise AudioFileError.of(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe would wait for ever.
        raise AudioFileError.of(path, "is not a regular file")
    if status.st_size == 0:
        raise AudioFileError.of(path, "is empty (0 bytes)")
    try:
        file = ForwardFile(file_name(path))
        return file if file.format != "MP3" else _counted(file, path, status)
    except OSError as error:
        raise AudioFileError.of(path, f"cannot be opened: {error.strerror}") from error
    except (soundfile.SoundFileError, TypeError) as error:
        if not os.access(path, os.R_OK):
            # It may have vanished since it was looked at.
            number = errno.EACCES if path.exists() else errno.ENOENT
            raise AudioFileError.of(path, f"cannot be opened: {os.strerror(number)}") from error
        # Of a file that is called MP3 and is none, libsndfile says that it is not there.
        said = "whatever it is called." if "not a regular file" in str(error) else libsndfile_reason(error)
        reason = f"cannot be read as audio, {said} Allowed is what libsndfile reads: WAV, FLAC, Ogg, MP3, ..."
        raise AudioFileError.of(path, reason) from error


@lru_cache(REMEMBERED_FILES)
def _uncounted(path: Path, size_bytes: int, modified_ns: int) -> Uncounted | None:
    """Found out once for each state of a file."""
    del size_bytes, modified_ns
    return uncounted(path)


def _counted(file: ForwardFile, path: Path, status: os.stat_result) -> ForwardFile:
    """The open MP3 file, or the same one with the length that its header lacks."""
    try:
        found = _uncounted(path, status.st_size, status.st_mtime_ns)
    except OSError:
        file.close()
        raise
    if found is None:
        return file
    file.close()
    return _OwningFile(open_counted(path, found))


def audio_info(path: Path, file: ForwardFile) -> AudioInfo:
    """What an open file says of itself.

    Raises AudioFileError: cut short, no frames, an impossible length or rate, an encoding without seeks.
    """
    tags = (_tag(file, "artist"), _tag(file, "album"), _tag(file, "genre"))
    info = AudioInfo(path, file.samplerate, file.channels, file.frames, file.format, file.subtype, *tags)
    for declared, actual in _SIZE_MISMATCH.findall(file.extra_info):
        if int(actual) + _SIZE_TOLERANCE < int(declared) < _UNKNOWN_SIZE:
            reason = f"is cut short: its header promises {declared} bytes, it has {actual}; copy it again"
            raise AudioFileError.of(path, reason)
    if file.is_sequential:
        remedy = "convert it, for instance `ffmpeg -i IN OUT.flac`"
        reason = f"is coded as {info.subtype}, of which no part can be read by itself; {remedy}"
        raise AudioFileError.of(path, reason)
    if info.frames <= 0:
        raise AudioFileError.of(path, "holds no audio (0 frames)")
    if not LOWEST_RATE <= info.sample_rate <= _HIGHEST_RATE:
        allowed = f"allowed are {LOWEST_RATE} Hz and more, up to {_HIGHEST_RATE} Hz"
        raise AudioFileError.of(path, f"has a sample rate of {info.sample_rate} Hz; {allowed}")
    _require_room_for(info)
    return info


def _require_room_for(info: AudioInfo) -> None:
    """AudioFileError where the file is too small for the frames that it promises."""
    try:
        size = info.path.stat().st_size
    except OSError as error:
        raise AudioFileError.of(info.path, f"cannot be opened: {error.strerror}") from error
    if info.frames > size * _MOST_FRAMES_PER_BYTE_OF.get(info.container, _MOST_FRAMES_PER_BYTE):
        reason = f"is broken: its header promises {info.frames} frames, which {size} bytes cannot hold; copy it again"
        raise AudioFileError.of(info.path, reason)


def _tag(file: soundfile.SoundFile, name: str) -> str:
    # Whatever bytes a tag holds, it becomes one line of a table.
    return " ".join(getattr(file, name).split())[:_LONGEST_TAG].replace("\0", "")


def decode(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    """The next frames of an open file, float32 `[channels, frames]`; fewer where it ends. Raises SoundFileError.

    Memory grows with what the file has, whatever its header promises.
    """
    blocks = [np.empty((file.channels, 0), np.float32)]
    while frames > 0:
        # In a damaged MP3 file the position may lie beyond the end.
        wanted = min(frames, _BLOCK_FRAMES, file.frames - file.tell())
        if wanted <= 0:
            break
        blocks.append(_block(file, wanted))
        if blocks[-1].shape[1] < wanted:
            break
        frames -= wanted
    return blocks[-1] if len(blocks) <= 2 else np.concatenate(blocks, axis=1)


def _block(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    if file.subtype != "PCM_16":
        return np.ascontiguousarray(file.read(frames, dtype="float32", always_2d=True).T)
    # The same numbers in less than half the time: libsndfile makes floats one by one.
    return from_pcm16(file.read(frames, dtype="int16", always_2d=True))


def from_pcm16(integers: np.ndarray) -> np.ndarray:
    """Integers `[frames, channels]` as float32 `[channels, frames]`, full scale 1."""
    samples = np.empty(integers.shape[::-1], np.float32)
    return np.multiply(integers.T, np.float32(2**-15), out=samples)


def require_samples(path: Path, audio: Tensor) -> None:
    """AudioFileError for NaN or infinite samples, and for such as no recording has."""
    if not audio.numel():
        return
    lowest, highest = (float(value) for value in audio.aminmax())
    if lowest >= -_LARGEST_SAMPLE and highest <= _LARGEST_SAMPLE:
        return
    require_finite(path, audio)
    largest = max(-lowest, highest)
    reason = f"has samples as large as {largest:.3g}, full scale is 1; it is damaged, or of another kind than it says"
    raise AudioFileError.of(path, reason)


def require_finite(path: Path, audio: Tensor) -> None:
    """AudioFileError for NaN or infinite samples."""
    # The sum of finite numbers is finite, unless they are so large that each must be looked at.
    if math.isfinite(audio.sum()):
        return
    bad = audio.numel() - int(torch.isfinite(audio).sum())
    if bad:
        reason = f"has {bad} NaN or infinite samples among {audio.numel()}; allowed are finite numbers only"
        raise AudioFileError.of(path, reason)


def file_name(path: Path) -> str | bytes:
    """The name as libsndfile wants it."""
    # Bytes, because a name on a POSIX disk need not be valid UTF-8; Windows wants text.
    return os.fsencode(path) if os.name == "posix" else str(path)


def libsndfile_reason(error: Exception) -> str:
    """What libsndfile has to say."""
    return f"libsndfile says: {getattr(error, 'error_string', str(error)).removeprefix('Error : ')}"
