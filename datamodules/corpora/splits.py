"""Divide a corpus into training, validation and test ranges."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pandas
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.audio.find_files import AUDIO_EXTENSIONS
from datamodules.corpora.corpus import Corpus
from datamodules.corpora.manifest import SPLITS as SIDES
from datamodules.corpora.manifest import ManifestError, source_names
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.data_config import SPLITS

# A difference of two times may be shorter than expected by this.
_ROUNDING_SECONDS = 1e-9
# The extensions of a name; a converted file may have two: a.wav.flac.
_EXTENSION = rf"(?i:{'|'.join(map(re.escape, sorted(AUDIO_EXTENSIONS)))})+$"


@dataclass(frozen=True)
class Split:
    """Training ranges and held-out ranges, which share no music.

    Attributes:
        validation: Ranges for the validation during a training.
        test: Ranges for the evaluation.
        is_shared: True if validation and test are the same ranges: the corpus is divided within its tracks, or has too
            few held-out tracks for two sides.
        undivided: Tracks that are too short to be divided; they are in training as a whole.
        duplicates: Unused tracks. Directly or through other tracks, they have music or a group in common with a
            held-out track. Always empty for a corpus that is divided within its tracks.
    """

    train: TimeRanges
    validation: TimeRanges
    test: TimeRanges
    is_shared: bool
    undivided: tuple[int, ...] = ()
    duplicates: tuple[int, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Length of all training ranges, in seconds."""
        return self.train.seconds

    @property
    def held_out_seconds(self) -> float:
        """Length of all held-out ranges, in seconds."""
        return self.test.seconds if self.is_shared else self.validation.seconds + self.test.seconds


def split_corpus(
    corpus: Corpus,
    *,
    split: str = "end",
    held_out_seconds: float = 5.0,
    held_out_fraction: float = 0.25,
    gap_seconds: float = 0.1,
    minimum_seconds: float = 1.28,
) -> Split:
    """Divide the corpus; a pure function of its table.

    Args:
        corpus: What to divide.
        split: "end" holds out the end of each track. Copies with the same samples are divided at the same place, other
            renditions and encodings stay in training. "track" holds out whole tracks, by a hash of the group (album,
            ...) or of the name without extension, so new tracks do not move others to another side. "official" is each
            corpus' own split, and "track" for corpora without one.
        held_out_seconds: With "end", the length that is held out of each track.
        held_out_fraction: With "end", the largest part of a track that is held out; else about this part of the groups,
            half of it for validation and half for test.
        gap_seconds: With "end", unused audio between the sides, so that no resampler reads across the border.
        minimum_seconds: With "end", the shortest range. A track that is too short for two ranges is in training as a
            whole. If the border is in a piece of a track, shorter remainders of the piece are not used.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown, allowed are {', '.join(map(repr, SPLITS))}")
    if split == "end":
        return _divide_each_track(corpus, held_out_seconds, held_out_fraction, gap_seconds, minimum_seconds)
    return _divide_by_tracks(corpus, held_out_fraction, official=split == "official")


def _divide_each_track(
    corpus: Corpus, held_out_seconds: float, held_out_fraction: float, gap_seconds: float, minimum_seconds: float
) -> Split:
    ends = corpus.durations
    wholes = _whole_seconds(corpus)
    held = np.minimum(held_out_seconds, held_out_fraction * wholes)
    borders = wholes - held
    divided = (held > 0) & (held >= minimum_seconds) & (borders - gap_seconds >= minimum_seconds)
    # From here on, times are in the piece, not in the track.
    borders = borders - corpus.starts
    train_ends = np.where(divided, np.minimum(borders - gap_seconds, ends), ends)
    held_starts = np.maximum(borders, 0.0)
    every = np.arange(len(ends))
    shortest = minimum_seconds - _ROUNDING_SECONDS
    train = TimeRanges(every, np.zeros(len(ends)), train_ends).at(~divided | (train_ends >= shortest))
    held_out = TimeRanges(every, held_starts, ends).at(divided & (ends - held_starts >= shortest))
    return Split(train, held_out, held_out, is_shared=True, undivided=tuple(np.flatnonzero(~divided).tolist()))


def _whole_seconds(corpus: Corpus) -> np.ndarray:
    """Return the length of each row's whole track, equal for copies, so that all are divided at the same place."""
    if not corpus.starts.any():
        # Copies have the same length.
        return corpus.durations
    content = corpus.table["content_hash"]
    track = content.where(content != "", corpus.table["corpus"] + "/" + corpus.sources)
    return pandas.Series(corpus.starts + corpus.durations).groupby(track.to_numpy()).transform("max").to_numpy()


