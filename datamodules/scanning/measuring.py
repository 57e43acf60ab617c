"""What is measured of a track in one pass through its file, in bounded memory: the measured columns of a manifest.

Samples are decoded at the file's own rate and never resampled. Any number of channels is measured, also those that a
training refuses later.
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

# Samples of all channels together that are held at once: small enough for a processor's cache.
_PIECE_SAMPLES = 2**17
# Changes whenever the same file would give other numbers: what an older version measured is then measured again.
VERSION = 2
_SILENCE_DBFS = -60.0
_BANDWIDTH_FLOOR_DB = -90.0
_HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class Measurement:
    """The columns of `manifest.COLUMNS` that a file tells, which says what each is; None is an empty cell.

    A track of several parts has their sum's values, and `container` and `subtype` of the first. All from
    `loudness_lufs` on is empty where only the header was read.
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
        """The same measurement of the same file, whose header was read again since."""
        return replace(self, **{name: getattr(header, name) for name in _OF_HEADERS})


_OF_HEADERS = (
    *("sample_rate", "channels", "frames", "duration_seconds", "container", "subtype"),
    *("artist", "album", "genre"),
)


def measure(paths: Sequence[Path]) -> Measurement:
    """Measures one track, which is the sum of its parts.

    Shorter parts are summed as if silence followed, mono ones are repeated in each channel.

    Raises:
        AudioFileError: a part is unreadable, cut short, empty, of a rate below 4000 Hz, has samples that are NaN,
            infinite or beyond 2**31, or does not fit the first one in rate or channels; the message names the part.
    """
    with _opened(paths) as (whole, pieces):
        meters = _Meters(whole)
        for audio in pieces:
            meters.add(audio)
    return meters.result()


def content_hash(paths: Sequence[Path]) -> str:
    """What `measure` gives as such, and nothing else, in less time; raises as it does."""
    with _opened(paths) as (whole, pieces):
        digest = _SampleHash(whole)
        for audio in pieces:
            digest.add(audio)
    return digest.hexdigest()


def measure_header(paths: Sequence[Path]) -> Measurement:
    """What the headers say; the last sample of each part is decoded, which shows most files that were cut short.

    Raises:
        AudioFileError: as `measure` does, for what can be seen so.
    """
    whole = _sum_of([verify_ends(path) for path in paths])
    return _header(whole)


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[tuple[AudioInfo, Iterator[np.ndarray]]]:
    """The header of the sum of files, and the sum in pieces `[channels, frames]`."""
    with ExitStack() as stack:
        readers = [stack.enter_context(AudioReader(path, sample_rate=None, channels=None)) for path in paths]
        whole = _sum_of([reader.info for reader in readers])
        pieces = summed(readers, max(_PIECE_SAMPLES // whole.channels, 1))
        yield whole, (audio.numpy() for audio in pieces)


class _SampleHash:
    """Of the samples, rate and channels, fed with pieces `[channels, frames]`."""

    def __init__(self, info: AudioInfo) -> None:
        # The same numbers mean other music at another rate or with other channels.
        self._hash = blake2b(f"{info.sample_rate} {info.channels}\n".encode(), digest_size=_HASH_BYTES)

    def add(self, audio: np.ndarray) -> None:
        # Frame by frame. Adding zero makes -0, which only floating-point files have, the 0 of all others.
        self._hash.update(np.add(audio.T, np.float32(0), order="C").astype("<f4", copy=False).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Meters:
    """Everything that is measured, fed with pieces `[channels, frames]`."""

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
        header = _header(self._info)
        loudness = self._loudness.integrated()
        peak = self._clipping.peak
        return replace(
            header,
            loudness_lufs=loudness if math.isfinite(loudness) else None,
            peak_dbfs=20 * math.log10(peak) if peak else None,
            clipped_share=self._clipping.share(),
            silent_share=_silent_share(self._blocks),
            side_to_mid_db=self._stereo.side_to_mid_db() if self._stereo else None,
            bandwidth_hz=self._spectrum.bandwidth_hz(_BANDWIDTH_FLOOR_DB),
            content_hash=self._hash.hexdigest(),
        )


def _header(info: AudioInfo) -> Measurement:
    return Measurement(**{name: getattr(info, name) for name in _OF_HEADERS})


def _sum_of(infos: Sequence[AudioInfo]) -> AudioInfo:
    """Header of the sum; AudioFileError naming the part that does not fit."""
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


def _silent_share(blocks: BlockEnergies) -> float:
    powers = blocks.sums() / blocks.lengths()
    return float(np.mean(powers < 10 ** (_SILENCE_DBFS / 10)))
