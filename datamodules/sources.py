"""Where music comes from: files (a folder or manifests) or shards. The data module asks no more than `Source` has."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from datamodules.corpora.corpus import Corpus, EmptyCorpusError
from datamodules.corpora.folder_corpus import demo_corpus_root, scan_folder
from datamodules.corpora.manifest_corpus import load_manifests, usable_corpus
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crops import Draws, RandomCrops
from datamodules.data_config import DataConfig
from datamodules.shards.reader import ShardReader
from datamodules.shards.store import ShardStore
from datamodules.shards.windows import WindowedCrops
from datamodules.track_reader import Reader, TrackReader

# A corpus below this is kept in memory unless the configuration says otherwise: half an hour is 0.7 GB.
_CACHED_SECONDS = 30 * 60
# A local corpus may have thousands of shards, a process only so many open files.
_OPEN_SHARDS = 64
# A validation reads some minutes at most, and one shard of 256 MB has up to 22 of them.
_VALIDATION_SHARDS = 8


class Source(Protocol):
    """A corpus and what reads it."""

    @property
    def corpus(self) -> Corpus:
        """All tracks that can be used."""

    @property
    def reader(self) -> Reader:
        """Gives parts of these tracks."""

    @property
    def order_identity(self) -> bytes:
        """What the order of crops depends on beside the corpus' table."""

    def draws(self, spans: TimeRanges, weights: np.ndarray | None, world_size: int) -> Draws:
        """Where training crops lie.

        Args:
            spans: training spans.
            weights: of these, second for second, float64 `[spans]`; None where all are equal.
            world_size: number of processes.
        """

    def validated(self, spans: TimeRanges) -> TimeRanges:
        """The held-out spans that validation crops are taken from."""


def source_of(config: DataConfig, *, sample_rate: int, channels: int) -> Source:
    """The source that a configuration names; `sample_rate` (Hz) and `channels` are those of the audio that it gives."""
    source = ShardSource if config.shards else FileSource
    return source(config, sample_rate=sample_rate, channels=channels)


class FileSource:
    """A folder of music, or manifests of such folders."""

    order_identity = b""
    reader: Reader

    def __init__(self, config: DataConfig, *, sample_rate: int, channels: int) -> None:
        self._config = config
        self.corpus = self._found_corpus(channels)
        is_small = self.corpus.duration_seconds < _CACHED_SECONDS
        self.reader = TrackReader(
            self.corpus,
            sample_rate=sample_rate,
            channels=channels,
            cache_audio=is_small if config.cache_audio is None else config.cache_audio,
            timeout_seconds=config.read_timeout_seconds,
        )

    def _found_corpus(self, channels: int) -> Corpus:
        config = self._config
        if not config.manifests:
            root = demo_corpus_root() if config.root is None else config.root
            return scan_folder(root, minimum_seconds=config.crop_seconds, channels=channels)
        return load_manifests(
            config.manifests,
            root=config.root,
            keep=config.keep,
            minimum_seconds=config.crop_seconds,
            channels=channels,
        )

    def draws(self, spans: TimeRanges, weights: np.ndarray | None, world_size: int) -> Draws:
        """Crops at random over all spans."""
        del world_size
        return _random_crops(self._config, self.reader.sample_rate, spans, weights)

    def validated(self, spans: TimeRanges) -> TimeRanges:
        """All of them."""
        return spans


class ShardSource:
    """Shards in a folder or behind an address."""

    def __init__(self, config: DataConfig, *, sample_rate: int, channels: int) -> None:
        assert config.shards
        self._config = config
        store = ShardStore(
            config.shards,
            cache_folder=config.shard_cache,
            cache_bytes=round(config.shard_cache_gigabytes * 1e9),
            timeout_seconds=config.read_timeout_seconds,
            endpoint_url=config.s3_endpoint,
        )
        table = store.read_index()
        try:
            self.corpus = usable_corpus(
                config.shards, table, keep=config.keep, minimum_seconds=config.crop_seconds, channels=channels
            )
        except EmptyCorpusError as error:
            raise EmptyCorpusError(f"data.shards={config.shards!r}: {error}") from error
        self.reader = ShardReader(
            self.corpus,
            store,
            sample_rate=sample_rate,
            channels=channels,
            # What a window has and what the validation reads may be open side by side.
            open_shards=max(2 * config.window_shards, _OPEN_SHARDS),
            timeout_seconds=config.read_timeout_seconds,
        )
        store.require_cache_for(self.reader.shards)

    @property
    def order_identity(self) -> bytes:
        """The same music in shards of another size comes in another order."""
        return self.reader.shard_of_track.astype("<i8").tobytes()

    def draws(self, spans: TimeRanges, weights: np.ndarray | None, world_size: int) -> Draws:
        """Crops from a window of shards at a time, or at random over all spans with `data.window_shards=0`."""
        config = self._config
        if not config.window_shards:
            return _random_crops(config, self.reader.sample_rate, spans, weights)
        return WindowedCrops(
            spans,
            self.reader.shard_of_track,
            batch_size=config.batch_size,
            world_size=world_size,
            crop_seconds=config.crop_seconds,
            sample_rate=self.reader.sample_rate,
            window_shards=config.window_shards,
            passes=config.window_passes,
            weights=weights,
            gain_db_range=config.gain_db_range,
            swap_channels_probability=config.swap_channels_probability,
            announce=self.reader.prefetch,
        )

    def validated(self, spans: TimeRanges) -> TimeRanges:
        """Those in a few shards: each may have to be fetched, for one crop or for a thousand."""
        return self.reader.in_few_shards(spans, _VALIDATION_SHARDS)


def _random_crops(config: DataConfig, sample_rate: int, spans: TimeRanges, weights: np.ndarray | None) -> RandomCrops:
    return RandomCrops(
        spans,
        crop_seconds=config.crop_seconds,
        sample_rate=sample_rate,
        weights=weights,
        gain_db_range=config.gain_db_range,
        swap_channels_probability=config.swap_channels_probability,
    )