def _divide_by_tracks(corpus: Corpus, held_out_fraction: float, *, official: bool) -> Split:
    place = hash_places(corpus.table)
    choices = [place < held_out_fraction / 2, place < held_out_fraction]
    sides = np.select(choices, ["test", "validation"], "train").astype(object)
    if official:
        sides = _with_official_sides(corpus, sides)
    is_test, is_validation = sides == "test", sides == "validation"
    # If tracks are related, the test side keeps them, else the validation side.
    claims = np.select([is_test, is_validation], [2, 1], 0)
    unused = claims < pandas.Series(claims).groupby(_related(corpus)).transform("max").to_numpy()
    whole = TimeRanges(np.arange(len(sides)), np.zeros(len(sides)), corpus.durations)
    validation, test = whole.at(is_validation & ~unused), whole.at(is_test)
    is_shared = not len(validation) or not len(test)
    return Split(
        train=whole.at((sides == "train") & ~unused),
        validation=validation if len(validation) else test,
        test=test if len(test) else validation,
        is_shared=is_shared,
        duplicates=tuple(np.flatnonzero(unused).tolist()),
    )


def _related(corpus: Corpus) -> np.ndarray:
    """Return a number for each track, equal for related tracks, also if they are related through a third one.

    Tracks are related by the same samples, or in one corpus by the same group or the same name without extension.
    """
    table = corpus.table
    prefix = table["corpus"] + "/"
    # A silent track has the samples of all other silent tracks, but it does not relate their albums.
    is_music = (table["content_hash"] != "") & ~(table["silent_share"] >= 1)
    reasons = (
        table["content_hash"].where(is_music),
        (prefix + table["group"]).where(table["group"] != ""),
        prefix + _titles(table),
    )
    # The nodes of the graph are the tracks, and the values that they can have in common.
    tracks, common, nodes = [], [], len(table)
    for values in reasons:
        numbers, distinct = pandas.factorize(values)
        known = np.flatnonzero(numbers >= 0)
        tracks.append(known)
        common.append(nodes + numbers[known])
        nodes += len(distinct)
    edges = np.concatenate(tracks), np.concatenate(common)
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][: len(table)]


def hash_places(table: pandas.DataFrame) -> np.ndarray:
    """Return a number in [0, 1) for each row, a hash of its group or name; held-out tracks have low numbers."""
    numbers, groups = pandas.factorize(table["group"].where(table["group"] != "", _titles(table)))
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in groups)
    return (np.frombuffer(digests, ">u8").astype(np.float64) / 2**64)[numbers]


def _titles(table: pandas.DataFrame) -> pandas.Series:
    """Return the name of each track at its scan without the extension: a song may exist as .flac and as .mp3."""
    return source_names(table).str.replace(_EXTENSION, "", regex=True)


def _with_official_sides(corpus: Corpus, by_hash: np.ndarray) -> np.ndarray:
    """Return the official sides; a corpus without validation or test gets that side from its training, by hash."""
    named = corpus.table["split"]
    unknown = sorted(set(named.unique()) - {*SIDES, ""})
    if unknown:
        raise ManifestError(
            f"The column 'split' of {corpus.where} has {', '.join(map(repr, unknown))}; allowed are {', '.join(SIDES)} "
            "and nothing, or type data.split=track"
        )
    sides = named.where(named.isin(SIDES), "train").to_numpy(object)
    for rows in corpus.table.groupby("corpus").indices.values():
        named_here = set(sides[rows])
        for side in {"validation", "test"} - named_here:
            sides[rows] = np.where((sides[rows] == "train") & (by_hash[rows] == side), side, sides[rows])
    return sides
