from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from corpus_tables import corpus_of_rows, table_of_rows

from datamodules.audio.files import read_audio
from datamodules.corpora.corpus import Corpus
from datamodules.corpora.folder_corpus import scan_folder
from datamodules.corpora.manifest import write_manifest
from datamodules.corpora.segments import SegmentsError, read_segments, segments_fingerprint, write_segments
from datamodules.corpora.splits import split_corpus
from datamodules.corpora.time_ranges import TimeRange, TimeRanges
from datamodules.data_config import DataConfig
from datamodules.stereo_music import StereoMusicDataModule

ROWS = [{"split": "test", "content_hash": "x"}, {"split": "test"}, {"split": "train"}, {"split": "validation"}]
CORPUS = corpus_of_rows(ROWS)
SPLIT = split_corpus(CORPUS, split="official")


def table_of(path: Path, **changes: object) -> Path:
    row = {"corpus": "folder", "track": "0000.wav", "start_seconds": 1.0, "duration_seconds": 2.0, "content_hash": "x"}
    pd.DataFrame([row | changes]).to_csv(path, index=False)
    return path


def test_a_table_keeps_segments_to_the_sample(tmp_path: Path) -> None:
    spans = TimeRanges.of([TimeRange(1, 0.0, 10.0), TimeRange(0, 61441 / 48000, 7.5)])
    write_segments(tmp_path / "s.csv", CORPUS, spans)
    one, other = (segment for (segment,) in read_segments(tmp_path / "s.csv", CORPUS, SPLIT))
    assert (one.track_index, other.track_index) == (1, 0)
    assert [round(segment.start_seconds * 48000) for segment in (one, other)] == [0, 61441]
    assert one.duration_seconds + other.duration_seconds == pytest.approx(spans.seconds, abs=1e-8)


def test_a_table_finds_its_tracks_in_a_corpus_that_has_grown(tmp_path: Path) -> None:
    write_segments(tmp_path / "s.csv", CORPUS, TimeRanges.of([TimeRange(1, 0.0, 10.0)]))
    known = [{"name": f"{index:04d}.wav", **row} for index, row in enumerate(ROWS)]
    grown = corpus_of_rows([{"name": "0000-new.wav", "split": "test"}, *known])
    ((segment,),) = read_segments(tmp_path / "s.csv", grown, split_corpus(grown, split="official"))
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
    segment = TimeRange(held_out.track_index, held_out.start_seconds + 0.5, held_out.start_seconds + 1.5)
    write_segments(tmp_path / "s.csv", data.corpus, TimeRanges.of([segment]))
    listed = StereoMusicDataModule(DataConfig(**{**config.__dict__, "evaluation_segments": str(tmp_path / "s.csv")}))
    (segment,) = listed.held_out_segments(limit=50)
    path = music_folder / segment.track
    expected = read_audio(path, start_seconds=segment.start_seconds, duration_seconds=1.0)
    torch.testing.assert_close(segment.audio, expected, atol=1e-5, rtol=0)


def pieces_of(rows: list[dict[str, object]], count: int = 2) -> pd.DataFrame:
    """The ten-second tracks of the rows in pieces of equal length, as they are called in shards."""
    pieces = [
        {
            "name": f"folder/{index:04d}.wav.flac#{piece}",
            "source_name": f"{index:04d}.wav",
            "piece_start_seconds": 10.0 / count * piece,
            "frames": 480000 // count,
            **row,
        }
        for index, row in enumerate(rows)
        for piece in range(count)
    ]
    return table_of_rows(pieces)


def places_in(table: Path, pieces: pd.DataFrame) -> list[list[tuple[str, float, float]]]:
    corpus = Corpus("shards", pieces)
    listed = read_segments(table, corpus, split_corpus(corpus, split="official"))
    return [
        [
            (corpus.tracks[part.track_index].name, round(part.start_seconds, 7), round(part.end_seconds, 7))
            for part in parts
        ]
        for parts in listed
    ]


def test_a_table_also_holds_for_the_pieces_that_were_made_of_the_tracks(tmp_path: Path) -> None:
    write_segments(
        tmp_path / "s.csv",
        CORPUS,
        TimeRanges.of([TimeRange(1, 6.0, 9.0), TimeRange(0, 0.5, 2.5), TimeRange(0, 0.0, 5.0)]),
    )
    assert places_in(tmp_path / "s.csv", pieces_of(ROWS)) == [
        [("folder/0001.wav.flac#1", 1.0, 4.0)],
        [("folder/0000.wav.flac#0", 0.5, 2.5)],
        [("folder/0000.wav.flac#0", 0.0, 5.0)],
    ]
    prepared = Corpus("shards", pieces_of(ROWS))
    listed = read_segments(tmp_path / "s.csv", prepared, split_corpus(prepared, split="official"))
    write_segments(tmp_path / "again.csv", prepared, TimeRanges.of(part for parts in listed for part in parts))
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "s.csv").read_text()


