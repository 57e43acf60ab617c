"""Music that does not answer: which tracks are not asked for a while, so that a dead mount costs few time-outs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.corpora.corpus import Tracks

# What hung is not asked again so soon; twice as long whenever it hangs again, for each try leaves a thread behind.
_LOST_SECONDS = 600.0
# So many reads in a row hang, and it is no single file: a mount is gone.
_HANGS_OF_A_FOLDER = 3
# To give up most of the music may end a training, so a server has some minutes to come back.
_HANGS_OF_MOST_MUSIC = 10


@dataclass(frozen=True)
class _Lost:
    """Until when, on the monotonic clock, and how long that was when it began; the tracks that are lost with it."""

    until: float
    seconds: float
    tracks: frozenset[int]


class HangingMusic:
    """Which tracks are not asked for a while: those that hung, and all below a folder where read after read did.

    Each read that hangs costs its time-out and a thread. So where three in a row did that lie below one folder, and
    nothing below it answered between them, it is taken for a mount that is gone. No folder above the corpus' own.
    """

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks
        # How many reads in a row hung, by track and by folder.
        self._hangs: dict[Path, int] = {}
        self._lost: dict[Path, _Lost] = {}

    def lost_place(self, track_index: int) -> Path | None:
        """The largest folder around the track, or the track, that is not to be asked now; None where it is."""
        if not self._lost:
            return None
        now = time.monotonic()
        for place in reversed(self._places(track_index)):
            # Asked by the thread that reads, while another may note an answer.
            lost = self._lost.get(place)
            if lost is not None and now < lost.until:
                return place
        return None

    def lost_with(self, track_index: int) -> frozenset[int]:
        """The tracks that are not to be asked either when this one is not."""
        place = self.lost_place(track_index)
        return frozenset({track_index}) if place is None else self._lost[place].tracks

    def note_answer(self, track_index: int) -> None:
        """Something came back in time, music or an error."""
        if self._hangs:
            for place in self._places(track_index):
                self._hangs.pop(place, None)
                self._lost.pop(place, None)

    def note_hang(self, track_index: int) -> Path:
        """Nothing came back: the track or the folder that is lost by it."""
        places = self._places(track_index)
        for place in places:
            self._hangs[place] = self._hangs.get(place, 0) + 1
        place = self._place_to_lose(places)
        seconds = 2 * self._lost[place].seconds if place in self._lost else _LOST_SECONDS
        tracks = {track_index} if place == places[0] else self._tracks.below(place).tolist()
        self._lost[place] = _Lost(time.monotonic() + seconds, seconds, frozenset(tracks))
        return place

    def _places(self, track_index: int) -> Sequence[Path]:
        """The track and the folders around it, up to the corpus' own."""
        path, root = self._tracks[track_index].path, self._tracks.root_of(track_index)
        return [path, *itertools.takewhile(lambda folder: folder.is_relative_to(root), path.parents)]

    def _place_to_lose(self, places: Sequence[Path]) -> Path:
        track, *folders = places
        hanging = [folder for folder in folders if self._hangs[folder] >= self._hangs_to_lose(folder)]
        # What was lost before is lost again as a whole, else each folder in it would cost reads of its own.
        again = [folder for folder in hanging if folder in self._lost]
        # A folder around the mount may have other music, which happened not to be asked in between.
        return again[-1] if again else [*hanging, track][0]

    def _hangs_to_lose(self, folder: Path) -> int:
        if self._hangs[folder] < _HANGS_OF_A_FOLDER:
            return _HANGS_OF_A_FOLDER
        is_most = 2 * len(self._tracks.below(folder)) > len(self._tracks)
        return _HANGS_OF_MOST_MUSIC if is_most else _HANGS_OF_A_FOLDER
