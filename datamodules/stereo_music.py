"""The Lightning data module: folders, manifests or shards in, batches `[batch, channels, samples]` out."""

from __future__ import annotations

import hashlib
import logging
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.corpora.corpus import Corpus, EmptyCorpusError
from datamodules.corpora.folder_corpus import demo_corpus_root, scan_folder
from datamodules.corpora.manifest_corpus import load_manifests, span_weights, usable_corpus
from datamodules.corpora.segments import read_segments
from datamodules.corpora.spans import Spans, evenly_spread
from datamodules.corpora.splits import Split, split_spans
from datamodules.crop_dataset import CropDataset, Excerpt, HeldOutDataset
from datamodules.crops import Draws, RandomCrops, StepSampler
from datamodules.data_config import DataConfig, DataConfigError
from datamodules.shards.reader import ShardReader
from datamodules.shards.store import ShardStore
from datamodules.shards.windows import WindowedCrops
from datamodules.track_reader import TrackReader
from datamodules.workers.processes import worker_context
from datamodules.workers.resilient_loader import LastingLoader, WorkerStart

__all__ = ["DataConfig", "DataConfigError", "Excerpt", "StereoMusicDataModule"]

logger = logging.getLogger(__name__)

# A corpus below this is kept in memory unless the configuration says otherwise: half an hour is 0.7 GB.
_CACHED_SECONDS = 30 * 60
# A local corpus may have thousands of shards, a process only so many open files.
_OPEN_SHARDS = 64
# A validation hears some minutes at most, and one shard of 256 MB has up to 22 of them.
_VALIDATION_SHARDS = 8
# Metrics need some length: a shorter rest of a held-out span is not evaluated.
_SHORTEST_EXCERPT_SECONDS = 2.0


@dataclass(frozen=True)
class _Prepared:
    corpus: Corpus
    split: Split
    # Of the training spans, float64; None where all are equal.
    weights: np.ndarray | None
    reader: TrackReader | ShardReader


