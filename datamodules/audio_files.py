"""Audio in and out of files: the one place of this room that reads or writes audio.

Whatever the file holds becomes float32 `[channels, samples]` at the asked rate. Nothing is clipped (decoded Vorbis may
exceed 1), nothing is mixed down, nothing is trimmed: what cannot be given exactly is an `AudioFileError`.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.resampling import PartResampler
from datamodules.seeking import read_frames
from spectrostream.errors import UserError

logger = logging.getLogger(__name__)

# libsndfile repairs the header of a cut file silently and only notes it in its log:
# "data : 1728000 (should be 1036782)".
_SIZE_MISMATCH = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Encoders that write to a pipe do not know the size and put one of the largest 32-bit numbers there.
_UNKNOWN_SIZE = 0x7FFFF000
# Bytes by which writers differ in what they count as the header.
_SIZE_TOLERANCE = 16

_WRITABLE = {".wav": ("WAV", ("PCM_16", "PCM_24", "FLOAT")), ".flac": ("FLAC", ("PCM_16", "PCM_24"))}


class AudioFileError(UserError):
    """An audio file that cannot be used: the message names the file, what is wrong and what is allowed.

    `reason` is the message without the file's name.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says; `frames` counts samples of one channel at `sample_rate` in Hz."""

    path: Path
    sample_rate: int
    channels: int
    frames: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.sample_rate


def probe(path: str | Path) -> AudioInfo:
    """Read the header of `path`.

    Raises:
        AudioFileError: missing, not audio, empty, or a header which promises more bytes than the file has.
    """
    with _open(Path(path)) as file:
        return _info(Path(path), file)


def verify_ends(path: str | Path) -> AudioInfo:
    """Like `probe`, and decode the last sample, which shows most files that were cut short.

    Not so in Ogg files, whose header names no length: one that was cut short is a shorter file.
    """
    path = Path(path)
    with _open(path) as file:
        info = _info(path, file)
        try:
            # Where exactly a seek lands does not matter here, and Ogg files seek to their end badly.
            file.seek(0 if file.format == "OGG" else info.frames - 1)
            decoded = len(file.read(1, dtype="float32"))
        except soundfile.SoundFileError as error:
            raise _broken(info, error) from error
    if not decoded:
        raise _error(info.path, f"is cut short: the last of {info.frames} frames is not there; copy it again")
    return info


def read_audio(
    path: str | Path,
    *,
    sample_rate: int = 48000,
    channels: int = 2,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
) -> Tensor:
    """Read a file, or a part of it, as float32 `[channels, samples]` at `sample_rate` Hz, full scale 1, not clipped.

    A part equals the same part of the whole file: around it as many frames are read as the resampler looks at. Start
    and length are rounded to samples of `sample_rate`. Mono is repeated in each channel.

    Args:
        path: any format that libsndfile reads.
        sample_rate: of the result, in Hz.
        channels: of the result.
        start_seconds: where to begin, from the start of the file.
        duration_seconds: how much; None reads to the end.

    Raises:
        AudioFileError: unreadable, cut short, empty, with NaN or infinite samples, with another number of channels than
            1 or `channels`, or shorter than the part that is asked.
    """
    path = Path(path)
    with _open(path) as file:
        info = _info(path, file)
        if info.channels not in (1, channels):
            raise _error(
                path,
                f"has {info.channels} channels, allowed are {' or '.join(map(str, sorted({1, channels})))}; "
                f"mix it down first, for instance `ffmpeg -i IN -ac {channels} OUT.flac`",
            )
        resampler = _resampler(info, sample_rate)
        total = resampler.length(info.frames)
        start, stop = _sample_range(info, total, sample_rate, start_seconds, duration_seconds)
    source = _read_frames(info, *resampler.source_range(start, stop, info.frames))
    audio = resampler.resample(source, start, stop, info.frames)
    return audio.repeat(channels, 1) if info.channels < channels else audio


def write_audio(path: str | Path, audio: Tensor, sample_rate: int, subtype: str | None = None) -> int:
    """Write `audio` `[channels, samples]` to a .wav or .flac file, which appears whole or not at all.

    Args:
        path: its extension chooses the format.
        audio: full scale is 1. Beyond that an integer subtype clips, which is logged as a warning; FLOAT keeps it.
        sample_rate: in Hz.
        subtype: PCM_16, PCM_24 (default) or, in a .wav file, FLOAT.

    Returns:
        The number of clipped samples.

    Raises:
        AudioFileError: an extension or subtype that is not offered, another shape, NaN or infinite samples.
    """
    path = Path(path)
    subtype = subtype or "PCM_24"
    container = _container(path, subtype)
    if audio.ndim != 2 or 0 in audio.shape:
        raise _error(path, f"audio to write must have the shape [channels, samples], got {list(audio.shape)}")
    samples = audio.detach().to("cpu", torch.float32)
    _require_finite(path, samples)
    clipped = 0
    if subtype != "FLOAT":
        clipped = int((samples.abs() > 1).sum())
        samples = samples.clamp(-1, 1)
    if clipped:
        share = 100 * clipped / samples.numel()
        logger.warning("%r: %d samples (%.3f %%) beyond full scale were clipped", str(path), clipped, share)
    _replace_file(path, samples.T.numpy(), sample_rate, container, subtype)
    return clipped


