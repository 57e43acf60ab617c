"""Crops that go through the shards in windows, so that few shards are needed at a time: pure functions of the key.

What random access over everything would be: every shard of a remote corpus is needed all the time. Here a rank draws
from a window of a few shards, for as long as it takes to hear its music once, and then from the next window.

A round is as many epochs as there are ranks. For each round the shards are shuffled and dealt into as many hands as
there are ranks; in each epoch of the round the ranks have the hands in turn, each in an order of its own. So in an
epoch no two ranks have the same shard and together they have all, and in a round every rank has all of them, which
makes rounds equally long for all ranks: where a batch lies can be computed without knowing what came before it.

A rank goes from window to window when it has drawn its share, not when the others have: hands are not equally long. So
near the end of an epoch two ranks may hold the same shard for a while, which costs traffic; their crops differ.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datamodules.corpora.time_ranges import TimeRanges, hashed_number
from datamodules.crops import Crop, RandomCrops, span_mass

Window = tuple[int, ...]

_REMEMBERED = 4


@dataclass(frozen=True)
class _Round:
    """A rank's windows in a round, the epoch (counted from the first) of each, and how much of the music lies before
    the end of each; `offset` is where in the music the round's draws begin.
    """

    windows: tuple[Window, ...]
    epochs: np.ndarray
    mass_until: np.ndarray
    offset: int


class WindowedCrops:
    """Crops that start with equal probability at every sample at which a whole crop fits, seen over a round of epochs.

    `crop_for` is that of `RandomCrops`. All ranks of a run need the same arguments.

    Args:
        spans: where crops may lie; those shorter than a crop are not used, shards without spans are not visited.
        shard_of_track: the number of its shard for each track, int64 `[tracks]`.
        batch_size: slots of a rank: slot // batch_size is the rank.
        world_size: number of ranks.
        crop_seconds: length of a crop.
        sample_rate: in Hz; crops start on whole samples of it.
        window_shards: how many shards a rank draws from at a time.
        passes: how often the music of a window is heard before the next one comes.
        weights: how much more likely than others each span is, second for second, float64 `[spans]`; 0 is never.
        gain_db_range: lowest and highest gain, uniform in dB.
        swap_channels_probability: of exchanging left and right.
        announce: is told of the window after the present one whenever a window begins, so that it can be fetched.

    Raises:
        ValueError: no span with a weight holds a crop, or a number that is not possible.
    """

    def __init__(
        self,
        spans: TimeRanges,
        shard_of_track: np.ndarray,
        *,
        batch_size: int,
        world_size: int = 1,
        crop_seconds: float,
        sample_rate: int,
        window_shards: int = 4,
        passes: float = 1.0,
        weights: np.ndarray | None = None,
        gain_db_range: tuple[float, float] = (0.0, 0.0),
        swap_channels_probability: float = 0.0,
        announce: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        if not (batch_size >= 1 and world_size >= 1 and window_shards >= 1 and passes > 0):
            raise ValueError(f"{batch_size=}, {world_size=}, {window_shards=} must be 1 or more, {passes=} above 0")
        weights = np.ones(len(spans)) if weights is None else np.asarray(weights, np.float64)
        starts = spans.start_counts(crop_seconds, sample_rate)
        mass = span_mass(starts, weights)
        if not mass.any():
            raise ValueError(
                f"none of {len(spans)} training spans holds a crop of {crop_seconds:g} s; lower data.crop_seconds"
            )
        self._batch_size = batch_size
        self._world_size = world_size
        self._window_shards = window_shards
        self._announce = announce
        self._announced: Window = ()
        self._spans, self._weights = spans.at(mass > 0), weights[mass > 0]
        self._span_shards = np.asarray(shard_of_track)[self._spans.tracks]
        self._shards, numbers = np.unique(self._span_shards, return_inverse=True)
        self._shard_mass = np.zeros(len(self._shards), np.int64)
        np.add.at(self._shard_mass, numbers, mass[mass > 0])
        self._total = int(self._shard_mass.sum())
        heard = int(starts[mass > 0].sum())
        # How many crops a rank draws in a round, which has all of the music `passes` times.
        self.crops_per_round = max(1, round(passes * heard / (crop_seconds * sample_rate)))
        self._crop_options = {
            "crop_seconds": crop_seconds,
            "sample_rate": sample_rate,
            "gain_db_range": gain_db_range,
            "swap_channels_probability": swap_channels_probability,
        }
        self._rounds: OrderedDict[tuple[int, int, int], _Round] = OrderedDict()
        self._crops: OrderedDict[Window, RandomCrops] = OrderedDict()

    @cached_property
    def track_indices(self) -> frozenset[int]:
        """The tracks that crops are drawn from."""
        return frozenset(self._spans.tracks.tolist())

    def windows(self, seed: int, epoch: int, rank: int) -> list[Window]:
        """The numbers of the shards that the rank visits in the epoch, by window."""
        number, within = divmod(epoch, self._world_size)
        plan = self._round(seed, number, rank)
        return [window for window, part in zip(plan.windows, plan.epochs, strict=True) if part == within]

    def window_at(self, seed: int, step: int, slot: int) -> Window:
        """The shards that the crop for `slot` of batch `step` is drawn from."""
        plan, place = self._place(seed, step, slot)
        return plan.windows[place]

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """The crop for `slot` of batch `step`; `attempt` counts redraws, `without` names tracks to leave out.

        Where a window has no other tracks than those that are left out, the crop is one of the next window.

        Raises ValueError: no tracks are left.
        """
        plan, place = self._place(seed, step, slot)
        for ahead in range(len(plan.windows)):
            crops = self._crops_of(plan.windows[(place + ahead) % len(plan.windows)])
            if not without or crops.track_indices - without:
                self._tell(plan.windows, place)
                return crops.crop_for(seed, step, slot, attempt=attempt, without=without)
        raise ValueError(f"all {len(self.track_indices)} training tracks are left out")

    def _place(self, seed: int, step: int, slot: int) -> tuple[_Round, int]:
        rank, own_slot = divmod(slot, self._batch_size)
        number, index = divmod(step * self._batch_size + own_slot, self.crops_per_round)
        plan = self._round(seed, number, rank)
        # Evenly through the round's music, from a random place in it: each window gets its share to within one crop,
        # and exactly its share on average.
        position = (index * self._total + plan.offset) // self.crops_per_round
        return plan, int(np.searchsorted(plan.mass_until, position, side="right"))

    def _tell(self, windows: Sequence[Window], place: int) -> None:
        if self._announce is None or windows[place] == self._announced:
            return
        self._announced = windows[place]
        self._announce(windows[(place + 1) % len(windows)])

    def _round(self, seed: int, number: int, rank: int) -> _Round:
        key = (seed, number, rank)
        if key not in self._rounds:
            self._rounds[key] = self._dealt(seed, number, rank)
            if len(self._rounds) > _REMEMBERED * self._world_size:
                self._rounds.popitem(last=False)
        return self._rounds[key]

    def _dealt(self, seed: int, number: int, rank: int) -> _Round:
        shuffled = _shuffled(range(len(self._shards)), f"{seed}:{number}")
        windows: list[Window] = []
        epochs: list[int] = []
        mass: list[int] = []
        for within in range(self._world_size):
            hand = shuffled[(rank + within) % self._world_size :: self._world_size]
            for window in _chunks(_shuffled(hand, f"{seed}:{number}:{within}"), self._window_shards):
                windows.append(tuple(self._shards[window].tolist()))
                epochs.append(within)
                mass.append(int(self._shard_mass[window].sum()))
        offset = hashed_number(f"{seed}:{number}:{rank}:offset") * self._total >> 64
        return _Round(tuple(windows), np.array(epochs), np.cumsum(mass), offset)

    def _crops_of(self, window: Window) -> RandomCrops:
        if window not in self._crops:
            which = np.isin(self._span_shards, window)
            self._crops[window] = RandomCrops(
                self._spans.at(which),
                weights=self._weights[which],
                **self._crop_options,  # type: ignore[arg-type]
            )
            if len(self._crops) > _REMEMBERED * self._world_size:
                self._crops.popitem(last=False)
        return self._crops[window]


def _shuffled(shards: Sequence[int], key: str) -> list[int]:
    """In an order that is the same on every machine and with every library version."""
    return sorted(shards, key=lambda shard: hashed_number(f"{key}:{shard}"))


def _chunks(shards: list[int], longest: int) -> list[list[int]]:
    """As few as possible, about equally long."""
    count = -(-len(shards) // longest)
    edges = [len(shards) * chunk // count for chunk in range(count + 1)] if count else [0]
    return [shards[start:stop] for start, stop in itertools.pairwise(edges)]
