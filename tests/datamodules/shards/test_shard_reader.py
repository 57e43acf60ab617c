"""Crops out of shards are crops out of the music; whatever is damaged is an error of ours."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import threading
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.audio.files import AudioFileError, read_audio
from datamodules.corpora.corpus import Corpus
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.shards.index import INDEX_NAME, ShardIndexError, read_index, write_index
from datamodules.shards.reader import ShardReader
from datamodules.shards.store import ShardError, ShardStore


def reader_of(folder: Path, **options: float) -> ShardReader:
    store = ShardStore(folder)
    return ShardReader(Corpus(str(folder), store.read_index()), store, **options)  # type: ignore[arg-type]


@pytest.fixture(params=["shard_folder", "flac_shard_folder", "float_shard_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(track=st.integers(0, 10**6), start=st.floats(0, 1), length=st.integers(1, 60000))
def test_a_part_is_that_part_of_the_original(
    folder: Path, originals: Path, track: int, start: float, length: int
) -> None:
    reader = reader_of(folder)
    row = reader.corpus.table.iloc[track % len(reader.corpus.tracks)]
    length = min(length, row["frames"])
    first = round(start * (row["frames"] - length))
    audio = reader.read(int(row.name), first / 48000, length / 48000)
    begin = row["piece_start_seconds"] + first / 48000
    expected = read_audio(originals / row["source_name"], start_seconds=begin, duration_seconds=length / 48000)
    assert torch.equal(audio, expected)
    reader.close()


def test_other_rates_are_resampled_as_a_file_would_be(shard_folder: Path, originals: Path) -> None:
    reader = reader_of(shard_folder, sample_rate=44100)
    index = reader.corpus.table.query("source_name == '0.wav'").index[0]
    expected = read_audio(originals / "0.wav", sample_rate=44100, start_seconds=0.5, duration_seconds=0.5)
    assert torch.allclose(reader.read(index, 0.5, 0.5), expected, atol=1e-6)
    reader.close()


@pytest.mark.parametrize(("start", "length"), [(-0.1, 1.0), (0.0, 99.0), (1.9999, 0.1), (0.0, 0.0)])
def test_a_part_beyond_the_track_is_an_error(shard_folder: Path, start: float, length: float) -> None:
    reader = reader_of(shard_folder)
    with pytest.raises(AudioFileError, match="do not lie within it"):
        reader.read(0, start, length)


def test_few_shards_are_open_and_none_in_another_process(shard_folder: Path) -> None:
    reader = reader_of(shard_folder, open_shards=2)
    for track in range(len(reader.corpus.tracks)):
        reader.read(track, 0.0, 0.1)
    assert len(reader._open) == 2
    other = pickle.loads(pickle.dumps(reader))
    assert torch.equal(other.read(3, 0.2, 0.3), reader.read(3, 0.2, 0.3))
    reader.close()
    other.close()


def copied(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to / "copy")


def test_a_lost_or_cut_shard_takes_its_tracks_with_it_and_no_others(shard_folder: Path, tmp_path: Path) -> None:
    folder = copied(shard_folder, tmp_path)
    reader = reader_of(folder)
    lost, cut = reader.shards[0], reader.shards[1]
    (folder / lost.name).unlink()
    (folder / cut.name).write_bytes((folder / cut.name).read_bytes()[:-1])
    for track, shard in enumerate(reader.shard_of_track):
        if shard > 1:
            reader.read(track, 0.0, 0.1)
            assert reader.lost_with(track) == {track}
            continue
        with pytest.raises(ShardError, match=lost.name if shard == 0 else "bytes.*in the index"):
            reader.read(track, 0.0, 0.1)
        assert reader.lost_with(track) == set(np.flatnonzero(reader.shard_of_track == shard))
    reader.close()


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 2000))
def test_damaged_members_are_errors_or_other_sounds(flac_shard_folder: Path, seed: int, changes: int) -> None:
    reader = reader_of(flac_shard_folder)
    random = np.random.default_rng(seed)
    track = int(random.integers(len(reader.corpus.tracks)))
    row = reader.corpus.table.iloc[track]
    file = open_damaged(flac_shard_folder / row["shard"], row, random, changes)
    reader._open[int(reader.shard_of_track[track])] = file
    with suppress(AudioFileError), closing(reader):
        audio = reader.read(track, 0.3, 1.28)
        assert audio.shape == (2, 61440)
        assert torch.isfinite(audio).all()


def open_damaged(path: Path, row: pandas.Series, random: np.random.Generator, changes: int) -> io.BytesIO:
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    # Half of the changes at the member's head, where the lengths and sizes are.
    places = np.concatenate([random.integers(0, 200, changes // 2), random.integers(0, row["member_bytes"], changes)])
    content[row["offset"] + places] = random.integers(0, 256, len(places))
    return io.BytesIO(content.tobytes())


def test_spans_of_few_shards(shard_folder: Path) -> None:
    reader = reader_of(shard_folder)
    spans = TimeRanges(np.arange(len(reader.tracks)), np.zeros(len(reader.tracks)), reader.corpus.durations)
    few = reader.in_few_shards(spans, 2)
    assert len(set(reader.shard_of_track[few.tracks])) == 2
    assert set(few.tracks) == set(np.flatnonzero(np.isin(reader.shard_of_track, reader.shard_of_track[few.tracks])))
    assert len(reader.in_few_shards(spans, 100)) == len(spans)


def test_not_a_number_in_a_shard_is_an_error(float_shard_folder: Path, tmp_path: Path) -> None:
    folder = copied(float_shard_folder, tmp_path)
    table = read_index((folder / INDEX_NAME).read_bytes(), "here")
    row = table.iloc[0]
    content = bytearray((folder / row["shard"]).read_bytes())
    content[row["offset"] + 56 + 4000 : row["offset"] + 56 + 4004] = np.float32(np.nan).tobytes()
    (folder / row["shard"]).write_bytes(content)
    reader = reader_of(folder)
    with pytest.raises(AudioFileError, match="NaN"):
        reader.read(int(reader.corpus.table.query("member == @row.member").index[0]), 0.0, 0.1)
    reader.close()


MUTATIONS = {
    "offset": [-1, 10**15, 2**62, None, 1.5],
    "piece_start_seconds": [-1.0, None],
    "member_bytes": [0, -5, 10**14, 100],
    "frames": [0, -1, 10**15, 1000],
    "channels": [0, 100, -2, 3],
    "sample_rate": [0, -48000, 10**9],
    "shard": ["../../etc/passwd", "/etc/passwd", "", "a/b.tar", None, "x" * 300 + ".tar", ".tar"],
    "shard_bytes": [0, -1, 10**15, 5000],
    "shard_sha256": ["", "../x", "A" * 64, None],
    "encoding": ["mp3", "", None],
    "member": [None],
}


@pytest.mark.parametrize(("column", "value"), [(c, v) for c, values in MUTATIONS.items() for v in values])
def test_an_index_that_does_not_fit_together_is_refused(
    shard_folder: Path, tmp_path: Path, column: str, value: object
) -> None:
    table = read_index((shard_folder / INDEX_NAME).read_bytes(), "here").astype(object)
    table.loc[1, column] = value
    if not isinstance(value, str | float) and value is not None and column not in ("shard", "member"):
        table[column] = table[column].astype("int64")
    write_index(table.infer_objects(), tmp_path / INDEX_NAME)
    with pytest.raises(ShardIndexError, match="data prepare"):
        ShardStore(tmp_path).read_index()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 50), cut=st.booleans())
def test_a_damaged_index_is_refused_or_as_it_was(shard_folder: Path, seed: int, changes: int, cut: bool) -> None:
    whole = (shard_folder / INDEX_NAME).read_bytes()
    random = np.random.default_rng(seed)
    content = np.frombuffer(whole, np.uint8).copy()
    content[random.integers(0, len(content), changes)] = random.integers(0, 256, changes)
    damaged = content.tobytes()[: int(random.integers(0, len(whole))) if cut else None]
    try:
        table = read_index(damaged, "here")
    except ShardIndexError:
        return
    assert len(table) <= 100


def test_no_index_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ShardIndexError, match=r"No such file.*data prepare --format shards"):
        ShardStore(tmp_path / "nothing").read_index()


def test_an_index_survives_being_a_corpus_whose_rows_were_filtered(shard_folder: Path) -> None:
    store = ShardStore(shard_folder)
    table = store.read_index()
    part = table[table["shard"] != table["shard"].iloc[0]]
    reader = ShardReader(Corpus("part", part), store)
    assert len(reader.corpus.tracks) == len(part)
    for track in range(len(part)):
        reader.read(track, 0.0, 0.2)
    assert {shard.name for shard in reader.shards} == set(part["shard"])
    for shard in reader.shards:
        assert hashlib.sha256((shard_folder / shard.name).read_bytes()).hexdigest() == shard.sha256
    reader.close()


def test_a_disk_that_hangs_costs_its_shard_and_no_more(shard_folder: Path) -> None:
    reader = reader_of(shard_folder, timeout_seconds=0.3)
    reader.read(0, 0.0, 0.1)
    hung = int(reader.shard_of_track[0])
    never = threading.Event()

    class Hanging(io.BytesIO):
        def readinto(self, buffer: object) -> int:
            never.wait()
            return 0

    reader._open.pop(hung).close()
    reader._open[hung] = Hanging()
    with pytest.raises(ShardError, match=r"takes longer to read than data\.read_timeout_seconds=0\.3"):
        reader.read(0, 0.0, 0.1)
    assert reader.lost_with(0) == set(np.flatnonzero(reader.shard_of_track == hung).tolist())
    others = set(range(len(reader.tracks))) - reader.lost_with(0)
    assert all(reader.read(index, 0.0, 0.1).shape == (2, 4800) for index in others)
    never.set()


def test_a_shard_that_was_mended_is_read_again(shard_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    reader = reader_of(folder)
    expected = reader.read(0, 0.0, 0.1)
    path = folder / reader.shards[reader.shard_of_track[0]].name
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(AudioFileError, match="cut short"):
        reader.read(0, 0.0, 0.1)
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)
    assert torch.equal(reader.read(0, 0.0, 0.1), expected)
