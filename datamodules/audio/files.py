"""Reads audio files, whole or in part; `blocks` reads and writes long ones block by block.

Every file becomes float32 `[channels, samples]` at the given rate. Nothing is clipped (decoded Vorbis may exceed 1),
mixed down or trimmed. If that is not possible exactly, it is an `AudioFileError`.
"""

from __future__ import annotations

import math
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from datamodules.audio.blocks import AudioReader
from datamodules.audio.opening import AudioFileError, AudioInfo, audio_info, decode, open_audio

__all__ = ["AudioFileError", "AudioInfo", "probe", "read_audio", "verify_ends"]


def probe(path: str | Path) -> AudioInfo:
    """Read the header of `path`.

    Raises:
        AudioFileError: Missing, not audio, empty, or a header which promises more bytes than the file has.
    """
    with open_audio(Path(path)) as file:
        return audio_info(Path(path), file)


def verify_ends(path: str | Path) -> AudioInfo:
    """Like `probe`, and decode the last sample, which shows most files that were cut short.

    It does not show cut Ogg files, and cut MP3 files without a number of frames: their headers have no length, so they
    are shorter files.
    """
    path = Path(path)
    with open_audio(path) as file:
        info = audio_info(path, file)
        try:
            # The exact place of the seek does not matter here. libsndfile seeks badly to the end of Ogg files.
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

    A part equals the same part of the whole file, because the frames around it that the resampler needs are read too.
    Start and length are rounded to samples of `sample_rate`. Mono is repeated in each channel.

    Args:
        path: Any format that libsndfile reads.
        sample_rate: Of the result, in Hz.
        channels: Of the result.
        start_seconds: Where to begin, from the start of the file.
        duration_seconds: How much; None reads to the end.
        silent_after_end: If True, what is beyond the end of the file is silence, else an error.

    Raises:
        AudioFileError: Unreadable, cut short, empty, with samples that are NaN, infinite or beyond 2**31, with another
            number of channels than 1 or `channels`, or shorter than the part.
    """
    with AudioReader(path, sample_rate=sample_rate, channels=channels) as reader:
        total = reader.samples
        start = round(start_seconds * sample_rate)
        stop = total if duration_seconds is None else start + round(duration_seconds * sample_rate)
        if not 0 <= start < stop <= (math.inf if silent_after_end else total):
            raise AudioFileError.of(
                reader.info.path,
                f"is {total} samples long at {sample_rate} Hz ({reader.info.duration_seconds:.3f} s): samples {start} "
                f"to {stop} ({start_seconds=}, {duration_seconds=}) do not lie within it",
            )
        end = min(stop, total)
        audio = reader.part(start, end) if start < end else torch.zeros(channels, 0)
    return torch.nn.functional.pad(audio, (0, stop - max(start, end))) if end < stop else audio.contiguous()
