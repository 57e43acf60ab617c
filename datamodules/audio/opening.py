"""Opens audio files and checks their headers; the one error for everything that is wrong with audio files."""

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

LOWEST_RATE = 4000  # Hz; the shelf of the K-weighting is at 1500 Hz, which must be well below half the rate
_HIGHEST_RATE = 768000
# No codec stores more samples of a channel in a byte: FLAC needs about 11 bytes for 65535 constant ones, and MPEG audio
# at its lowest bitrate has 24 in a byte. A header with a higher number is wrong and would fill the memory.
_MOST_FRAMES_PER_BYTE = 8192
_MOST_FRAMES_PER_BYTE_OF = {"MP3": 64}
_LONGEST_VORBIS_BLOCK = 8192
# Longer parts are decoded in blocks, because the header may be wrong.
_BLOCK_FRAMES = 2**22
# A 32-bit integer that was written as a float without scaling. Larger samples are damage, and their squares overflow.
_LARGEST_SAMPLE = 2.0**31

# A process remembers facts about this many files, some MB.
REMEMBERED_FILES = 30_000


class AudioFileError(UserError):
    """An audio file that cannot be used. The message names the file, what is wrong and what is allowed.

    Attributes:
        reason: The message without the file's name.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason

    @classmethod
    def of(cls, path: Path, reason: str) -> AudioFileError:
        """Return the error of one file."""
        return cls(f"{str(path)!r}: {reason}", reason)


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        path: The file.
        sample_rate: In Hz.
        channels: Number of channels.
        frames: Samples of one channel.
        container: libsndfile's name, for instance WAV.
        subtype: libsndfile's name, for instance PCM_24.
        artist: From the file's tags; "" if it has none. The same for `album` and `genre`.
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
        """Raise AudioFileError unless the file is mono or has this number of channels."""
        if self.channels in (1, channels):
            return
        raise AudioFileError.of(
            self.path,
            f"has {self.channels} channels, allowed are {' or '.join(map(str, sorted({1, channels})))}; "
            f"mix it down first, for instance `ffmpeg -i IN -ac {channels} OUT.flac`",
        )

    def resampler(self, sample_rate: int) -> PartResampler:
        """Return a resampler from the file's rate; AudioFileError if the rates share too small a divisor."""
        try:
            return PartResampler(self.sample_rate, sample_rate)
        except ValueError as error:
            remedy = f"convert it first, for instance `ffmpeg -i IN -ar {sample_rate} OUT.flac`"
            raise AudioFileError.of(self.path, f"has an unusual sample rate: {error}; {remedy}") from error

    def completed(self, content: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Complete the frames `[channels, frames]` that were decoded for `start` to `stop`.

        Vorbis streams of good encoders can end up to a block before the length in their last page; the rest is silence.

        Raises:
            AudioFileError: More frames are missing.
        """
        missing = stop - start - content.shape[1]
        if missing <= 0:
            return content
        end = start + content.shape[1]
        if not (self.container == "OGG" and self.frames - end <= _LONGEST_VORBIS_BLOCK):
            self.require_frames(end, stop)
        return np.pad(content, ((0, 0), (0, missing)))

    def require_frames(self, end: int, promised: int) -> None:
        """Raise AudioFileError if the file ends at frame `end`, before frame `promised`."""
        if end < promised:
            reason = f"is cut short: its header promises {self.frames} frames, it ends at {end}; copy it again"
            raise AudioFileError.of(self.path, reason)

    def broken(self, error: soundfile.SoundFileError) -> AudioFileError:
        """Return the error for a failure in the middle of the file."""
        reason = f"is broken or cut short, {libsndfile_reason(error)} Copy it again or remove it"
        return AudioFileError.of(self.path, reason)


class ForwardFile(soundfile.SoundFile):
    """A file for reading that does not seek after a read.

    soundfile seeks to the current position after each read, and FLAC then decodes up to a block again.
    """

    def seekable(self) -> bool:
        """Return False, so that reads do not seek; `seek` and `tell` work, unless `is_sequential`."""
        return False

    @property
    def is_sequential(self) -> bool:
        """Whether libsndfile can read this encoding only from its start."""
        return not super().seekable()


class _OwningFile(ForwardFile):
    """A file that also closes the stream that it reads from."""

    def close(self) -> None:
        super().close()
        self.name.close()


def open_audio(path: Path) -> ForwardFile:
    """Open a file for reading.

    Raises:
        AudioFileError: Missing, no regular file, empty, or not audio.
    """
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
            # It may have vanished in the meantime.
            number = errno.EACCES if path.exists() else errno.ENOENT
            raise AudioFileError.of(path, f"cannot be opened: {os.strerror(number)}") from error
        # If a file is named MP3 but is something else, libsndfile says that it does not exist.
        said = "whatever it is called." if "not a regular file" in str(error) else libsndfile_reason(error)
        reason = f"cannot be read as audio, {said} Allowed is what libsndfile reads: WAV, FLAC, Ogg, MP3, ..."
        raise AudioFileError.of(path, reason) from error


@lru_cache(REMEMBERED_FILES)
def _uncounted(path: Path, size_bytes: int, modified_ns: int) -> Uncounted | None:
    """Call `uncounted` once for each state of a file."""
    del size_bytes, modified_ns
    return uncounted(path)


def _counted(file: ForwardFile, path: Path, status: os.stat_result) -> ForwardFile:
    """Return the open MP3 file, with the length that its header may lack."""
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
    """Return what the header of an open file says.

    Raises:
        AudioFileError: Cut short, no frames, an impossible length or rate, or an encoding without seeks.
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
    """Raise AudioFileError if the file is too small for the frames in its header."""
    try:
        size = info.path.stat().st_size
    except OSError as error:
        raise AudioFileError.of(info.path, f"cannot be opened: {error.strerror}") from error
    if info.frames > size * _MOST_FRAMES_PER_BYTE_OF.get(info.container, _MOST_FRAMES_PER_BYTE):
        reason = f"is broken: its header promises {info.frames} frames, which {size} bytes cannot hold; copy it again"
        raise AudioFileError.of(info.path, reason)


def _tag(file: soundfile.SoundFile, name: str) -> str:
    # A tag may hold any bytes; here it becomes one line of a table.
    return " ".join(getattr(file, name).split())[:_LONGEST_TAG].replace("\0", "")


def decode(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    """Decode the next frames of an open file, float32 `[channels, frames]`, fewer at its end.

    Memory grows with the frames in the file, not with the number in its header.

    Raises:
        SoundFileError: The file is damaged.
    """
    blocks = [np.empty((file.channels, 0), np.float32)]
    while frames > 0:
        # In a damaged MP3 file the position may be beyond the end.
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
    # The same numbers in less than half the time, because libsndfile converts floats one by one.
    return from_pcm16(file.read(frames, dtype="int16", always_2d=True))


def from_pcm16(integers: np.ndarray) -> np.ndarray:
    """Convert integers `[frames, channels]` to float32 `[channels, frames]`, full scale 1."""
    samples = np.empty(integers.shape[::-1], np.float32)
    return np.multiply(integers.T, np.float32(2**-15), out=samples)


def require_samples(path: Path, audio: Tensor) -> None:
    """Raise AudioFileError for samples that are NaN, infinite or too large for any recording."""
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
    """Raise AudioFileError for NaN or infinite samples."""
    # The sum of finite numbers is finite, unless it overflows; then each number is checked.
    if math.isfinite(audio.sum()):
        return
    bad = audio.numel() - int(torch.isfinite(audio).sum())
    if bad:
        reason = f"has {bad} NaN or infinite samples among {audio.numel()}; allowed are finite numbers only"
        raise AudioFileError.of(path, reason)


def file_name(path: Path) -> str | bytes:
    """Return the name in the form that libsndfile takes."""
    # Bytes, because a POSIX name need not be valid UTF-8; Windows takes text.
    return os.fsencode(path) if os.name == "posix" else str(path)


def libsndfile_reason(error: Exception) -> str:
    """Return libsndfile's own message."""
    return f"libsndfile says: {getattr(error, 'error_string', str(error)).removeprefix('Error : ')}"
