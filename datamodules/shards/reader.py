"""Reads audio from shards, by track and time, as `TrackReader` reads it from files."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
from torch import Tensor

from datamodules.audio.opening import AudioFileError
from datamodules.corpora.corpus import Corpus
from datamodules.corpora.time_ranges import TimeRanges, evenly_spread
from datamodules.shards.encodings import ENCODINGS
from datamodules.shards.index import shards_of
from datamodules.shards.members import Member, read_member
from datamodules.shards.store import ShardError, ShardStore
from datamodules.track_reader import Reader
from datamodules.workers.timeouts import within
from spectrostream.errors import UserError

logger = logging.getLogger(__name__)

_PLACES = ("offset", "member_bytes", "sample_rate", "channels", "frames")


class ShardReader(Reader):
    """Reads parts of the tracks of a corpus of shards.

    Args:
        corpus: An index, or some of its rows; its table says where each track is.
        store: The shards.
        sample_rate: Of the result, in Hz; other rates are resampled, which costs time at every crop.
        channels: Of the result; mono is repeated in each.
        open_shards: Number of shards that are kept open, so that the machine's cache does not remove them.
        timeout_seconds: A shard whose read takes longer is not used for a while. None waits for ever.

    Attributes:
        corpus: The argument; a copy in another process does not have it.
        shards: The shards by name.
        shard_of_track: The number of its shard for each track, int64 `[tracks]`.
    """

    def __init__(
        self,
        corpus: Corpus,
        store: ShardStore,
        *,
        sample_rate: int = 48000,
        channels: int = 2,
        open_shards: int = 8,
        timeout_seconds: float | None = None,
    ) -> None:
        self.corpus = corpus
        self.tracks = corpus.tracks
        self.sample_rate = sample_rate
        self.channels = channels
        self.shards, self.shard_of_track = shards_of(corpus.table)
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._members = corpus.table["member"].array
        self._encodings = corpus.table["encoding"].array
        self._places = {name: corpus.table[name].to_numpy(np.int64) for name in _PLACES}
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._open_shards = open_shards
        self._fetching: SimpleQueue[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Open files and threads belong to their process. A worker needs some columns of the corpus' table only.
        kept = {name: value for name, value in self.__dict__.items() if name != "corpus"}
        return {**kept, "_open": OrderedDict(), "_fetching": None}

    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """Read a part of a track, see `Reader`.

        Raises:
            AudioFileError: The shard cannot be read (`ShardError`), is damaged, or the part is not within the track.
        """
        member = self._member(track_index)
        member.info().require_channels(self.channels)
        resampler = member.info().resampler(self.sample_rate)
        start = round(start_seconds * self.sample_rate)
        stop = start + round(duration_seconds * self.sample_rate)
        total = resampler.length(member.frames)
        if not 0 <= start < stop <= total:
            reason = f"has {total} samples at {self.sample_rate} Hz; {start} to {stop} do not lie within it"
            raise AudioFileError.of(member.path, reason)
        number = int(self.shard_of_track[track_index])
        source = self._source(number, member, *resampler.source_range(start, stop, member.frames))
        audio = resampler.resample(source, start, stop, member.frames)
        return audio if len(audio) == self.channels else audio.repeat(self.channels, 1)

    def lost_with(self, track_index: int) -> frozenset[int]:
        """Return the tracks that need not be tried when this one could not be read: all of a shard that failed."""
        shard = int(self.shard_of_track[track_index])
        if not self._store.has_failed(self.shards[shard]):
            return frozenset({track_index})
        return frozenset(np.flatnonzero(self.shard_of_track == shard).tolist())

    def in_few_shards(self, ranges: TimeRanges, count: int) -> TimeRanges:
        """Return the ranges in at most `count` shards, evenly chosen from all that hold some."""
        shard_of_range = self.shard_of_track[ranges.tracks]
        shards = np.unique(shard_of_range)
        return ranges.at(np.isin(shard_of_range, shards[evenly_spread(len(shards), count)]))

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch remote shards, by number, in the background, one after the other."""
        if self._store.is_local:
            return
        if self._fetching is None:
            self._fetching = SimpleQueue()
            # It ends with the process, also in the middle of a shard: only a complete shard takes its name.
            threading.Thread(target=self._fetch, args=(self._fetching,), name="prefetch", daemon=True).start()
        for shard in shards:
            self._fetching.put(shard)

    def close(self) -> None:
        """Close all open shards; so does the end of the reader."""
        while self._open:
            self._open.popitem()[1].close()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()

    def _fetch(self, queue: SimpleQueue[int]) -> None:
        while True:
            shard = self.shards[queue.get()]
            try:
                self._store.hold(shard).close()
            except ShardError:
                continue  # the log names it, and reading it raises the error again
            except UserError as error:
                logger.warning("Shards are not fetched ahead: %s", error)

    def _source(self, number: int, member: Member, start: int, stop: int) -> Tensor:
        """Read frames of a member; after a failure the shard is opened again, because it may have been repaired."""
        # The store has its own limits for fetching a shard.
        patience = self._timeout_seconds if self._store.is_local else None
        try:
            is_open = number in self._open
            file = self._shard(number) if is_open else within(patience, lambda: self._shard(number))
            return within(self._timeout_seconds, lambda: read_member(file, member, start, stop))
        except TimeoutError as error:
            self._open.pop(number, None)  # not closed, because that would hang too
            reason = f"takes longer to read than data.read_timeout_seconds={self._timeout_seconds:g}"
            raise self._store.given_up(self.shards[number], reason) from error
        except AudioFileError:
            if number in self._open:
                self._open.pop(number).close()
            raise

    def _member(self, track_index: int) -> Member:
        offset, size, sample_rate, channels, frames = (int(self._places[name][track_index]) for name in _PLACES)
        return Member(
            shard=self.shards[int(self.shard_of_track[track_index])].name,
            name=self._members[track_index],
            offset=offset,
            size_bytes=size,
            encoding=ENCODINGS[self._encodings[track_index]],
            sample_rate=sample_rate,
            channels=channels,
            frames=frames,
        )

    def _shard(self, number: int) -> IO[bytes]:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self._open_shards:
            self._open.popitem(last=False)[1].close()
        self._open[number] = self._store.hold(self.shards[number])
        return self._open[number]