class StereoMusicDataModule(lightning.LightningDataModule):
    """Random training crops, fixed held-out crops and excerpts of one corpus.

    Training batch k depends on the seed and k only. k counts from `trainer.global_step * batches_per_step`, so a
    resumed run goes on where it stopped. The training loader never ends: a Trainer stops it by `max_steps`, with
    `max_epochs=-1`. With several processes the Trainer needs `use_distributed_sampler=False`.

    Args:
        config: see `DataConfig`.
        sample_rate: of the batches, in Hz.
        channels: of the batches; mono files are repeated in each.
        batches_per_step: how many batches one count of `trainer.global_step` consumes.

    failure_list: may be set to a file, which then lists what could not be read while training.
    """

    def __init__(
        self, config: DataConfig, *, sample_rate: int = 48000, channels: int = 2, batches_per_step: int = 1
    ) -> None:
        super().__init__()
        if batches_per_step < 1:
            raise ValueError(f"{batches_per_step=} must be 1 or more")
        if config.swap_channels_probability > 0 and channels != 2:
            key = f"data.swap_channels_probability={config.swap_channels_probability}"
            raise DataConfigError(
                f"{key} needs 2 channels, there are {channels}; type data.swap_channels_probability=0"
            )
        self.config = config
        self.sample_rate = sample_rate
        self.channels = channels
        self.batches_per_step = batches_per_step
        self.failure_list: Path | None = None
        self._prepared: _Prepared | None = None
        self._lasting_loader: weakref.ref[LastingLoader] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Scan and divide the corpus, once; everything else here does it when it is needed."""
        self._prepare()

    @property
    def corpus(self) -> Corpus:
        """The tracks of the manifests, or found below `data.root`."""
        return self._prepare().corpus

    @property
    def split(self) -> Split:
        """Which seconds are trained on and which are held out."""
        return self._prepare().split

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the crops of a run depend on beside its configuration."""
        prepared = self._prepare()
        digest = hashlib.sha256(prepared.corpus.fingerprint().encode())
        if isinstance(prepared.reader, ShardReader):
            # The same music in shards of another size comes in another order.
            digest.update(prepared.reader.shard_of_track.astype("<i8").tobytes())
        if prepared.weights is not None:
            # They may come from columns of the user's own, which are no part of a corpus' identity.
            digest.update(prepared.weights.astype("<f8").tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: where, how many tracks, minutes trained on, seconds held out, files skipped."""
        is_demo = self.config.root is None and not self.config.manifests and not self.config.shards
        where = "demo corpus" if is_demo else self.corpus.where
        duplicates = f", {len(self.split.duplicates)} duplicates unused" if self.split.duplicates else ""
        return (
            f"{where}: {len(self.corpus.tracks)} tracks, {self.split.train_seconds / 60:.1f} train minutes, "
            f"{self.split.held_out_seconds:.1f} s held out, {len(self.corpus.skipped)} files skipped{duplicates}"
        )

    def train_dataloader(self) -> Iterable[Tensor]:
        """Endless batches `[batch_size, channels, crop samples]`."""
        workers = self.config.num_workers
        if not workers:
            return self._train_loader(self._next_batch)
        context = worker_context("datamodules.crop_dataset")

        def made(first_batch: Callable[[], int], start: WorkerStart) -> DataLoader[Tensor]:
            return self._train_loader(
                first_batch,
                num_workers=workers,
                persistent_workers=True,
                multiprocessing_context=context,
                worker_init_fn=start,
            )

        self._rank_and_world_size()  # a wrong trainer is told now
        loader = LastingLoader(made, self._next_batch, context=context, workers=workers)
        # Its processes end when nobody holds it any more.
        self._lasting_loader = weakref.ref(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """Ends the processes of the training loader."""
        loader = None if self._lasting_loader is None else self._lasting_loader()
        if stage == "fit" and loader is not None:
            loader.close()

    def _train_loader(self, first_batch: Callable[[], int], **processes: Any) -> DataLoader[Tensor]:
        rank, world_size = self._rank_and_world_size()
        return DataLoader(
            self.train_dataset(),
            batch_sampler=StepSampler(
                self.config.batch_size, rank=rank, world_size=world_size, start_batch=first_batch
            ),
            pin_memory=torch.cuda.is_available(),
            generator=self._own_generator(),
            **processes,
        )

    def train_dataset(self) -> CropDataset:
        """The training crops by key `(batch_index, slot)`."""
        config = self.config
        return CropDataset(
            self._prepare().reader,
            self._draws(),
            crop_seconds=config.crop_seconds,
            seed=config.seed,
            silence_threshold_db=config.silence_threshold_db,
            silence_redraws=config.silence_redraws,
            normalize_lufs=config.normalize_lufs,
            failure_list=self.failure_list,
        )

    def _draws(self) -> Draws:
        config, prepared = self.config, self._prepare()
        if isinstance(prepared.reader, ShardReader) and config.window_shards:
            return WindowedCrops(
                prepared.split.train,
                prepared.reader.shard_of_track,
                batch_size=config.batch_size,
                world_size=self._rank_and_world_size()[1],
                crop_seconds=config.crop_seconds,
                sample_rate=self.sample_rate,
                window_shards=config.window_shards,
                passes=config.window_passes,
                weights=prepared.weights,
                gain_db_range=config.gain_db_range,
                swap_channels_probability=config.swap_channels_probability,
                announce=prepared.reader.prefetch,
            )
        return RandomCrops(
            prepared.split.train,
            crop_seconds=config.crop_seconds,
            sample_rate=self.sample_rate,
            weights=prepared.weights,
            gain_db_range=config.gain_db_range,
            swap_channels_probability=config.swap_channels_probability,
        )

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        """Fixed held-out crops `[batch, channels, crop samples]` in a fixed order; an empty list where there are none.

        Every rank gets the same number of crops, because ranks that run out at different times would wait for each
        other for ever. Where the crops do not divide evenly, the first few stand once more at the end.
        """
        seconds = self.config.crop_seconds
        spans, reader = self.split.validation, self._prepare().reader
        if isinstance(reader, ShardReader):
            # Each shard may have to be fetched, for a crop or for a thousand.
            spans = reader.in_few_shards(spans, _VALIDATION_SHARDS)
        pieces = spans.pieces(
            seconds, sample_rate=self.sample_rate, minimum_seconds=seconds, limit=self.config.validation_crops
        )
        if not len(pieces):
            return []
        rank, world_size = self._rank_and_world_size()
        shard = [(position + rank) % len(pieces) for position in range(0, len(pieces), world_size)]
        dataset = Subset(HeldOutDataset(reader, pieces, self.failure_list), shard)
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            pin_memory=torch.cuda.is_available(),
            generator=self._own_generator(),
        )

    def held_out_excerpts(self, limit: int | None = None) -> list[Excerpt]:
        """At most `limit` of the segments that `data.evaluation_segments` lists, or else of all of the test.

        They are spread evenly over these. The latter follow each other, `data.evaluation_segment_seconds` long; a last
        piece of a span is kept down to 2 s. A span of held-out music shorter than that gives none.
        """
        return [self._excerpt(parts) for parts in self.excerpt_places(limit)]

    def excerpt_places(self, limit: int | None = None) -> list[Spans]:
        """Where each of these lies: in one track of the corpus, or in pieces of one that follow each other.

        No audio is read. Raises SegmentsError for a table that cannot be used as a whole, whatever the limit.
        """
        if self.config.evaluation_segments is None:
            return [Spans.of([span]) for span in self.evaluation_spans(limit)]
        table = Path(self.config.evaluation_segments).expanduser()
        listed = read_segments(table, self.corpus, self.split, sample_rate=self.sample_rate)
        return [listed[number] for number in evenly_spread(len(listed), limit)]

    def evaluation_spans(self, limit: int | None = None) -> Spans:
        """The segments that are evaluated where no table lists them."""
        seconds = self.config.evaluation_segment_seconds
        shortest = min(seconds, _SHORTEST_EXCERPT_SECONDS)
        return self.split.test.pieces(seconds, sample_rate=self.sample_rate, minimum_seconds=shortest, limit=limit)

    def _excerpt(self, parts: Spans) -> Excerpt:
        prepared = self._prepare()
        index = parts[0].track_index
        # Of the music as it was scanned, so that runs on the originals and on shards of them can be compared.
        track = str(prepared.corpus.source_tracks.iloc[index])
        start = parts[0].start_seconds + float(prepared.corpus.starts[index])
        read = [prepared.reader.read(part.track_index, part.start_seconds, part.duration_seconds) for part in parts]
        return Excerpt(track, f"{_file_stem(track)}-{start:08.3f}s", start, torch.cat(read, dim=-1))

    def _prepare(self) -> _Prepared:
        if self._prepared is None:
            corpus, reader = self._from_shards() if self.config.shards else self._from_files()
            split = _divided(corpus, self.config)
            weights = span_weights(corpus, split.train, self.config, sample_rate=self.sample_rate)
            self._prepared = _Prepared(corpus, split, weights, reader)
            logger.info("%s", self.describe())
        return self._prepared

    def _from_files(self) -> tuple[Corpus, TrackReader]:
        config = self.config
        if config.manifests:
            corpus = load_manifests(
                config.manifests,
                root=config.root,
                keep=config.keep,
                minimum_seconds=config.crop_seconds,
                channels=self.channels,
            )
        else:
            root = demo_corpus_root() if config.root is None else Path(config.root)
            corpus = scan_folder(root, minimum_seconds=config.crop_seconds, channels=self.channels)
        reader = TrackReader(
            corpus,
            sample_rate=self.sample_rate,
            channels=self.channels,
            cache_audio=_is_small(corpus) if config.cache_audio is None else config.cache_audio,
            timeout_seconds=config.read_timeout_seconds,
        )
        return corpus, reader

    def _from_shards(self) -> tuple[Corpus, ShardReader]:
        config = self.config
        assert config.shards
        store = ShardStore(
            config.shards,
            cache_folder=config.shard_cache,
            cache_bytes=round(config.shard_cache_gigabytes * 1e9),
            timeout_seconds=config.read_timeout_seconds,
            endpoint_url=config.s3_endpoint,
        )
        table = store.read_index()
        try:
            corpus = usable_corpus(
                config.shards, table, keep=config.keep, minimum_seconds=config.crop_seconds, channels=self.channels
            )
        except EmptyCorpusError as error:
            raise EmptyCorpusError(f"data.shards={config.shards!r}: {error}") from error
        # What a window has and what the validation reads may be open side by side.
        open_shards = max(2 * config.window_shards, _OPEN_SHARDS)
        reader = ShardReader(
            corpus,
            store,
            sample_rate=self.sample_rate,
            channels=self.channels,
            open_shards=open_shards,
            timeout_seconds=config.read_timeout_seconds,
        )
        store.require_cache_for(reader.shards)
        return corpus, reader

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if self.trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            # Lightning would divide each rank's share once more, without a word.
            raise ValueError(
                "Each rank has its own share of the crops already: give the Trainer use_distributed_sampler=False"
            )
        return self.trainer.global_rank, self.trainer.world_size

    def _next_batch(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.batches_per_step

    def _own_generator(self) -> torch.Generator:
        # Without one, a loader draws from torch's global generator and so disturbs the random numbers of the training.
        return torch.Generator().manual_seed(self.config.seed)


def _is_small(corpus: Corpus) -> bool:
    return corpus.duration_seconds < _CACHED_SECONDS


def _divided(corpus: Corpus, config: DataConfig) -> Split:
    split = split_spans(
        corpus,
        split=config.chosen_split,
        held_out_seconds=config.held_out_seconds,
        held_out_fraction=config.held_out_fraction,
        gap_seconds=config.gap_seconds,
        minimum_seconds=config.crop_seconds,
    )
    if not len(split.train):
        raise DataConfigError(
            f"data.split={config.chosen_split!r} with data.held_out_fraction={config.held_out_fraction} holds out all "
            f"{len(corpus.tracks)} tracks; lower data.held_out_fraction or type data.split=end"
        )
    wanted = config.held_out_fraction > 0 and (config.chosen_split != "end" or config.held_out_seconds > 0)
    if wanted and split.undivided:
        logger.warning(
            "%d of %d tracks are too short to hold out a part of them and are wholly trained on, first %r",
            len(split.undivided),
            len(corpus.tracks),
            corpus.tracks[split.undivided[0]].name,
        )
    if wanted and not len(split.test):
        logger.warning(
            "Nothing is held out, so nothing will be validated; raise data.held_out_fraction or data.held_out_seconds"
        )
    if config.chosen_split != "end" and split.is_shared and len(split.test):
        logger.warning(
            "Only %d tracks are held out, all on one side: validation and evaluation share them; raise "
            "data.held_out_fraction, or name the sides in the manifests' column 'split'",
            len(split.test),
        )
    return split


def _file_stem(track: str) -> str:
    """The track's name as letters, digits, dots and dashes; where that loses something, a hash keeps it unique."""
    stem = re.sub(r"[^\w.-]+", "_", track, flags=re.ASCII)
    if stem == track and len(stem) <= 100:
        return stem
    digest = hashlib.sha256(track.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{stem[:100]}-{digest[:8]}"
