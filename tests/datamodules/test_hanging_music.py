"""Mounts that hang: a training goes on with the rest, waits for a few reads only, and asks again later."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from hanging_files import hanging
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.audio.files import AudioFileError
from datamodules.corpora.corpus import Corpus, Tracks
from datamodules.corpora.manifest import typed
from datamodules.corpora.time_ranges import TimeRanges
from datamodules.crop_dataset import CropDataset
from datamodules.crops import RandomCrops
from datamodules.track_reader import TrackReader
from datamodules.workers import timeouts as patience
from datamodules.workers import unresponsive_paths as hanging_music
from datamodules.workers.unresponsive_paths import HangingMusic

pytestmark = pytest.mark.processes

TRACKS = 12  # of each half


def _two_mounts(folder: Path) -> tuple[Corpus, list[Path]]:
    """A corpus of two roots, each with half of the tracks, and the files of the one that will hang."""
    files = {
        name: [write_raw(folder / name / f"{seed}.wav", noisy_tones(0.6, 48000, seed), 48000) for seed in range(TRACKS)]
        for name in ("gone", "there")
    }
    tables = [manifest_of(folder / name, paths, corpus=name) for name, paths in files.items()]
    return Corpus("two mounts", pandas.concat(tables, ignore_index=True)), files["gone"]


def _crops_of(reader: TrackReader, corpus: Corpus, failure_list: Path | None = None) -> CropDataset:
    tracks = np.arange(len(corpus.tracks))
    crops = RandomCrops(
        TimeRanges(tracks, np.zeros(len(tracks)), corpus.durations), crop_seconds=0.5, sample_rate=48000
    )
    return CropDataset(reader, crops, crop_seconds=0.5, failure_list=failure_list)


def _reader_of(corpus: Corpus, timeout_seconds: float = 0.4) -> TrackReader:
    return TrackReader(corpus, sample_rate=48000, channels=2, cache_audio=False, timeout_seconds=timeout_seconds)


@pytest.fixture(autouse=True)
def _no_reader_of_an_earlier_test() -> None:
    patience._forget()


def _waiting_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "patient-reader"}


def test_a_training_with_half_its_music_on_a_hanging_mount_waits_for_three_reads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, gone = _two_mounts(tmp_path)
    reader = _reader_of(corpus)
    dataset = _crops_of(reader, corpus, tmp_path / "unreadable.txt")
    before = _waiting_threads()
    with hanging(*gone), caplog.at_level(logging.WARNING):
        crops = [dataset[step, 0] for step in range(60)]
        left = _waiting_threads() - before
        lost = {index for index, track in enumerate(corpus.tracks) if track.path in gone}
        for index in lost:
            assert reader.lost_with(index) == lost
    assert all(crop.shape == (2, 24000) for crop in crops)
    # One for each read that hung, and the one that reads.
    assert len(left) == 3 + 1
    assert dataset.failures.total() > 10
    lines = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert len(lines) == len(caplog.records) == 3
    assert f"as others below '{tmp_path / 'gone'}' do, so its {TRACKS} tracks are not asked for a while" in lines[2]
    with pytest.raises(AudioFileError, match=r"lies below '.*gone', which did not answer a while ago"):
        reader.read(min(lost), 0.0, 0.5)
    # What was given up ends as soon as the disk answers.
    deadline = time.monotonic() + 30
    while len(_waiting_threads() & left) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(_waiting_threads() & left) == 1


def test_a_mount_that_is_back_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging_music, "_LOST_SECONDS", 1.0)
    corpus, gone = _two_mounts(tmp_path)
    reader = _reader_of(corpus)
    first = next(index for index, track in enumerate(corpus.tracks) if track.path == gone[0])
    with hanging(*gone):
        for number in range(3):
            with pytest.raises(AudioFileError, match="takes longer to read"):
                reader.read(first + number, 0.0, 0.5)
        with pytest.raises(AudioFileError, match="did not answer a while ago"):
            reader.read(first + 3, 0.0, 0.5)
    time.sleep(1.1)
    assert reader.read(first + 3, 0.0, 0.5).shape == (2, 24000)
    assert reader.lost_with(first + 3) == {first + 3}
    assert pickle.loads(pickle.dumps(reader)).read(first, 0.0, 0.5).shape == (2, 24000)


# ---- which folder is lost


def _tracks_named(*names: str) -> Tracks:
    """Tracks that nobody reads: below /a or /b, whichever the name begins with."""
    table = pandas.DataFrame({"root": [f"/{name[0]}" for name in names], "name": [name[2:] for name in names]})
    return Corpus("", typed(table.assign(corpus=table["root"], sample_rate=48000, channels=2, frames=48000))).tracks


def _numbers(tracks: Tracks, *names: str) -> list[int]:
    paths = [str(track.path) for track in tracks]
    return [paths.index(f"/{name}") for name in names]


def test_the_folder_is_lost_where_the_hanging_ones_lie_not_the_ones_around_it() -> None:
    names = [f"a/{mount}/{album}/{song}.wav" for mount in ("m1", "m2", "m3") for album in "xy" for song in "12"]
    tracks = _tracks_named(*names)
    music = HangingMusic(tracks)
    first, answers, second, third, other = _numbers(
        tracks, "a/m1/x/1.wav", "a/m2/x/1.wav", "a/m1/y/1.wav", "a/m1/y/2.wav", "a/m1/x/2.wav"
    )
    assert music.note_hang(first) == Path("/a/m1/x/1.wav")
    music.note_answer(answers)
    assert music.note_hang(second) == Path("/a/m1/y/1.wav")
    assert music.lost_with(second) == {second}
    assert music.lost_place(other) is None
    assert music.note_hang(third) == Path("/a/m1")
    assert {tracks[index].path.parts[2] for index in music.lost_with(other)} == {"m1"}
    assert len(music.lost_with(other)) == 4
    assert music.lost_place(answers) is None


def test_an_answer_ends_the_row() -> None:
    tracks = _tracks_named(*(f"a/m/{song}.wav" for song in range(9)), *(f"b/z{song}.wav" for song in range(9)))
    music = HangingMusic(tracks)
    for song in (0, 1, 3, 4):
        assert music.note_hang(song) == tracks[song].path
        if song == 1:
            music.note_answer(2)
    assert music.lost_place(5) is None


def test_a_single_track_that_hangs_again_and_again_loses_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging_music, "_LOST_SECONDS", 0.0)
    tracks = _tracks_named(*(f"a/{song}.wav" for song in range(4)), *(f"b/z{song}.wav" for song in range(4)))
    music = HangingMusic(tracks)
    for _ in range(5):
        assert music.note_hang(0) == tracks[0].path
        assert music.lost_place(0) is None
        music.note_answer(1)


def test_most_of_the_music_gets_more_patience() -> None:
    tracks = _tracks_named(*(f"a/{album}/{song}.wav" for album in range(5) for song in range(4)), "b/z.wav")
    music = HangingMusic(tracks)
    hung = [music.note_hang(4 * (number % 5) + number // 5) for number in range(10)]
    assert [path.name for path in hung[:9]] == [tracks[4 * (number % 5) + number // 5].path.name for number in range(9)]
    assert hung[9] == Path("/a")
    assert len(music.lost_with(19)) == 20


def test_what_hangs_again_is_lost_as_a_whole_and_for_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging_music, "_LOST_SECONDS", 0.3)
    tracks = _tracks_named(
        *(f"a/{song // 3}/{song}.wav" for song in range(9)), *(f"b/z{song}.wav" for song in range(9))
    )
    music = HangingMusic(tracks)
    assert [music.note_hang(song) for song in (0, 1, 2, 3)][2:] == [Path("/a/0"), Path("/a")]
    for seconds in (0.3, 0.6):
        began = time.monotonic()
        assert music.lost_place(8) == Path("/a")
        while music.lost_place(8):
            time.sleep(0.01)
        assert time.monotonic() - began > seconds - 0.1
        # Not the folder around it alone, although that has hung three times in a row too.
        assert music.note_hang(0) == Path("/a")
    assert len(music.lost_with(8)) == 9


def test_tracks_below_a_folder_are_found_by_whole_names() -> None:
    tracks = _tracks_named("a/x/1.wav", "a/x/deep/2.wav", "a/xy/3.wav", "a/x\\x0ay/4.wav", "b/x/5.wav")

    def below(folder: str) -> set[str]:
        return {str(tracks[int(index)].path) for index in tracks.below(Path(folder))}

    assert below("/a/x") == {"/a/x/1.wav", "/a/x/deep/2.wav"}
    assert below("/a/x\ny") == {"/a/x\ny/4.wav"}
    assert below("/a") == {"/a/x/1.wav", "/a/x/deep/2.wav", "/a/xy/3.wav", "/a/x\ny/4.wav"}
    assert len(below("/")) == 5
    assert below("/a/none") == below("/c") == set()
    assert {tracks.root_of(index) for index in range(5)} == {Path("/a"), Path("/b")}
