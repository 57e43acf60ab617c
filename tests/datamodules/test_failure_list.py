from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.audio.opening import AudioFileError
from datamodules.workers.unreadable_files import list_failure, listed_files, replaced_in_words

SHARD = AudioFileError("the shard 'a.tar' of 'http://server' is missing", "is missing")


def test_files_are_counted_once_over_processes_and_starts(tmp_path: Path) -> None:
    path = tmp_path / "unreadable.txt"
    assert listed_files(path) == set()
    assert replaced_in_words(path) is None
    songs = [Path("a: b.wav"), Path("it's.wav"), Path('"it\'s".wav'), Path("new\nline.wav"), Path("latin \udce9.wav")]
    for reason in ("is cut short", "'other.wav': is broken"):
        list_failure(path, AudioFileError.of(songs[0], reason))
    assert listed_files(path) == {repr("a: b.wav")}
    said = "1 file, shard or folder could not be read in this run (over all its starts) and was replaced by others"
    assert replaced_in_words(path) == f"{said}: {path}"
    for error in [*(AudioFileError.of(song, "is broken") for song in songs), SHARD, SHARD]:
        list_failure(path, error)
    assert listed_files(path) == {*(repr(str(song)) for song in songs), str(SHARD)}
    said = "6 files, shards or folders could not be read in this run (over all its starts) and were replaced by others"
    assert replaced_in_words(path) == f"{said}: {path}"


@pytest.mark.parametrize("content", [b"", b"\n\xff\xfe no line of ours\n\n"])
def test_what_is_no_list_counts_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unreadable.txt").write_bytes(content)
    assert replaced_in_words(tmp_path / "unreadable.txt") is None


def test_no_list_is_written_where_none_is_wanted_or_possible(tmp_path: Path) -> None:
    list_failure(None, SHARD)
    list_failure(tmp_path / "no folder" / "unreadable.txt", SHARD)
    assert not list(tmp_path.iterdir())
