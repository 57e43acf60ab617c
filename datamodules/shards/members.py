"""Reads part of one member of an open shard: plain samples in place, FLAC through libsndfile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import torch
from torch import Tensor

from datamodules.audio.joined_file import JoinedFile
from datamodules.audio.opening import AudioFileError, AudioInfo, ForwardFile, decode, from_pcm16, require_finite
from datamodules.shards.encodings import Encoding
from datamodules.workers.crash_markers import reading


@dataclass(frozen=True)
class Member:
    """A piece of music in a shard: `size_bytes` from byte `offset` on."""

    shard: str
    name: str
    offset: int
    size_bytes: int
    encoding: Encoding
    sample_rate: int
    channels: int
    frames: int

    @property
    def path(self) -> Path:
        """For messages; there is no such file."""
        return Path(self.shard) / self.name

    def info(self) -> AudioInfo:
        """Return what a file's header would say."""
        return AudioInfo(self.path, self.sample_rate, self.channels, self.frames)


def read_member(file: IO[bytes], member: Member, start: int, stop: int) -> Tensor:
    """Read frames `start` to `stop` as float32 `[channels of the member, stop - start]`, full scale 1.

    Raises:
        AudioFileError: Damaged, or not what the index says.
    """
    read = _plain if member.encoding.is_plain else _coded
    try:
        content = read(file, member, start, stop)
    except (OSError, soundfile.SoundFileError) as error:
        reason = f"cannot be read ({error}); run the same `spectrostream data prepare` with --verify again"
        raise AudioFileError.of(member.path, reason) from error
    member.info().require_frames(start + content.shape[1], stop)
    audio = torch.from_numpy(content)
    if not member.encoding.bits:  # whole numbers are finite
        require_finite(member.path, audio)
    return audio


def _plain(file: IO[bytes], member: Member, start: int, stop: int) -> np.ndarray:
    """Read these bytes only, and not through a memory map.

    A map costs the same, but a file that is cut short or a disk that fails would end the process with SIGBUS.
    """
    encoding = member.encoding
    frames = np.empty((stop - start, member.channels), encoding.dtype)
    file.seek(member.offset + encoding.header_bytes + start * member.channels * encoding.sample_bytes)
    content = frames.data.cast("B")
    done = 0
    while done < len(content):
        count = file.readinto(content[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    frames = frames[: done // (member.channels * encoding.sample_bytes)]
    return from_pcm16(frames) if encoding.bits else np.ascontiguousarray(frames.T, dtype=np.float32)


def _coded(file: IO[bytes], member: Member, start: int, stop: int) -> np.ndarray:
    content = range(member.offset, member.offset + member.size_bytes)
    with reading(member.path), ForwardFile(JoinedFile(file, [content])) as coded:
        found = (coded.format, coded.samplerate, coded.channels, coded.frames)
        expected = (member.encoding.container, member.sample_rate, member.channels, member.frames)
        if found != expected:
            raise OSError(f"{found} instead of {expected}")
        coded.seek(start)
        return decode(coded, stop - start)
