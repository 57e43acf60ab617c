"""MUSDB18-HQ: 150 songs as WAV, mixture and four stems each (https://zenodo.org/records/3338373)."""

from __future__ import annotations

from pathlib import Path

from datamodules.layouts.contract import Entry, Found
from datamodules.layouts.corpus_files import CorpusFiles, Shape

_SHAPE = Shape(
    "MUSDB18-HQ", "train/<artist - title>/mixture.wav and test/<artist - title>/mixture.wav", "*/*/mixture.wav"
)
_MIXTURE = "mixture.wav"
_STEMS = frozenset({"vocals.wav", "drums.wav", "bass.wav", "other.wav"})
# The songs of train/ that are for validation, as sigsep's `musdb` package lists them (configs/mus.yaml).
VALIDATION = frozenset(
    {
        "ANiMAL - Rockshow",
        "Actions - One Minute Smile",
        "Alexander Ross - Goodbye Bolero",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Fergessen - Nos Palpitants",
        "James May - On The Line",
        "Johnny Lokke - Promises & Lies",
        "Leaf - Summerghost",
        "Meaxic - Take A Step",
        "Patrick Talbot - A Reason To Leave",
        "Skelpolu - Human Mistakes",
        "Traffic Experiment - Sirens",
        "Triviul - Angelsaint",
        "Young Griffo - Pennies",
    }
)


def musdb18hq(root: Path) -> Found:
    """Find the mixtures, 150 in a complete corpus; the stems are no tracks.

    The validation split is the 14 songs of the `musdb` package. The artist is the name before " - ". There are no
    groups, because the official split has some artists on both sides.

    Raises:
        LayoutError: No mixtures at their places.
    """
    files = CorpusFiles(root, _SHAPE)
    songs = [name for name in files if _is_of_song(name)]
    mixtures = [name for name in songs if name.endswith(f"/{_MIXTURE}")]
    folders = {name.rpartition("/")[0] for name in mixtures}
    for name in songs:
        path = files.take(name)
        if name.rpartition("/")[0] not in folders:
            files.skip(path.parent, f"has stems but no {_MIXTURE}; copy it again")
    return files.found([_entry(name) for name in mixtures], f"is no {_MIXTURE} of a song in train/ or test/")


def _is_of_song(name: str) -> bool:
    match name.split("/"):
        case ["train" | "test", _, file]:
            return file == _MIXTURE or file in _STEMS
    return False


def _entry(name: str) -> Entry:
    side, song, _ = name.split("/")
    artist, dash, _ = song.partition(" - ")
    split = "validation" if side == "train" and song in VALIDATION else side
    return Entry(name, split=split, artist=artist if dash else "")
