"""Files that do not respond: which tracks are not read for a while, so that a dead mount costs few time-outs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.corpora.corpus import Tracks

# A track that hung is not read for this time. It doubles with each hang, because each try leaves a thread behind.
_LOST_SECONDS = 600.0
# After this many hangs in a row it is not a single file: a mount is gone.
_HANGS_OF_A_FOLDER = 3
# Without most of its music a training may end, so a server has some minutes to come back.
_HANGS_OF_MOST_MUSIC = 10


@dataclass(frozen=True)
class _Lost:
    """A track or folder that is not read for a while, with its tracks; `until` is on the monotonic clock."""

    until: float
    seconds: float
    tracks: frozenset[int]


class HangingMusic:
    """Knows which tracks are not read for a while: those that hung, and all in a folder where several reads hung.

    Each read that hangs costs its time-out and a thread. If three reads in one folder hang and none in it succeeds in
    between, the folder counts as a lost mount. Folders above the root of the corpus never do.
    """

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        # How many reads in a row hung, by track and by folder.
        self._hangs: dict[Path, int] = {}
        self._lost: dict[Path, _Lost] = {}

    def lost_place(self, track_index: int) -> Path | None:
        """Return the largest folder around the track that is not read now, or the track itself; None if it is read."""
        if not self._lost:
            return None
        now = time.monotonic()
        for place in reversed(self._places(track_index)):
            # The thread that reads calls this; another may call `note_answer` meanwhile.
            lost = self._lost.get(place)
            if lost is not None and now < lost.until:
                return place
        return None

    def lost_with(self, track_index: int) -> frozenset[int]:
        """Return the tracks that are not read either when this one is not."""
        place = self.lost_place(track_index)
        return frozenset({track_index}) if place is None else self._lost[place].tracks

    def note_answer(self, track_index: int) -> None:
        """Note that a read ended in time, with music or an error."""
        if self._hangs:
            for place in self._places(track_index):
                self._hangs.pop(place, None)
                self._lost.pop(place, None)

    def note_hang(self, track_index: int) -> Path:
        """Note that a read hung; return the track or folder that is not read from now on."""
        places = self._places(track_index)
        for place in places:
            self._hangs[place] = self._hangs.get(place, 0) + 1
        place = self._place_to_lose(places)
        seconds = 2 * self._lost[place].seconds if place in self._lost else _LOST_SECONDS
        tracks = {track_index} if place == places[0] else self._tracks.below(place).tolist()
        self._lost[place] = _Lost(time.monotonic() + seconds, seconds, frozenset(tracks))
        return place

    def _places(self, track_index: int) -> Sequence[Path]:
        """Return the track and the folders around it, up to the root of the corpus."""
        path, root = self._tracks[track_index].path, self._tracks.root_of(track_index)
        return [path, *itertools.takewhile(lambda folder: folder.is_relative_to(root), path.parents)]

    def _place_to_lose(self, places: Sequence[Path]) -> Path:
        track, *folders = places
        hanging = [folder for folder in folders if self._hangs[folder] >= self._hangs_to_lose(folder)]
        # A folder that was lost before is lost as a whole again, else each folder in it would cost reads of its own.
        again = [folder for folder in hanging if folder in self._lost]
        # A folder around the mount may have other music that was by chance not read in between.
        return again[-1] if again else [*hanging, track][0]

    def _hangs_to_lose(self, folder: Path) -> int:
        if self._hangs[folder] < _HANGS_OF_A_FOLDER:
            return _HANGS_OF_A_FOLDER
        is_most = 2 * len(self._tracks.below(folder)) > len(self._tracks)
        return _HANGS_OF_MOST_MUSIC if is_most else _HANGS_OF_A_FOLDER
