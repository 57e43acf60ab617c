from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from corpus_tables import corpus_of_rows

from datamodules.audio_files import read_audio
from datamodules.data_config import DataConfig
from datamodules.folder_corpus import scan_folder
from datamodules.manifest import write_manifest
from datamodules.segments import SegmentsError, read_segments, write_segments
from datamodules.spans import Span, Spans
from datamodules.splits import split_spans
from datamodules.stereo_music import StereoMusicDataModule

ROWS = [{"split": "test", "content_hash": "x"}, {"split": "test"}, {"split": "train"}, {"split": "validation"}]
CORPUS = corpus_of_rows(ROWS)
SPLIT = split_spans(CORPUS, split="official")


def table_of(path: Path, **changes: object) -> Path:
    row = {"corpus": "folder", "track": "0000.wav", "start_seconds": 1.0, "duration_seconds": 2.0, "content_hash": "x"}
    pd.DataFrame([row | changes]).to_csv(path, index=False)
    return path


def test_a_table_keeps_segments_to_the_sample(tmp_path: Path) -> None:
    spans = Spans.of([Span(1, 0.0, 10.0), Span(0, 61441 / 48000, 7.5)])
    write_segments(tmp_path / "s.csv", CORPUS, spans)
    again = read_segments(tmp_path / "s.csv", CORPUS, SPLIT)
    assert again.tracks.tolist() == [1, 0]
    assert [round(second * 48000) for second in again.starts] == [0, 61441]
    assert again.seconds == pytest.approx(spans.seconds, abs=1e-8)


def test_a_table_finds_its_tracks_in_a_corpus_that_has_grown(tmp_path: Path) -> None:
    write_segments(tmp_path / "s.csv", CORPUS, Spans.of([Span(1, 0.0, 10.0)]))
    known = [{"name": f"{index:04d}.wav", **row} for index, row in enumerate(ROWS)]
    grown = corpus_of_rows([{"name": "0000-new.wav", "split": "test"}, *known])
    (segment,) = read_segments(tmp_path / "s.csv", grown, split_spans(grown, split="official"))
    assert grown.tracks[segment.track_index].name == "0001.wav"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"track": "gone.wav"}, r"1 of 1 tracks are not in the corpus, the first 'gone\.wav'"),
        ({"content_hash": "y"}, "'0000.wav' at 1.000 s holds other music"),
        ({"duration_seconds": 9.5}, "goes beyond the end"),
        ({"duration_seconds": 0.0}, "has no length"),
        ({"start_seconds": -1.0}, "has no length"),
        ({"track": "0002.wav"}, "'0002.wav' at 1.000 s is trained on"),
        ({"start_seconds": "soon"}, "no numbers in"),
    ],
)
def test_segments_that_cannot_be_used(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = table_of(tmp_path / "s.csv", **changes)
    with pytest.raises(SegmentsError, match=message) as caught:
        read_segments(path, CORPUS, SPLIT)
    assert "spectrostream data segments" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"track\nx\n", "no column corpus, start"), (b"\xff", "cannot be read")],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "s.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SegmentsError, match=message):
        read_segments(path, CORPUS, SPLIT)


def test_the_data_module_reads_the_listed_segments(music_folder: Path, tmp_path: Path) -> None:
    write_manifest(scan_folder(music_folder).table, tmp_path / "m.parquet")
    config = DataConfig(manifests=(str(tmp_path / "m.parquet"),), split="end", held_out_fraction=0.5)
    data = StereoMusicDataModule(config)
    held_out = data.split.test[1]
    segment = Span(held_out.track_index, held_out.start_seconds + 0.5, held_out.start_seconds + 1.5)
    write_segments(tmp_path / "s.csv", data.corpus, Spans.of([segment]))
    listed = StereoMusicDataModule(DataConfig(**{**config.__dict__, "evaluation_segments": str(tmp_path / "s.csv")}))
    (excerpt,) = listed.held_out_excerpts(limit=50)
    path = music_folder / excerpt.track
    expected = read_audio(path, start_seconds=excerpt.start_seconds, duration_seconds=1.0)
    torch.testing.assert_close(excerpt.audio, expected, atol=1e-5, rtol=0)


def test_a_table_also_holds_for_the_pieces_that_were_made_of_the_tracks(tmp_path: Path) -> None:
    write_segments(tmp_path / "s.csv", CORPUS, Spans.of([Span(1, 6.0, 9.0), Span(0, 0.5, 2.5)]))
    pieces = [
        {
            "name": f"folder/{index:04d}.wav.flac#{piece}",
            "source_name": f"{index:04d}.wav",
            "piece_start_seconds": 5.0 * piece,
            "frames": 240000,
            **row,
        }
        for index, row in enumerate(ROWS)
        for piece in range(2)
    ]
    prepared = corpus_of_rows(pieces)
    one, other = read_segments(tmp_path / "s.csv", prepared, split_spans(prepared, split="official"))
    assert prepared.tracks[one.track_index].name == "folder/0001.wav.flac#1"
    assert (one.start_seconds, one.end_seconds) == pytest.approx((1.0, 4.0))
    assert prepared.tracks[other.track_index].name == "folder/0000.wav.flac#0"
    write_segments(tmp_path / "again.csv", prepared, Spans.of([one, other]))
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "s.csv").read_text()
    across = table_of(tmp_path / "across.csv", start_seconds=4.0)
    with pytest.raises(SegmentsError, match="or of a piece of it"):
        read_segments(across, prepared, split_spans(prepared, split="official"))
