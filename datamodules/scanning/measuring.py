"""Measure a track in one pass through its file, in bounded memory: the measured columns of a manifest.

Samples are decoded at the file's own rate. Any number of channels is measured, also those that a training refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from datamodules.audio.blocks import AudioReader, summed
from datamodules.audio.files import verify_ends
from datamodules.audio.loudness import BlockEnergies, LoudnessMeter
from datamodules.audio.opening import AudioFileError, AudioInfo
from datamodules.scanning.signal_statistics import AverageSpectrum, ClippedRuns, StereoEnergies

# Samples of all channels together in a block, small enough for a processor's cache.
_BLOCK_SAMPLES = 2**17
# Raise this when the same file gives other numbers: files that an older version measured are then measured again.
VERSION = 2
_SILENCE_DBFS = -60.0
_BANDWIDTH_FLOOR_DB = -90.0
_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Measurement:
    """The columns of `manifest.COLUMNS` that come from the file; None is an empty cell.

    A track of several parts has the values of their sum, and `container` and `subtype` of the first. If only the header
    was read, the columns from `loudness_lufs` on are empty.
    """

    sample_rate: int
    channels: int
    frames: int
    duration_seconds: float
    container: str
    subtype: str
    artist: str = ""
    album: str = ""
    genre: str = ""
    loudness_lufs: float | None = None
    peak_dbfs: float | None = None
    clipped_share: float | None = None
    silent_share: float | None = None
    side_to_mid_db: float | None = None
    bandwidth_hz: float | None = None
    content_hash: str = ""
    measurement_version: int | None = VERSION

    def with_header(self, header: Measurement) -> Measurement:
        """Return this measurement with the columns of a header that was read again."""
        return replace(self, **{name: getattr(header, name) for name in _OF_HEADERS})


_OF_HEADERS = (
    *("sample_rate", "channels", "frames", "duration_seconds", "container", "subtype"),
    *("artist", "album", "genre"),
)


def measure(paths: Sequence[Path]) -> Measurement:
    """Measure one track, the sum of its parts.

    Shorter parts are padded with silence, mono ones are repeated in each channel.

    Raises:
        AudioFileError: A part is unreadable, cut short, empty, of a rate below 4000 Hz, has samples that are NaN,
            infinite or beyond 2**31, or does not fit the first one in rate or channels; the message names the part.
    """
    with _opened(paths) as (whole, blocks):
        meters = _Meters(whole)
        for audio in blocks:
            meters.add(audio)
    return meters.result()


def content_hash(paths: Sequence[Path]) -> str:
    """Compute the `content_hash` of `measure` alone, in less time; raises as `measure` does."""
    with _opened(paths) as (whole, blocks):
        digest = _SampleHash(whole)
        for audio in blocks:
            digest.add(audio)
    return digest.hexdigest()


def measure_header(paths: Sequence[Path]) -> Measurement:
    """Read the headers; decoding the last sample of each part finds most files that were cut short.

    Raises:
        AudioFileError: As `measure` does, for faults that are visible here.
    """
    return _header(_sum_of([verify_ends(path) for path in paths]))


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[tuple[AudioInfo, Iterator[np.ndarray]]]:
    """Open the sum of files; give its header and its blocks `[channels, frames]`."""
    with ExitStack() as stack:
        readers = [stack.enter_context(AudioReader(path, sample_rate=None, channels=None)) for path in paths]
        whole = _sum_of([reader.info for reader in readers])
        blocks = summed(readers, max(_BLOCK_SAMPLES // whole.channels, 1))
        yield whole, (audio.numpy() for audio in blocks)


class _SampleHash:
    """Hash of rate, channels and samples, which come in blocks `[channels, frames]`."""

    def __init__(self, info: AudioInfo) -> None:
        # The same samples are other music at another rate or with other channels.
        self._hash = blake2b(f"{info.sample_rate} {info.channels}\n".encode(), digest_size=_HASH_BYTES)

    def add(self, audio: np.ndarray) -> None:
        # Frame by frame. Adding zero turns -0, which only floating-point files have, into 0.
        self._hash.update(np.add(audio.T, np.float32(0), order="C").astype("<f4", copy=False).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Meters:
    """All measurements of samples, which come in blocks `[channels, frames]`."""

    def __init__(self, info: AudioInfo) -> None:
        self._info = info
        self._loudness = LoudnessMeter(info.sample_rate, info.channels)
        self._blocks = BlockEnergies(info.sample_rate)
        self._spectrum = AverageSpectrum(info.sample_rate, info.channels)
        self._clipping = ClippedRuns(info.channels)
        self._stereo = StereoEnergies() if info.channels == 2 else None
        self._hash = _SampleHash(info)

    def add(self, audio: np.ndarray) -> None:
        self._hash.add(audio)
        self._loudness.add(audio)
        self._blocks.add(np.square(audio, dtype=np.float64).mean(axis=0))
        self._spectrum.add(audio)
        self._clipping.add(audio)
        if self._stereo:
            self._stereo.add(audio)

    def result(self) -> Measurement:
        loudness = self._loudness.integrated()
        peak = self._clipping.peak
        powers = self._blocks.sums() / self._blocks.lengths()
        return replace(
            _header(self._info),
            loudness_lufs=loudness if math.isfinite(loudness) else None,
            peak_dbfs=20 * math.log10(peak) if peak else None,
            clipped_share=self._clipping.share(),
            silent_share=float(np.mean(powers < 10 ** (_SILENCE_DBFS / 10))),
            side_to_mid_db=self._stereo.side_to_mid_db() if self._stereo else None,
            bandwidth_hz=self._spectrum.bandwidth_hz(_BANDWIDTH_FLOOR_DB),
            content_hash=self._hash.hexdigest(),
        )


def _header(info: AudioInfo) -> Measurement:
    return Measurement(**{name: getattr(info, name) for name in _OF_HEADERS})


def _sum_of(infos: Sequence[AudioInfo]) -> AudioInfo:
    """Return the header of the sum; AudioFileError names a part that does not fit."""
    first = infos[0]
    channels = max(info.channels for info in infos)
    for info in infos:
        if info.sample_rate != first.sample_rate or info.channels not in (1, channels):
            raise AudioFileError.of(
                info.path,
                f"has {info.sample_rate} Hz and {info.channels} channels, another part of the same track "
                f"({first.path.name!r}) has {first.sample_rate} Hz and {first.channels}; parts must be alike, or mono",
            )
    frames = max(info.frames for info in infos)
    return replace(first, channels=channels, frames=frames)
