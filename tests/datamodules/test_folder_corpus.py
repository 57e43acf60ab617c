from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from music_files import noisy_tones, write_raw

from datamodules.audio.find_files import AUDIO_EXTENSIONS
from datamodules.corpora.corpus import EmptyCorpusError
from datamodules.corpora.folder_corpus import demo_corpus_root, scan_folder
from datamodules.corpora.manifest import table_name


def test_tracks_are_found_below_the_folder_in_order_of_name(music_folder: Path) -> None:
    corpus = scan_folder(music_folder)
    assert [track.name for track in corpus.tracks] == ["a.flac", "b.ogg", "deep/c.flac", "deep/d.ogg"]
    assert [track.sample_rate for track in corpus.tracks] == [44100, 44100, 48000, 48000]
    assert [track.channels for track in corpus.tracks] == [2, 2, 1, 2]
    assert corpus.duration_seconds == pytest.approx(30.0)
    assert corpus.skipped == ()


def test_the_demo_corpus_has_six_tracks_and_its_licences() -> None:
    corpus = scan_folder(demo_corpus_root())
    assert len(corpus.tracks) == 6
    assert corpus.skipped == ()
    assert corpus.duration_seconds == pytest.approx(147.5, abs=0.1)
    attribution = (demo_corpus_root() / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for track in corpus.tracks:
        assert f"| {track.name} |" in attribution
    for licence in ("CC-BY-4.0", "CC-BY-3.0", "BSD-2-Clause", "BSD-3-Clause", "MIT"):
        text = (demo_corpus_root() / "LICENSES" / f"{licence}.txt").read_text(encoding="utf-8")
        assert "WARRANT" in text.upper()
        assert f"{licence}.txt" in attribution


def test_every_container_that_soundfile_can_write_is_found(tmp_path: Path) -> None:
    formats = {"wav": "WAV", "flac": "FLAC", "ogg": "OGG", "mp3": "MP3", "aiff": "AIFF", "w64": "W64", "caf": "CAF"}
    formats |= {"au": "AU", "rf64": "RF64", "oga": "OGG", "aif": "AIFF"}
    for extension, container in formats.items():
        soundfile.write(tmp_path / f"x.{extension.upper()}", noisy_tones(0.2, 48000), 48000, format=container)
    soundfile.write(tmp_path / "x.opus", noisy_tones(0.2, 48000), 48000, format="OGG", subtype="OPUS")
    assert len(scan_folder(tmp_path).tracks) == len(formats) + 1
    assert {f".{extension}" for extension in formats} <= AUDIO_EXTENSIONS


def test_files_of_no_use_are_skipped_with_their_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_raw(tmp_path / "good.wav", noisy_tones(2.0, 48000), 48000)
    write_raw(tmp_path / "short.wav", noisy_tones(0.5, 48000), 48000)
    write_raw(tmp_path / "empty.wav", np.zeros((0, 2)), 48000)
    write_raw(tmp_path / "six.wav", np.zeros((96000, 6)), 48000)
    cut = write_raw(tmp_path / "cut.flac", noisy_tones(2.0, 48000), 48000)
    cut.write_bytes(cut.read_bytes()[:20000])
    (tmp_path / "zero.ogg").touch()
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "phone.m4a").write_bytes(b"ftyp")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "._good.wav").write_bytes(b"a resource fork")
    (tmp_path / "cover.jpg").write_bytes(b"a picture")
    os.mkfifo(tmp_path / "pipe.wav")
    with caplog.at_level(logging.WARNING):
        corpus = scan_folder(tmp_path, minimum_seconds=1.0)
    assert [track.name for track in corpus.tracks] == ["good.wav"]
    reasons = {file.path.name: file.reason for file in corpus.skipped}
    expected = {
        "short.wav": "lasts 0.500 s, at least 1 s are needed",
        "empty.wav": "0 frames",
        "six.wav": "6 channels",
        "cut.flac": "cut short",
        "zero.ogg": "0 bytes",
        "text.wav": "Format not recognised",
        "phone.m4a": "convert it",
        "gone.wav": "No such file",
        "pipe.wav": "not a regular file",
    }
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name]
    assert len(caplog.records) == 1
    assert "9 of 11 files skipped" in caplog.text


def test_loops_of_links_end_and_each_file_counts_once(tmp_path: Path) -> None:
    root = tmp_path / "music"
    write_raw(root / "album" / "one.wav", noisy_tones(0.2, 48000), 48000)
    (root / "album" / "back").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "twin.wav").symlink_to(root / "album" / "one.wav")
    elsewhere = write_raw(tmp_path / "elsewhere" / "two.wav", noisy_tones(0.2, 48000, 1), 48000)
    (root / "linked").symlink_to(elsewhere.parent)
    corpus = scan_folder(root)
    assert sorted(Path(track.name).name for track in corpus.tracks) == ["twin.wav", "two.wav"]
    assert [file.reason for file in corpus.skipped] == [f"is the same file as {str(root / 'twin.wav')!r}"]


@pytest.mark.parametrize("name", ["with space.wav", "🎵 ünïcode.flac", "new\nline.wav"])
def test_unusual_names_are_tracks(tmp_path: Path, name: str) -> None:
    write_raw(tmp_path / name, noisy_tones(0.2, 48000), 48000)
    assert [track.name for track in scan_folder(tmp_path).tracks] == [table_name(name)]


def test_a_missing_folder_tells_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpusError, match=r"'.*nowhere' does not exist.*data\.root=/path/to/music"):
        scan_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(EmptyCorpusError, match="is not a folder"):
        scan_folder(tmp_path / "file")


def test_a_folder_without_audio_tells_what_was_seen(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.wav").write_text("not audio")
    with pytest.raises(EmptyCorpusError) as caught:
        scan_folder(tmp_path)
    message = str(caught.value)
    for part in (
        str(tmp_path),
        "2 files seen, 1 skipped",
        ".flac",
        "broken.wav",
        "Format not recognised",
        "data.root=",
    ):
        assert part in message


def test_the_fingerprint_follows_the_music_and_not_the_place(music_folder: Path, tmp_path: Path) -> None:
    fingerprint = scan_folder(music_folder).fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(music_folder, copy)
    assert scan_folder(copy).fingerprint() == fingerprint
    (copy / "a.flac").rename(copy / "z.flac")
    renamed = scan_folder(copy).fingerprint()
    write_raw(copy / "z.flac", noisy_tones(6.5, 44100, 1), 44100)
    assert len({fingerprint, renamed, scan_folder(copy).fingerprint()}) == 3
