"""The Lightning data module: folders, manifests or shards in, batches `[batch, channels, samples]` out."""

from __future__ import annotations

import hashlib
import logging
import re
import weakref
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

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
from datamodules.data_config import DataConfig, DataConfigError
from datamodules.sources import Source, open_source
from datamodules.workers.resilient_loader import ResilientLoader, StepSampler

__all__ = ["DataConfig", "DataConfigError", "HeldOutSegment", "StereoMusicDataModule"]

logger = logging.getLogger(__name__)

# Metrics need some length: a shorter rest of a held-out range is not evaluated.
_SHORTEST_SEGMENT_SECONDS = 2.0


class StereoMusicDataModule(lightning.LightningDataModule):
    """Random training crops, fixed validation crops and held-out segments of one corpus.

    Training batch k depends on the seed and k only. k counts from `trainer.global_step * batches_per_step`, so a
    resumed run continues where it stopped. The training loader never ends: a Trainer stops it by `max_steps`, with
    `max_epochs=-1`. With several processes the Trainer needs `use_distributed_sampler=False`.

    Args:
        config: See `DataConfig`.
        sample_rate: Of the batches, in Hz.
        channels: Of the batches; mono files are repeated in each.
        batches_per_step: Number of batches for one count of `trainer.global_step`.

    Attributes:
        failure_list: May be set to a file, which then lists what could not be read while training.
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
        # Weak, because the loader refers to this module: its processes end as soon as nobody uses it.
        self._training_loader: weakref.ref[ResilientLoader] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Find and divide the corpus; all else here does so when it needs it."""
        _ = self._weights  # a condition that is wrong is an error now, not at the first batch
        logger.info("%s", self.describe())

    @cached_property
    def source(self) -> Source:
        """The corpus and its reader."""
        return open_source(self.config, sample_rate=self.sample_rate, channels=self.channels)

    @property
    def corpus(self) -> Corpus:
        """The tracks of the manifests, of the shards or below `data.root`."""
        return self.source.corpus

    @cached_property
    def split(self) -> Split:
        """Which seconds are trained on and which are held out."""
        return _divided(self.corpus, self.config)

    @cached_property
    def _weights(self) -> np.ndarray | None:
        """Weights of the training ranges, float64 `[ranges]`; None if all are equal."""
        return range_weights(self.corpus, self.split.train, self.config, sample_rate=self.sample_rate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the crops of a run depend on, besides its configuration."""
        digest = hashlib.sha256(self.corpus.fingerprint().encode() + self.source.order_identity)
        if self._weights is not None:
            # They may come from columns of the user's own, which are no part of a corpus' identity.
            digest.update(self._weights.astype("<f8").tobytes())
        return digest.hexdigest()

    def describe(self) -> str:
        """Return one line: the place, tracks, minutes trained on, seconds held out, skipped files."""
        is_demo = self.config.root is None and not self.config.manifests and not self.config.shards
        where = "demo corpus" if is_demo else self.corpus.where
        duplicates = f", {len(self.split.duplicates)} duplicates unused" if self.split.duplicates else ""
        return (
            f"{where}: {len(self.corpus.tracks)} tracks, {self.split.train_seconds / 60:.1f} train minutes, "
            f"{self.split.held_out_seconds:.1f} s held out, {len(self.corpus.skipped)} files skipped{duplicates}"
        )

    def train_dataloader(self) -> Iterable[Tensor]:
        """Return endless batches `[batch_size, channels, crop samples]`."""
        rank, world_size = self._rank_and_world_size()
        sampler = StepSampler(self.config.batch_size, rank=rank, world_size=world_size)
        loader = ResilientLoader(self.train_dataset(), sampler, self._next_batch, workers=self.config.num_workers)
        self._training_loader = weakref.ref(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """End the processes of the training loader."""
        loader = None if self._training_loader is None else self._training_loader()
        if stage == "fit" and loader is not None:
            loader.close()

    def train_dataset(self) -> CropDataset:
        """Return the training crops by key `(batch index, slot)`."""
        config = self.config
        world_size = self._rank_and_world_size()[1]
        return CropDataset(
            self.source.reader,
            self.source.draws(self.split.train, self._weights, world_size),
            crop_seconds=config.crop_seconds,
            seed=config.seed,
            silence_threshold_db=config.silence_threshold_db,
            silence_redraws=config.silence_redraws,
            normalize_lufs=config.normalize_lufs,
            failure_list=self.failure_list,
        )

    def val_dataloader(self) -> DataLoader[Tensor] | list[DataLoader[Tensor]]:
        """Return fixed held-out crops `[batch, channels, crop samples]` in a fixed order; an empty list if none.

        Every rank gets the same number of crops, because ranks that end at different times would wait for each other
        for ever. If the crops do not divide evenly, the first few are repeated at the end.
        """
        seconds = self.config.crop_seconds
        crops = self.source.validated(self.split.validation).cut(
            seconds, sample_rate=self.sample_rate, minimum_seconds=seconds, limit=self.config.validation_crops
        )
        if not len(crops):
            return []
        rank, world_size = self._rank_and_world_size()
        own = [(position + rank) % len(crops) for position in range(0, len(crops), world_size)]
        return DataLoader(
            Subset(HeldOutDataset(self.source.reader, crops, self.failure_list), own),
            batch_size=self.config.batch_size,
            pin_memory=torch.cuda.is_available(),
            # Without one, the loader would draw from the global generator, which the training uses.
            generator=torch.Generator(),
        )

    def held_out_segments(self, limit: int | None = None) -> list[HeldOutSegment]:
        """Read the segments that `data.evaluation_segments` lists, or else segments of all test ranges.

        The latter are consecutive and last `data.evaluation_segment_seconds`. The last one of a range may be shorter,
        but not shorter than 2 s.

        Args:
            limit: At most this many, evenly spread over all.
        """
        return [self._segment(parts) for parts in self.segment_places(limit)]

    def segment_places(self, limit: int | None = None) -> list[TimeRanges]:
        """Return where each of these is: in one row of the corpus, or in rows that are consecutive parts of a track.

        No audio is read.

        Raises:
            SegmentsError: The table cannot be used as a whole, whatever the limit.
        """
        if self.config.evaluation_segments is None:
            return [TimeRanges.of([one]) for one in self.evaluation_ranges(limit)]
        table = Path(self.config.evaluation_segments).expanduser()
        listed = read_segments(table, self.corpus, self.split, sample_rate=self.sample_rate)
        return [listed[number] for number in evenly_spread(len(listed), limit)]

    def evaluation_ranges(self, limit: int | None = None) -> TimeRanges:
        """Return the segments that are evaluated if no table lists them."""
        seconds = self.config.evaluation_segment_seconds
        shortest = min(seconds, _SHORTEST_SEGMENT_SECONDS)
        return self.split.test.cut(seconds, sample_rate=self.sample_rate, minimum_seconds=shortest, limit=limit)

    def _segment(self, parts: TimeRanges) -> HeldOutSegment:
        index = parts[0].track_index
        # By the track that was scanned, so that runs on the originals and on shards of them can be compared.
        track = str(self.corpus.source_tracks.iloc[index])
        start = parts[0].start_seconds + float(self.corpus.starts[index])
        read = self.source.reader.read
        audio = [read(part.track_index, part.start_seconds, part.duration_seconds) for part in parts]
        return HeldOutSegment(track, f"{_file_stem(track)}-{start:08.3f}s", start, torch.cat(audio, dim=-1))

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if self.trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            # Lightning would divide each rank's share once more, without a message.
            raise ValueError(
                "Each rank has its own share of the crops already: give the Trainer use_distributed_sampler=False"
            )
        return self.trainer.global_rank, self.trainer.world_size

    def _next_batch(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.batches_per_step


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
    """Return the track's name as letters, digits, dots and dashes, with a hash if that is not the whole name."""
    stem = re.sub(r"[^\w.-]+", "_", track, flags=re.ASCII)
    if stem == track and len(stem) <= 100:
        return stem
    digest = hashlib.sha256(track.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{stem[:100]}-{digest[:8]}"
