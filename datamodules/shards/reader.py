"""Audio out of shards, by track and time, as `TrackReader` gives it out of files."""

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
from datamodules.audio.resampling import PartResampler
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

# Where pieces lie: more than a window has, looked up again once in a while.
_REMEMBERED = 100_000
_PLACES = ("offset", "member_bytes", "sample_rate", "channels", "frames")


class ShardReader(Reader):
    """Reads parts of the tracks of a corpus of shards as float32 `[channels, samples]` at one rate.

    Args:
        corpus: of an index, or a part of its rows; its table says where each track lies.
        store: where the shards are.
        sample_rate: of the result, in Hz; other rates are resampled, which costs time at every crop.
        channels: of the result; mono is repeated in each.
        timeout_seconds: for a read; a shard that takes longer is lost for a while. None waits for ever.
        open_shards: how many are kept open, and so safe from removal in the cache of the machine.

    corpus: as given; not there in a copy that was sent to another process.
    tracks: of the corpus.
    shards, shard_of_track: the shards by name, and the number of its shard for each track, int64 `[tracks]`.
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
        self._seen: dict[int, Member] = {}
        self._resamplers: dict[tuple[int, int], PartResampler] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Open files and threads belong to their process; a worker needs columns of the corpus' table, not all of it.
        kept = {name: value for name, value in self.__dict__.items() if name != "corpus"}
        return {**kept, "_open": OrderedDict(), "_fetching": None}

    def read(self, track_index: int, start_seconds: float, duration_seconds: float) -> Tensor:
        """A part of a track; the start counts from the start of the piece that the track is.

        Raises:
            AudioFileError: the shard cannot be had (`ShardError`), is damaged, or the part does not lie in the track.
        """
        member = self._member(track_index)
        resampler = self._resampler(member)
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
        """Tracks that need not be tried when this one could not be read: all of its shard if that could not be had."""
        shard = int(self.shard_of_track[track_index])
        if not self._store.has_failed(self.shards[shard]):
            return frozenset({track_index})
        return frozenset(np.flatnonzero(self.shard_of_track == shard).tolist())

    def in_few_shards(self, spans: TimeRanges, count: int) -> TimeRanges:
        """The spans that lie in at most `count` shards, evenly chosen from all that hold some."""
        shard_of_span = self.shard_of_track[spans.tracks]
        shards = np.unique(shard_of_span)
        return spans.at(np.isin(shard_of_span, shards[evenly_spread(len(shards), count)]))

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetches remote shards, by number, in the background, one after the other; returns at once."""
        if self._store.is_local:
            return
        if self._fetching is None:
            self._fetching = SimpleQueue()
            # It ends with the process, also in the middle of a shard: nothing half-written keeps its name.
            threading.Thread(target=self._fetch, args=(self._fetching,), name="prefetch", daemon=True).start()
        for shard in shards:
            self._fetching.put(shard)

    def close(self) -> None:
        """Lets go of all open shards; so does the end of the reader."""
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
                continue  # the log says so, and whoever needs it is told
            except UserError as error:
                logger.warning("Shards are not fetched ahead: %s", error)

    def _source(self, number: int, member: Member, start: int, stop: int) -> Tensor:
        """Frames of a member; what could not be read is opened anew the next time, for it may have been repaired."""
        # To fetch a shard takes what it takes; the store has limits of its own for that.
        patience = self._timeout_seconds if self._store.is_local else None
        try:
            is_open = number in self._open
            file = self._shard(number) if is_open else within(patience, lambda: self._shard(number))
            return within(self._timeout_seconds, lambda: read_member(file, member, start, stop))
        except TimeoutError as error:
            self._open.pop(number, None)  # not closed, which would hang as well
            reason = f"takes longer to read than data.read_timeout_seconds={self._timeout_seconds:g}"
            raise self._store.given_up(self.shards[number], reason) from error
        except AudioFileError:
            if number in self._open:
                self._open.pop(number).close()
            raise

    def _resampler(self, member: Member) -> PartResampler:
        key = (member.sample_rate, member.channels)
        if key not in self._resamplers:
            member.info().require_channels(self.channels)
            self._resamplers[key] = member.info().resampler(self.sample_rate)
        return self._resamplers[key]

    def _member(self, track_index: int) -> Member:
        if track_index not in self._seen:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[track_index] = self._found(track_index)
        return self._seen[track_index]

    def _found(self, track_index: int) -> Member:
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
