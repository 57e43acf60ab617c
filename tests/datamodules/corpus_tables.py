"""Corpora that exist as tables alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from datamodules.corpora.corpus import Corpus

COMMON = {"corpus": "folder", "root": "/music", "sample_rate": 48000, "channels": 2, "size_bytes": 1000}


def table_of_rows(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Ten-second tracks 0000.wav, 0001.wav, .. with what the rows say of them."""
    return pd.DataFrame([{"name": f"{i:04d}.wav", "frames": 480000, **COMMON, **row} for i, row in enumerate(rows)])


def corpus_of_rows(rows: Sequence[Mapping[str, object]]) -> Corpus:
    """The same as a corpus."""
    return Corpus("/music", table_of_rows(rows))


def corpus_of_lengths(durations: Sequence[float]) -> Corpus:
    """Tracks of so many seconds."""
    return corpus_of_rows([{"frames": round(seconds * 48000)} for seconds in durations])
