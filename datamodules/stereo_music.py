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

from datamodules.corpora.corpus import Corpus
from datamodules.corpora.manifest_corpus import range_weights
from datamodules.corpora.segments import read_segments
from datamodules.corpora.splits import Split, split_corpus
from datamodules.corpora.time_ranges import TimeRanges, evenly_spread
from datamodules.crop_dataset import CropDataset, HeldOutDataset, HeldOutSegment
from datamodules.crops import StepSampler
from datamodules.data_config import DataConfig, DataConfigError
from datamodules.sources import Source, source_of
from datamodules.workers.processes import worker_context
from datamodules.workers.resilient_loader import LastingLoader, WorkerStart

__all__ = ["DataConfig", "DataConfigError", "HeldOutSegment", "StereoMusicDataModule"]

logger = logging.getLogger(__name__)

# Metrics need some length: a shorter rest of a held-out span is not evaluated.
_SHORTEST_SEGMENT_SECONDS = 2.0


@dataclass(frozen=True)
class _Prepared:
    source: Source
    split: Split
    # Of the training spans, float64; None where all are equal.
    weights: np.ndarray | None


class StereoMusicDataModule(lightning.LightningDataModule):
    """Gives random training crops, fixed validation crops and held-out segments of one corpus.

    Training batch k depends on the seed and k only. k counts from `trainer.global_step * batches_per_step`, so a
    resumed run continues where it stopped. The training loader never ends: a Trainer stops it by `max_steps`, with
    `max_epochs=-1`. With several processes the Trainer needs `use_distributed_sampler=False`.

    Args:
        config: see `DataConfig`.
        sample_rate: of the batches, in Hz.
        channels: of the batches; mono files are repeated in each.
        batches_per_step: how many batches one count of `trainer.global_step` consumes.

    Attributes:
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
        return self._prepare().source.corpus

    @property
    def split(self) -> Split:
        """Which seconds are trained on and which are held out."""
        return self._prepare().split

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the crops of a run depend on beside its configuration."""
        prepared = self._prepare()
        digest = hashlib.sha256(prepared.source.corpus.fingerprint().encode() + prepared.source.order_identity)
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
        config, prepared = self.config, self._prepare()
        world_size = self._rank_and_world_size()[1]
        return CropDataset(
            prepared.source.reader,
            prepared.source.draws(prepared.split.train, prepared.weights, world_size),
            crop_seconds=config.crop_seconds,
            seed=config.seed,
            silence_threshold_db=config.silence_threshold_db,
            silence_redraws=config.silence_redraws,
            normalize_lufs=config.normalize_lufs,
            failure_list=self.failure_list,
        )

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        """Fixed held-out crops `[batch, channels, crop samples]` in a fixed order; an empty list where there are none.

        Every rank gets the same number of crops, because ranks that run out at different times would wait for each
        other for ever. Where the crops do not divide evenly, the first few stand once more at the end.
        """
        seconds = self.config.crop_seconds
        source = self._prepare().source
        crops = source.validated(self.split.validation).cut(
            seconds, sample_rate=self.sample_rate, minimum_seconds=seconds, limit=self.config.validation_crops
        )
        if not len(crops):
            return []
        rank, world_size = self._rank_and_world_size()
        own = [(position + rank) % len(crops) for position in range(0, len(crops), world_size)]
        dataset = Subset(HeldOutDataset(source.reader, crops, self.failure_list), own)
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            pin_memory=torch.cuda.is_available(),
            generator=self._own_generator(),
        )

    def held_out_segments(self, limit: int | None = None) -> list[HeldOutSegment]:
        """Reads the segments that `data.evaluation_segments` lists, or else segments of all the test spans.

        The latter follow each other and are `data.evaluation_segment_seconds` long; the last one of a span may be
        shorter, down to 2 s. A shorter span has none.

        Args:
            limit: at most so many, spread evenly over all.
        """
        return [self._segment(parts) for parts in self.segment_places(limit)]

    def segment_places(self, limit: int | None = None) -> list[TimeRanges]:
        """Says where each of these lies: in one row of the corpus, or in rows that are consecutive pieces of a track.

        No audio is read.

        Raises:
            SegmentsError: a table that cannot be used as a whole, whatever the limit.
        """
        if self.config.evaluation_segments is None:
            return [TimeRanges.of([span]) for span in self.evaluation_spans(limit)]
        table = Path(self.config.evaluation_segments).expanduser()
        listed = read_segments(table, self.corpus, self.split, sample_rate=self.sample_rate)
        return [listed[number] for number in evenly_spread(len(listed), limit)]

    def evaluation_spans(self, limit: int | None = None) -> TimeRanges:
        """The segments that are evaluated where no table lists them."""
        seconds = self.config.evaluation_segment_seconds
        shortest = min(seconds, _SHORTEST_SEGMENT_SECONDS)
        return self.split.test.cut(seconds, sample_rate=self.sample_rate, minimum_seconds=shortest, limit=limit)

    def _segment(self, parts: TimeRanges) -> HeldOutSegment:
        source = self._prepare().source
        index = parts[0].track_index
        # Of the music as it was scanned, so that runs on the originals and on shards of them can be compared.
        track = str(source.corpus.source_tracks.iloc[index])
        start = parts[0].start_seconds + float(source.corpus.starts[index])
        read = [source.reader.read(part.track_index, part.start_seconds, part.duration_seconds) for part in parts]
        return HeldOutSegment(track, f"{_file_stem(track)}-{start:08.3f}s", start, torch.cat(read, dim=-1))

    def _prepare(self) -> _Prepared:
        if self._prepared is None:
            source = source_of(self.config, sample_rate=self.sample_rate, channels=self.channels)
            split = _divided(source.corpus, self.config)
            weights = range_weights(source.corpus, split.train, self.config, sample_rate=self.sample_rate)
            self._prepared = _Prepared(source, split, weights)
            logger.info("%s", self.describe())
        return self._prepared

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


def _divided(corpus: Corpus, config: DataConfig) -> Split:
    split = split_corpus(
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
