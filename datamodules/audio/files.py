"""Audio in and out of files, whole or in part; `blocks` goes through long ones piece by piece.

Whatever the file holds becomes float32 `[channels, samples]` at the asked rate. Nothing is clipped (decoded Vorbis may
exceed 1), nothing is mixed down, nothing is trimmed: what cannot be given exactly is an `AudioFileError`.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.audio.blocks import AudioWriter
from datamodules.audio.opening import AudioFileError, AudioInfo, audio_info, decode, open_audio, require_samples
from datamodules.audio.seeking import read_frames

__all__ = ["AudioFileError", "AudioInfo", "probe", "read_audio", "verify_ends", "write_audio"]

logger = logging.getLogger(__name__)


def probe(path: str | Path) -> AudioInfo:
    """Read the header of `path`.

    Raises:
        AudioFileError: missing, not audio, empty, or a header which promises more bytes than the file has.
    """
    with open_audio(Path(path)) as file:
        return audio_info(Path(path), file)


def verify_ends(path: str | Path) -> AudioInfo:
    """Like `probe`, and decode the last sample, which shows most files that were cut short.

    Not so in Ogg files, and MP3 files without a number of frames, whose headers name no length: one that was cut short
    is a shorter file.
    """
    path = Path(path)
    with open_audio(path) as file:
        info = audio_info(path, file)
        try:
            # Where exactly a seek lands does not matter here, and Ogg files seek to their end badly.
            file.seek(0 if file.format == "OGG" else info.frames - 1)
            decoded = decode(file, 1).shape[1]
        except soundfile.SoundFileError as error:
            raise info.broken(error) from error
    if not decoded:
        reason = f"is cut short: the last of {info.frames} frames is not there; copy it again"
        raise AudioFileError.of(path, reason)
    return info


def read_audio(
    path: str | Path,
    *,
    sample_rate: int = 48000,
    channels: int = 2,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    silent_after_end: bool = False,
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
        silent_after_end: what is asked beyond the end of the file is silence, else an error.

    Raises:
        AudioFileError: unreadable, cut short, empty, with samples that are NaN, infinite or beyond 2**31, with another
            number of channels than 1 or `channels`, or shorter than the part that is asked.
    """
    path = Path(path)
    with open_audio(path) as file:
        info = audio_info(path, file)
        info.require_channels(channels)
        resampler = info.resampler(sample_rate)
        total = resampler.length(info.frames)
        limit = math.inf if silent_after_end else total
        start, stop = _sample_range(info, total, limit, sample_rate, start_seconds, duration_seconds)
        end = min(stop, total)
        if start >= end:
            return torch.zeros(channels, stop - start)
        source = _read_frames(info, file, *resampler.source_range(start, end, info.frames))
    audio = resampler.resample(source, start, end, info.frames)
    audio = audio.repeat(channels, 1) if info.channels < channels else audio
    return torch.nn.functional.pad(audio, (0, stop - end)) if end < stop else audio


def write_audio(path: str | Path, audio: Tensor, sample_rate: int, subtype: str | None = None) -> int:
    """Write `audio` `[channels, samples]` to an audio file, which appears whole or not at all.

    Args:
        path: its extension chooses the format, see `AudioWriter`.
        audio: full scale is 1. Beyond that an integer subtype clips, which is logged as a warning; FLOAT keeps it.
        sample_rate: in Hz.
        subtype: PCM_16, PCM_24 (default) or, but for .flac, FLOAT.

    Returns:
        The number of clipped samples.

    Raises:
        AudioFileError: an extension or subtype that is not offered, another shape, NaN or infinite samples.
    """
    path = Path(path)
    if audio.ndim != 2 or 0 in audio.shape:
        reason = f"audio to write must have the shape [channels, samples], got {list(audio.shape)}"
        raise AudioFileError.of(path, reason)
    with AudioWriter(path, sample_rate=sample_rate, channels=len(audio), subtype=subtype) as writer:
        writer.write(audio)
        writer.close()
    if writer.clipped:
        share = 100 * writer.clipped / audio.numel()
        logger.warning("%r: %d samples (%.3f %%) beyond full scale were clipped", str(path), writer.clipped, share)
    return writer.clipped


def _sample_range(
    info: AudioInfo, total: int, limit: float, sample_rate: int, start: float, duration: float | None
) -> tuple[int, int]:
    """First and one past the last sample at `sample_rate`, of `total`; AudioFileError beyond `limit`."""
    first = round(start * sample_rate)
    last = total if duration is None else first + round(duration * sample_rate)
    if not 0 <= first < last <= limit:
        raise AudioFileError.of(
            info.path,
            f"is {total} samples long at {sample_rate} Hz ({info.duration_seconds:.3f} s): samples {first} to {last} "
            f"(start_seconds={start}, duration_seconds={duration}) do not lie within it",
        )
    return first, last


def _read_frames(info: AudioInfo, file: soundfile.SoundFile, start: int, stop: int) -> Tensor:
    """Frames `start` to `stop` at the file's own rate, `[channels of the file, stop - start]`."""
    path = info.path
    try:
        frames = read_frames(file, path, start, stop)
    except soundfile.SoundFileError as error:
        raise info.broken(error) from error
    except OSError as error:
        raise AudioFileError.of(path, f"cannot be opened: {error.strerror}") from error
    audio = torch.from_numpy(np.ascontiguousarray(info.completed(frames, start, stop)))
    require_samples(path, audio)
    return audio
