"""What a corpus says of its tracks, where they come from several tables or from one that says little."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from corpus_tables import corpus_of_rows
from music_files import noisy_tones, write_raw

from datamodules.corpora.manifest import source_names, write_manifest
from datamodules.corpora.manifest_corpus import load_manifests
from datamodules.data_config import DataConfig
from datamodules.stereo_music import StereoMusicDataModule


@pytest.mark.parametrize("extension", [".parquet", ".csv"])
def test_scanned_and_prepared_tracks_know_what_they_were_called(tmp_path: Path, extension: str) -> None:
    scanned = corpus_of_rows([{"corpus": "one", "name": "a.wav"}]).table
    pieces = [
        {"corpus": "two", "name": f"b.flac#{n}", "source_name": "b.wav", "piece_start_seconds": 5.0 * n}
        for n in range(2)
    ]
    write_manifest(scanned, tmp_path / f"scanned{extension}")
    write_manifest(corpus_of_rows(pieces).table, tmp_path / f"prepared{extension}")
    paths = [tmp_path / f"{name}{extension}" for name in ("scanned", "prepared")]
    for order in (paths, paths[::-1]):
        corpus = load_manifests(order)
        assert corpus.sources.tolist() == ["a.wav", "b.wav", "b.wav"]
        assert corpus.starts.tolist() == [0.0, 0.0, 5.0]
    assert load_manifests(paths[:1]).sources.tolist() == ["a.wav"]
    assert load_manifests(paths[:1]).starts.tolist() == [0.0]


@pytest.mark.parametrize("empty", [None, "", float("nan")])
def test_an_empty_source_name_is_the_name(empty: object) -> None:
    table = pd.DataFrame({"name": ["a", "b"], "source_name": [empty, "old"]})
    assert source_names(table).tolist() == ["a", "old"]


def test_a_table_of_the_needed_columns_alone_can_be_trained_on(tmp_path: Path) -> None:
    for index in range(4):
        write_raw(tmp_path / "music" / f"{index}.wav", noisy_tones(2.0, 48000, index), 48000)
    rows = "".join(f"{tmp_path}/music,{index}.wav,48000,2,96000\n" for index in range(4))
    path = tmp_path / "own.csv"
    path.write_text(f"root,name,sample_rate,channels,frames\n{rows}", encoding="utf-8")
    config = DataConfig(manifests=(str(path),), batch_size=2, crop_seconds=0.5, held_out_fraction=0.0)
    data = StereoMusicDataModule(config)
    assert next(iter(data.train_dataloader())).shape == (2, 2, 24000)
    assert [track.size_bytes for track in data.corpus.tracks] == [None] * 4


def test_a_size_that_is_known_beside_one_that_is_not() -> None:
    corpus = corpus_of_rows([{"size_bytes": 1000}, {"size_bytes": None}, {"size_bytes": 0}])
    assert [track.size_bytes for track in corpus.tracks] == [1000, None, 0]


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("a", "a")], ids=["names of their own", "alike"])
def test_pieces_are_called_as_the_music_that_was_scanned(first: str, second: str) -> None:
    scanned = corpus_of_rows([{"corpus": "x", "name": first}, {"corpus": "y", "name": second}])
    pieces = [
        {"corpus": name, "name": f"{name}/{track}.wav#{n}", "source_name": track, "piece_start_seconds": 5.0 * n}
        for name, track in (("x", first), ("y", second))
        for n in range(2)
    ]
    tracks = [track.name for track in scanned.tracks]
    assert scanned.source_tracks.tolist() == tracks
    assert corpus_of_rows(pieces).source_tracks.tolist() == [tracks[0], tracks[0], tracks[1], tracks[1]]


def test_tracks_of_two_folders_in_one_corpus_keep_names_of_their_own() -> None:
    names = ("x/a.wav#0", "x/a.wav#1", "x-2/a.wav#0", "x-2/a.wav#1")
    pieces = [
        {"corpus": "x", "name": name, "source_name": "a.wav", "piece": int(name[-1]), "piece_start_seconds": 5.0 * n}
        for name, n in zip(names, (0, 1, 0, 1), strict=True)
    ]
    assert corpus_of_rows(pieces).source_tracks.tolist() == ["x-2/a.wav", "x-2/a.wav", "x/a.wav", "x/a.wav"]
    files = [{"corpus": "x", "name": name, "source_name": "a.wav"} for name in ("x/a.wav.flac", "x-2/a.wav.flac")]
    assert corpus_of_rows(files).source_tracks.tolist() == ["x-2/a.wav.flac", "x/a.wav.flac"]
