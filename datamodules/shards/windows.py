"""Crops that go through the shards in windows, so that few shards are needed at a time: pure functions of the key.

Random access to everything would need every shard of a remote corpus all the time. Here a rank draws from a window of
a few shards until it has drawn as much music as they hold, and then from the next window.

A round has as many epochs as there are ranks. In each round the shards are shuffled and dealt into one hand per rank.
In each epoch of the round every rank has another hand. So in an epoch the ranks have all shards together, and no two
ranks have the same shard. In a round every rank has all shards. Rounds are equally long for all ranks, so the place of
a batch can be computed without its past.

A rank goes to its next window when it has drawn its share, not when the others have. Hands are not equally long, so two
ranks may use the same shard for a while near the end of an epoch. That costs traffic; their crops differ.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from datamodules.corpora.time_ranges import hashed_number
from datamodules.crops import Crop, RandomCrops, range_mass

Window = tuple[int, ...]

# Rounds and windows that are remembered for each rank.
_REMEMBERED = 4


@dataclass(frozen=True)
class _Round:
    """A rank's windows in a round.

    Attributes:
        windows: In order.
        mass_until: The music up to the end of each window, int64 `[windows]`.
        offset: Where in the music the draws begin.
    """

    windows: tuple[Window, ...]
    mass_until: np.ndarray
    offset: int


class WindowedCrops:
    """Draws crops that start with equal probability at every sample at which a whole crop fits, over a round of epochs.

    All ranks of a run need the same arguments.

    Args:
        crops: Draws from all ranges. Shards without ranges are not visited.
        shard_of_track: The number of its shard for each track, int64 `[tracks]`.
        batch_size: Slots of a rank; slot // batch_size is the rank.
        world_size: Number of ranks.
        window_shards: How many shards a rank draws from at a time.
        passes: How often the music of a window is drawn before the next window.
        announce: Called with the shards of the next window when a window begins, so that they can be fetched.

    Attributes:
        track_indices: The tracks that crops are drawn from.
        crops_per_round: How many crops a rank draws in a round.

    Raises:
        ValueError: A number is not possible.
    """

    def __init__(
        self,
        crops: RandomCrops,
        shard_of_track: np.ndarray,
        *,
        batch_size: int,
        world_size: int = 1,
        window_shards: int = 4,
        passes: float = 1.0,
        announce: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        if not (batch_size >= 1 and world_size >= 1 and window_shards >= 1 and passes > 0):
            raise ValueError(f"{batch_size=}, {world_size=}, {window_shards=} must be 1 or more, {passes=} above 0")
        self._batch_size = batch_size
        self._world_size = world_size
        self._window_shards = window_shards
        self._announce = announce
        self._announced: Window = ()
        weights = np.ones(len(crops.ranges)) if crops.weights is None else crops.weights
        mass = range_mass(crops.starts, weights)
        used = mass > 0
        self._weights = weights[used]
        self._all = replace(crops, ranges=crops.ranges.at(used), weights=self._weights)
        self.track_indices = crops.track_indices
        self._shard_of_range = np.asarray(shard_of_track)[self._all.ranges.tracks]
        self._shards, numbers = np.unique(self._shard_of_range, return_inverse=True)
        self._shard_mass = np.zeros(len(self._shards), np.int64)
        np.add.at(self._shard_mass, numbers, mass[used])
        self._total = int(self._shard_mass.sum())
        samples = int(crops.starts[used].sum())
        self.crops_per_round = max(1, round(passes * samples / (crops.crop_seconds * crops.sample_rate)))
        self._rounds: OrderedDict[tuple[int, int, int], _Round] = OrderedDict()
        self._crops: OrderedDict[Window, RandomCrops] = OrderedDict()

    def crop_for(
        self, seed: int, step: int, slot: int, *, attempt: int = 0, without: AbstractSet[int] = frozenset()
    ) -> Crop:
        """Return the crop for `slot` of batch `step`, see `Draws`.

        If all tracks of the window are left out, the crop is one of the next window.

        Raises:
            ValueError: No tracks are left.
        """
        windows, place = self._place(seed, step, slot)
        for ahead in range(len(windows)):
            crops = self._crops_of(windows[(place + ahead) % len(windows)])
            if not without or crops.track_indices - without:
                self._announce_next(windows, place)
                return crops.crop_for(seed, step, slot, attempt=attempt, without=without)
        raise ValueError(f"all {len(self.track_indices)} training tracks are left out")

    def hands(self, seed: int, number: int, rank: int) -> list[list[Window]]:
        """Return the windows of the rank in each epoch of round `number`, as tuples of shard numbers."""
        shuffled = _shuffled(range(len(self._shards)), f"{seed}:{number}")
        hands = []
        for epoch in range(self._world_size):
            hand = shuffled[(rank + epoch) % self._world_size :: self._world_size]
            chunks = _chunks(_shuffled(hand, f"{seed}:{number}:{epoch}"), self._window_shards)
            hands.append([tuple(self._shards[chunk].tolist()) for chunk in chunks])
        return hands

    def _place(self, seed: int, step: int, slot: int) -> tuple[Sequence[Window], int]:
        """Return the windows of the round, and the index of the one that the crop is drawn from."""
        rank, own_slot = divmod(slot, self._batch_size)
        number, index = divmod(step * self._batch_size + own_slot, self.crops_per_round)
        plan = self._round(seed, number, rank)
        # Evenly through the round's music, from a random place in it: each window gets its share to within one crop,
        # and exactly its share on average.
        position = (index * self._total + plan.offset) // self.crops_per_round
        return plan.windows, int(np.searchsorted(plan.mass_until, position, side="right"))

    def _announce_next(self, windows: Sequence[Window], place: int) -> None:
        if self._announce is not None and windows[place] != self._announced:
            self._announced = windows[place]
            self._announce(windows[(place + 1) % len(windows)])

    def _round(self, seed: int, number: int, rank: int) -> _Round:
        key = (seed, number, rank)
        if key not in self._rounds:
            windows = tuple(itertools.chain.from_iterable(self.hands(seed, number, rank)))
            mass = [self._shard_mass[np.searchsorted(self._shards, window)].sum() for window in windows]
            offset = hashed_number(f"{seed}:{number}:{rank}:offset") * self._total >> 64
            self._rounds[key] = _Round(windows, np.cumsum(mass), offset)
            if len(self._rounds) > _REMEMBERED * self._world_size:
                self._rounds.popitem(last=False)
        return self._rounds[key]

    def _crops_of(self, window: Window) -> RandomCrops:
        if window not in self._crops:
            used = np.isin(self._shard_of_range, window)
            weights = self._weights[used]
            self._crops[window] = replace(self._all, ranges=self._all.ranges.at(used), weights=weights)
            if len(self._crops) > _REMEMBERED * self._world_size:
                self._crops.popitem(last=False)
        return self._crops[window]


def _shuffled(shards: Sequence[int], key: str) -> list[int]:
    """Shuffle, in the same order on every machine and with every library version."""
    return sorted(shards, key=lambda shard: hashed_number(f"{key}:{shard}"))


def _chunks(shards: list[int], longest: int) -> list[list[int]]:
    """Divide into the fewest chunks, about equally long."""
    count = -(-len(shards) // longest)
    edges = [len(shards) * chunk // count for chunk in range(count + 1)] if count else [0]
    return [shards[start:stop] for start, stop in itertools.pairwise(edges)]