@pytest.mark.parametrize(
    ("count", "start", "seconds", "expected"),
    [
        (2, 4.0, 2.0, [(0, 4.0, 5.0), (1, 0.0, 1.0)]),
        (2, 5.0 - 1 / 48000, 1.0, [(0, 4.9999792, 5.0), (1, 0.0, 0.9999792)]),
        (5, 1.5, 5.0, [(0, 1.5, 2.0), (1, 0.0, 2.0), (2, 0.0, 2.0), (3, 0.0, 0.5)]),
        (5, 0.0, 10.0, [(piece, 0.0, 2.0) for piece in range(5)]),
        # Half samples, as somebody may type them: what is read is as long as the segment.
        (2, 4.00001, 2.00001, [(0, 4.0, 5.0), (1, 0.0, 1.0)]),
    ],
)
def test_a_segment_that_crosses_borders_has_parts(
    tmp_path: Path, count: int, start: float, seconds: float, expected: list[tuple[int, float, float]]
) -> None:
    table = table_of(tmp_path / "s.csv", start_seconds=start, duration_seconds=seconds)
    assert places_in(table, pieces_of(ROWS, count)) == [
        [(f"folder/0000.wav.flac#{piece}", begin, end) for piece, begin, end in expected]
    ]


@pytest.mark.parametrize("piece", range(5))
def test_a_piece_that_is_missing_is_missed_where_it_is_needed(tmp_path: Path, piece: int) -> None:
    table = table_of(tmp_path / "s.csv", start_seconds=2.5, duration_seconds=5.0)
    pieces = pieces_of(ROWS, 5).drop(index=piece)
    if piece in (0, 4):
        assert len(places_in(table, pieces)[0]) == 3
        return
    with pytest.raises(SegmentsError, match=r"2\.500 s goes beyond the end of its track, or lies in a piece"):
        places_in(table, pieces)


@pytest.mark.parametrize("piece", range(2))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"content_hash": "y"}, "holds other music"),
        ({"sample_rate": 44100, "frames": 220500}, "crosses the border of two pieces that are not at 48000 Hz"),
    ],
)
def test_every_part_of_a_segment_is_checked(
    tmp_path: Path, piece: int, change: dict[str, object], message: str
) -> None:
    table = table_of(tmp_path / "s.csv", start_seconds=4.0)
    pieces = pieces_of(ROWS)
    for column, value in change.items():
        pieces.loc[piece, column] = value
    with pytest.raises(SegmentsError, match=f"1 of 1 segments cannot be used; that of '0000.wav' at 4.000 s {message}"):
        places_in(table, pieces)


@pytest.mark.parametrize("piece", range(2))
def test_no_part_of_a_segment_is_trained_on(tmp_path: Path, piece: int) -> None:
    table = table_of(tmp_path / "s.csv", start_seconds=4.0)
    corpus = Corpus("shards", pieces_of(ROWS))
    split = split_corpus(corpus, split="official")
    trained = replace(split, train=TimeRanges.of([TimeRange(piece, 0.0, 5.0)]))
    with pytest.raises(SegmentsError, match=r"that of '0000\.wav' at 4\.000 s is trained on"):
        read_segments(table, corpus, trained)
    read_segments(table, corpus, replace(split, train=TimeRanges.of([TimeRange(1, 1.0, 5.0), TimeRange(0, 0.0, 4.0)])))


def test_a_segment_stands_in_the_table_once(tmp_path: Path) -> None:
    """Files are named by track and start."""
    write_segments(
        tmp_path / "s.csv",
        CORPUS,
        TimeRanges.of([TimeRange(1, 0.0, 1.0), TimeRange(0, 0.0, 1.0), TimeRange(1, 0.0, 2.0)]),
    )
    with pytest.raises(SegmentsError, match=r"1 of 3 .* that of '0001\.wav' at 0\.000 s is listed twice"):
        read_segments(tmp_path / "s.csv", CORPUS, SPLIT)


def test_a_fingerprint_tells_how_many_segments_are_taken(tmp_path: Path) -> None:
    write_segments(
        tmp_path / "s.csv", CORPUS, TimeRanges.of([TimeRange(1, float(start), start + 1.0) for start in range(9)])
    )
    whole = segments_fingerprint(tmp_path / "s.csv")
    assert [segments_fingerprint(tmp_path / "s.csv", limit) for limit in (None, 10, 9)] == [whole] * 3
    assert segments_fingerprint(tmp_path / "s.csv", 8) == f"{whole}, 8 of 9"
    assert segments_fingerprint(tmp_path / "s.csv", 5) == f"{whole}, 5 of 9"