def _container(path: Path, subtype: str) -> str:
    container, subtypes = _WRITABLE.get(path.suffix.lower(), (None, ()))
    if container is None:
        raise _error(path, f"cannot write the extension {path.suffix!r}, allowed are {', '.join(_WRITABLE)}")
    if subtype not in subtypes:
        raise _error(path, f"cannot write the subtype {subtype!r} to {container}, allowed are {', '.join(subtypes)}")
    return container


def _replace_file(path: Path, frames: np.ndarray, sample_rate: int, container: str, subtype: str) -> None:
    # Beside the target, so that the rename stays inside one filesystem.
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        soundfile.write(_file_name(partial), frames, sample_rate, format=container, subtype=subtype)
        partial.replace(path)
    except soundfile.SoundFileError as error:
        raise _error(path, f"cannot be written: {_libsndfile_reason(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


def _error(path: Path, reason: str) -> AudioFileError:
    return AudioFileError(f"{str(path)!r}: {reason}", reason)


def _file_name(path: Path) -> str | bytes:
    # Bytes, because a name on a POSIX disk need not be valid UTF-8; Windows wants text.
    return os.fsencode(path) if os.name == "posix" else str(path)


def _libsndfile_reason(error: Exception) -> str:
    return f"libsndfile says: {getattr(error, 'error_string', str(error)).removeprefix('Error : ')}"


def _open(path: Path) -> soundfile.SoundFile:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _error(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        # Opening a named pipe would wait for ever.
        raise _error(path, "is not a regular file")
    if status.st_size == 0:
        raise _error(path, "is empty (0 bytes)")
    try:
        return soundfile.SoundFile(_file_name(path))
    except (soundfile.SoundFileError, TypeError) as error:
        allowed = "Allowed is what libsndfile reads: WAV, FLAC, Ogg, MP3, ..."
        reason = f"cannot be read as audio, {_libsndfile_reason(error)} {allowed}"
        raise _error(path, reason) from error


def _info(path: Path, file: soundfile.SoundFile) -> AudioInfo:
    info = AudioInfo(path, int(file.samplerate), int(file.channels), int(file.frames))
    for declared, actual in _SIZE_MISMATCH.findall(file.extra_info):
        if int(actual) + _SIZE_TOLERANCE < int(declared) < _UNKNOWN_SIZE:
            raise _error(path, f"is cut short: its header promises {declared} bytes, it has {actual}; copy it again")
    if info.frames <= 0:
        raise _error(path, "holds no audio (0 frames)")
    return info


def _broken(info: AudioInfo, error: soundfile.SoundFileError) -> AudioFileError:
    return _error(info.path, f"is broken or cut short, {_libsndfile_reason(error)} Copy it again or remove it")


def _resampler(info: AudioInfo, sample_rate: int) -> PartResampler:
    try:
        return PartResampler(info.sample_rate, sample_rate)
    except ValueError as error:
        remedy = f"convert it first, for instance `ffmpeg -i IN -ar {sample_rate} OUT.flac`"
        raise _error(info.path, f"has an unusual sample rate: {error}; {remedy}") from error


def _sample_range(
    info: AudioInfo, total: int, sample_rate: int, start: float, duration: float | None
) -> tuple[int, int]:
    """First and one past the last sample at `sample_rate`, of `total`."""
    first = round(start * sample_rate)
    last = total if duration is None else first + round(duration * sample_rate)
    if not 0 <= first < last <= total:
        raise _error(
            info.path,
            f"is {total} samples long at {sample_rate} Hz ({info.duration_seconds:.3f} s): samples {first} to {last} "
            f"(start_seconds={start}, duration_seconds={duration}) do not lie within it",
        )
    return first, last


def _read_frames(info: AudioInfo, start: int, stop: int) -> Tensor:
    """Frames `start` to `stop` at the file's own rate, `[channels of the file, stop - start]`."""
    path = info.path
    try:
        status = path.stat()
        identity = (str(path), status.st_size, status.st_mtime_ns)
        frames = read_frames(lambda: _open(path), identity, start, stop)
    except soundfile.SoundFileError as error:
        raise _broken(info, error) from error
    except OSError as error:
        raise _error(path, f"cannot be opened: {error.strerror}") from error
    if len(frames) < stop - start:
        reason = (
            f"is cut short: its header promises {info.frames} frames, it ends at {start + len(frames)}; copy it again"
        )
        raise _error(info.path, reason)
    audio = torch.from_numpy(np.ascontiguousarray(frames.T))
    _require_finite(info.path, audio)
    return audio


def _require_finite(path: Path, audio: Tensor) -> None:
    bad = audio.numel() - int(torch.isfinite(audio).sum())
    if bad:
        raise _error(path, f"has {bad} NaN or infinite samples among {audio.numel()}; allowed are finite numbers only")
