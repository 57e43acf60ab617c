"""Music that changed between its scan and its preparation: never under what was measured of other music."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pandas
import pytest
from music_files import noisy_tones, write_raw

from datamodules.audio.files import AudioFileError
from datamodules.corpora.manifest import read_manifest
from datamodules.preparing.jobs import Job, Settings, TrackToPrepare
from datamodules.preparing.plan import jobs_of, prepared_names
from datamodules.preparing.prepare import MANIFEST_NAME, PASSED_OVER_NAME, prepare
from datamodules.preparing.transcoding import Source, transcode
from datamodules.scanning.measuring import content_hash, measure
from datamodules.scanning.scan import scan
from datamodules.shards.encodings import ENCODINGS

pytestmark = pytest.mark.processes

FLAC = Settings("flac24", as_shards=False)


def _song(folder: Path, seed: int) -> None:
    """A song of MoisesDB with two stems."""
    for number, (name, seconds) in enumerate((("drums", 1.0), ("bass", 0.8))):
        write_raw(folder / name / "a.wav", noisy_tones(seconds, 44100, 10 * seed + number) / 4, 44100)
    stems = [{"stemName": name, "tracks": [{"id": "a", "extension": "wav"}]} for name in ("drums", "bass")]
    (folder / "data.json").write_text(json.dumps({"artist": f"{seed}", "genre": "rock", "stems": stems}))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pandas.DataFrame]:
    """Five songs and their manifest."""
    folder = tmp_path_factory.mktemp("changed")
    for seed in range(5):
        _song(folder / "music" / f"song{seed}", seed)
    return folder / "music", scan(folder / "music", "moisesdb", journal=folder / "journal")


def test_changed_songs_are_problems_that_say_to_scan_again(
    scanned: tuple[Path, pandas.DataFrame], tmp_path: Path
) -> None:
    original, table = scanned
    root = tmp_path / "music"
    # Without their times, as `rsync` without -t and `cp -r` copy.
    shutil.copytree(original, root, copy_function=shutil.copyfile)
    table = table.assign(root=str(root))
    shorter, other, swapped, retagged = (root / f"song{seed}" for seed in range(1, 5))
    write_raw(shorter / "drums" / "a.wav", noisy_tones(0.1, 44100), 44100)
    write_raw(other / "bass" / "a.wav", noisy_tones(0.8, 44100, 99) / 4, 44100)
    (swapped / "bass" / "a.wav").unlink()
    with (retagged / "bass" / "a.wav").open("ab") as file:
        file.write(b"LIST\x0c\0\0\0INFOIGNR\0\0\0\0")
    prepared = prepare(table, tmp_path / "out", FLAC)
    assert prepared.tracks == 2
    made = read_manifest(tmp_path / "out" / MANIFEST_NAME)
    assert [name.split("/")[1] for name in made["name"]] == ["song0.flac", "song4.flac"]
    passed_over = read_manifest(tmp_path / "out" / PASSED_OVER_NAME).set_index("name")["problem"]
    again = r"; run `spectrostream data scan` again$"
    for name, reason in {
        "song1": rf"^has a part that changed since it was scanned \(\d+ bytes, now \d+\){again}",
        "song2": rf"^has a part that changed since it was scanned \(other samples in as many bytes\){again}",
        "song3": "^cannot be opened: No such file or directory$",
    }.items():
        assert passed_over[[name]].str.contains(reason).all(), passed_over[name]


def _scanned_source(path: Path) -> Source:
    status, measured = path.stat(), measure([path])
    return Source(
        (path,), measured.frames, measured.sample_rate, status.st_size, status.st_mtime_ns, measured.content_hash
    )


def _transcode(source: Source) -> None:
    transcode(source, ENCODINGS["pcm16"], io.BytesIO, sample_rate=48000, channels=2)


def test_other_music_of_the_same_length_is_noticed_and_a_copy_is_not_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(0.5, 48000, 1), 48000)
    source = _scanned_source(path)
    _transcode(source)
    os.utime(path, ns=(5, 5))
    _transcode(source)
    write_raw(path, noisy_tones(0.5, 48000, 2), 48000)
    with pytest.raises(AudioFileError, match=r"has changed since it was scanned.*other samples.*data scan"):
        _transcode(source)
    # Where nothing was measured, nothing can be untrue of a file of the same size and length.
    _transcode(Source((path,), 24000, 48000, source.size_bytes, source.modified_ns))
    with pytest.raises(AudioFileError, match=r"has changed since it was scanned \(77 bytes, now 96044\)"):
        _transcode(Source((path,), 24000, 48000, 77))


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.wav", noisy_tones(0.5, 48000, 1), 48000)

    def new_file() -> io.BytesIO:
        os.utime(path, ns=(5, 5))
        return io.BytesIO()

    with pytest.raises(AudioFileError, match=r"has changed while it was read; run `spectrostream data scan` again"):
        transcode(_scanned_source(path), ENCODINGS["pcm16"], new_file, sample_rate=48000, channels=2)


def test_the_hash_alone_is_that_of_a_measurement(tmp_path: Path) -> None:
    stereo = write_raw(tmp_path / "a.flac", noisy_tones(3.0, 48000) / 2, 48000)
    mono = write_raw(tmp_path / "b.wav", noisy_tones(2.0, 48000, channels=1) / 2, 48000)
    assert content_hash([stereo, mono]) == measure([stereo, mono]).content_hash != content_hash([stereo])


def test_what_was_prepared_is_prepared_again_after_a_copy(
    scanned: tuple[Path, pandas.DataFrame], tmp_path: Path
) -> None:
    prepare(scanned[1], tmp_path / "first", FLAC)
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    # Its hashes are those of the stems, not of what was made of them.
    table = read_manifest(tmp_path / "copy" / MANIFEST_NAME).assign(root=str(tmp_path / "copy"))
    assert prepare(table, tmp_path / "second", FLAC).tracks == 5


def test_a_folder_that_an_older_version_prepared_is_not_made_again(scanned: tuple[Path, pandas.DataFrame]) -> None:
    def identities(table: pandas.DataFrame) -> list[str]:
        return [job.identity() for job in jobs_of(table, prepared_names(table, FLAC), FLAC)]

    assert identities(scanned[1]) == identities(scanned[1].assign(content_hash="", measurement_version=None))
    track = TrackToPrepare(
        "folder/a.flac", "/m", ("a.wav",), 9600, 48000, 2, 38444, 5, {"corpus": "folder"}, "1", "a", "2"
    )
    # As the first version had it.
    expected = "c66fb42ad1b3cef3526b6330ca1c6e2be6b578d528014d6211854a9ed18375d1"
    assert Job(track.name, (track,), FLAC).identity() == expected
