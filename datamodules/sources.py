"""Where music comes from: files (a folder or manifests) or shards."""

from __future__ import annotations

from dataclasses import dataclass

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
from datamodules.track_reader import TrackReader

# A corpus below this is kept in memory unless the configuration says otherwise: half an hour is 0.7 GB.
_CACHED_SECONDS = 30 * 60
# A local corpus may have thousands of shards, a process only so many open files.
_OPEN_SHARDS = 64
# A validation reads some minutes at most, and one shard of 256 MB has up to 22 of them.
_VALIDATION_SHARDS = 8


@dataclass(frozen=True)
class Source:
    """A corpus and its reader."""

    config: DataConfig
    corpus: Corpus
    reader: TrackReader | ShardReader

    @property
    def order_identity(self) -> bytes:
        """What the order of crops depends on besides the corpus' table: shards of another size give another order."""
        return self.reader.shard_of_track.astype("<i8").tobytes() if isinstance(self.reader, ShardReader) else b""

    def draws(self, ranges: TimeRanges, weights: np.ndarray | None, world_size: int) -> Draws:
        """Return the crops of a training: from all ranges at random, or from a window of shards at a time.

        Args:
            ranges: Training ranges.
            weights: Of these, see `RandomCrops`.
            world_size: Number of processes.
        """
        config, reader = self.config, self.reader
        crops = RandomCrops(
            ranges,
            config.crop_seconds,
            reader.sample_rate,
            weights,
            gain_db_range=config.gain_db_range,
            swap_channels_probability=config.swap_channels_probability,
        )
        if not (isinstance(reader, ShardReader) and config.window_shards):
            return crops
        return WindowedCrops(
            crops,
            reader.shard_of_track,
            batch_size=config.batch_size,
            world_size=world_size,
            window_shards=config.window_shards,
            passes=config.window_passes,
            announce=reader.prefetch,
        )

    def validated(self, ranges: TimeRanges) -> TimeRanges:
        """Return the held-out ranges that validation crops are taken from.

        These are in a few shards, because each shard may have to be fetched, for one crop or for a thousand.
        """
        if isinstance(self.reader, ShardReader):
            return self.reader.in_few_shards(ranges, _VALIDATION_SHARDS)
        return ranges


def open_source(config: DataConfig, *, sample_rate: int, channels: int) -> Source:
    """Find the corpus that a configuration names, and open it.

    Args:
        config: See `DataConfig`.
        sample_rate: Of the audio that the reader returns, in Hz.
        channels: Of this audio.

    Raises:
        UserError: There is no usable music.
    """
    if config.shards:
        return _open_shards(config, config.shards, sample_rate, channels)
    corpus = _find_corpus(config, channels)
    is_small = corpus.duration_seconds < _CACHED_SECONDS
    reader = TrackReader(
        corpus,
        sample_rate=sample_rate,
        channels=channels,
        cache_audio=is_small if config.cache_audio is None else config.cache_audio,
        timeout_seconds=config.read_timeout_seconds,
    )
    return Source(config, corpus, reader)


def _find_corpus(config: DataConfig, channels: int) -> Corpus:
    if not config.manifests:
        root = demo_corpus_root() if config.root is None else config.root
        return scan_folder(root, minimum_seconds=config.crop_seconds, channels=channels)
    return load_manifests(
        config.manifests, root=config.root, keep=config.keep, minimum_seconds=config.crop_seconds, channels=channels
    )


def _open_shards(config: DataConfig, url: str, sample_rate: int, channels: int) -> Source:
    store = ShardStore(
        url,
        cache_folder=config.shard_cache,
        cache_bytes=round(config.shard_cache_gigabytes * 1e9),
        timeout_seconds=config.read_timeout_seconds,
        endpoint_url=config.s3_endpoint,
    )
    table = store.read_index()
    try:
        corpus = usable_corpus(url, table, keep=config.keep, minimum_seconds=config.crop_seconds, channels=channels)
    except EmptyCorpusError as error:
        raise EmptyCorpusError(f"data.shards={url!r}: {error}") from error
    reader = ShardReader(
        corpus,
        store,
        sample_rate=sample_rate,
        channels=channels,
        # The shards of a window and those of the validation may be open at the same time.
        open_shards=max(2 * config.window_shards, _OPEN_SHARDS),
        timeout_seconds=config.read_timeout_seconds,
    )
    store.require_cache_for(reader.shards)
    return Source(config, corpus, reader)
