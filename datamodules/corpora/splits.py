"""Which seconds of a corpus are trained on, validated on, and kept for the evaluation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.audio.find_files import AUDIO_EXTENSIONS
from datamodules.corpora.corpus import Corpus
from datamodules.corpora.manifest import SPLITS as SIDES
from datamodules.corpora.manifest import ManifestError, source_names
from datamodules.corpora.spans import Spans
from datamodules.data_config import SPLITS

# What is left after a subtraction may be shorter by so much than it was asked to be.
_ROUNDING_SECONDS = 1e-9
# Of a name, also of what was converted: a.wav.flac.
_EXTENSION = rf"(?i:{'|'.join(map(re.escape, sorted(AUDIO_EXTENSIONS)))})+$"


@dataclass(frozen=True)
class Split:
    """Training spans and held-out ones, which share no music.

    validation, test: what is looked at in training, and what the evaluation reads. They share no music either, unless
        `is_shared`: a corpus divided within its tracks, or with too few held-out tracks for two sides, has one
        held-out part for both.
    undivided: tracks too short to be divided, wholly in training.
    duplicates: tracks that are used nowhere, because the same music, or another rendition of the same group, stands on
        a side that is held out, itself or through further tracks; see `split_spans` for a corpus divided within them.
    """

    train: Spans
    validation: Spans
    test: Spans
    is_shared: bool
    undivided: tuple[int, ...] = ()
    duplicates: tuple[int, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Length of all training spans, in seconds."""
        return self.train.seconds

    @property
    def held_out_seconds(self) -> float:
        """Length of all that is held out, in seconds."""
        return self.test.seconds if self.is_shared else self.validation.seconds + self.test.seconds


def split_spans(
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
        corpus: what to divide.
        split: "end" holds out the end of each track, at the same place in its copies with the same samples, and leaves
            other renditions and encodings in training; "track" whole tracks, chosen by a hash of the group (album, ...)
            or of the name without its extension, so that adding tracks moves no other track to another side;
            "official" is each corpus' own division, and "track" for those which have none.
        held_out_seconds: with "end", how much of each track.
        held_out_fraction: with "end", at most this part of a track; else about this part of the groups, half of it for
            the validation and half for the test.
        gap_seconds: with "end", used by neither side, so that no resampler or decoder looks across the border.
        minimum_seconds: with "end", a span is at least this long; a track too short for two is training as a whole.
            Of a track in pieces, what a border leaves of a piece is not used where it is shorter.
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
    # From here on within the piece, not within the track.
    borders = borders - corpus.starts
    train_ends = np.where(divided, np.minimum(borders - gap_seconds, ends), ends)
    held_starts = np.maximum(borders, 0.0)
    every = np.arange(len(ends))
    shortest = minimum_seconds - _ROUNDING_SECONDS
    train = Spans(every, np.zeros(len(ends)), train_ends).at(~divided | (train_ends >= shortest))
    held_out = Spans(every, held_starts, ends).at(divided & (ends - held_starts >= shortest))
    return Split(train, held_out, held_out, is_shared=True, undivided=tuple(np.flatnonzero(~divided).tolist()))


def _whole_seconds(corpus: Corpus) -> np.ndarray:
    """How long the track is that each row has a piece of, the same for its copies: so all are divided at one place."""
    if not corpus.starts.any():
        # Copies have as many samples each.
        return corpus.durations
    content = corpus.table["content_hash"]
    track = content.where(content != "", corpus.table["corpus"] + "/" + corpus.sources)
    return pandas.Series(corpus.starts + corpus.durations).groupby(track.to_numpy()).transform("max").to_numpy()


def _divide_by_tracks(corpus: Corpus, held_out_fraction: float, *, official: bool) -> Split:
    sides = _sides_by_hash(corpus, held_out_fraction)
    if official:
        sides = _with_official_sides(corpus, sides)
    is_test, is_validation = sides == "test", sides == "validation"
    # The nearer to the final judgement, the stronger the claim.
    claims = np.select([is_test, is_validation], [2, 1], 0)
    unused = claims < pandas.Series(claims).groupby(_related(corpus)).transform("max").to_numpy()
    whole = Spans(np.arange(len(sides)), np.zeros(len(sides)), corpus.durations)
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
    """A number for each track, the same where tracks have music in common, be it through a third one.

    They do if they have the same samples, or within a corpus the same group or the same name but for the extension.
    """
    table = corpus.table
    prefix = table["corpus"] + "/"
    # Silence is no music: through it all albums with a silent track would be one.
    is_music = (table["content_hash"] != "") & ~(table["silent_share"] >= 1)
    reasons = (
        table["content_hash"].where(is_music),
        (prefix + table["group"]).where(table["group"] != ""),
        prefix + _titles(table),
    )
    # A graph of tracks and of what they can have in common.
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
    """A number in [0, 1) for each track of a manifest, by a hash of its group or name: those held out have low ones."""
    numbers, groups = pandas.factorize(table["group"].where(table["group"] != "", _titles(table)))
    return _in_unit_interval(groups.to_list())[numbers]


def _titles(table: pandas.DataFrame) -> pandas.Series:
    """What each track was called when it was scanned, without the extension: a song may lie as .flac and as .mp3."""
    return source_names(table).str.replace(_EXTENSION, "", regex=True)


def _sides_by_hash(corpus: Corpus, held_out_fraction: float) -> np.ndarray:
    """The side of each track: test, validation and train from the smallest hashes to the largest."""
    place = hash_places(corpus.table)
    choices = [place < held_out_fraction / 2, place < held_out_fraction]
    return np.select(choices, ["test", "validation"], "train").astype(object)


def _with_official_sides(corpus: Corpus, by_hash: np.ndarray) -> np.ndarray:
    """The corpus' own sides; where a corpus names no side of one kind, that side comes from its training by hash."""
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


def _in_unit_interval(names: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, ">u8").astype(np.float64) / 2**64
