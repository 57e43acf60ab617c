"""What holds for the layouts of all known corpora, and what each makes of an intact corpus."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from miniatures import MINIATURES, write_music

from datamodules.audio.files import probe
from datamodules.corpora.manifest import file_path, table_name
from datamodules.layouts import LAYOUTS, Entry, LayoutError
from datamodules.layouts.musdb18hq import VALIDATION

KNOWN = sorted(MINIATURES)
# Name: split, group, artist, genre.
EXPECTED = {
    "musdb18hq": {
        "test/Al James - Schoolboy Facination/mixture.wav": ("test", "", "Al James", ""),
        "test/Zeno - Signs/mixture.wav": ("test", "", "Zeno", ""),
        "train/Hop Along - Sister Cities/mixture.wav": ("train", "", "Hop Along", ""),
        "train/Leaf - Summerghost/mixture.wav": ("validation", "", "Leaf", ""),
        "train/Music Delta - Disco/mixture.wav": ("train", "", "Music Delta", ""),
        "train/Music Delta - Rock/mixture.wav": ("train", "", "Music Delta", ""),
    },
    "fma": {
        "fma_small/000/000002.mp3": ("train", "artist 1", "AWOL", "Hip-Hop"),
        "fma_small/000/000140.mp3": ("validation", "artist 54", "Alec K. Redfearn, and the Eyesores", "Folk"),
        "fma_small/001/001000.mp3": ("test", "artist 232", "Ünbekannt 🎵", ""),
    },
    "jamendo": {
        "raw_30s/audio-low/34/786434.low.mp3": ("test", "artist_368880", "artist_368880", "house"),
        "raw_30s/audio/02/1049702.mp3": ("validation", "artist_008094", "artist_008094", ""),
        "raw_30s/audio/14/214.mp3": ("train", "artist_000014", "artist_000014", "punkrock"),
        "raw_30s/audio/15/215.mp3": ("train", "artist_000014", "artist_000014", "metal"),
        "raw_30s/audio/41/241.mp3": ("", "artist_000005", "artist_000005", "rock"),
    },
    "maestro": {
        "2008/R1_2008.wav": ("train", "Alban Berg: Sonata Op. 1", "Alban Berg", ""),
        "2008/R2_2008.wav": ("test", "Franz Liszt: Années de pèlerinage, S. 160", "Franz Liszt", ""),
        "2018/R1 2018.wav": (
            *("validation", 'Frédéric Chopin: Étude Op. 10 No. 12, "Revolutionary"', "Frédéric Chopin", ""),
        ),
        "2018/R3_2018--1.wav": ("train", "Alban Berg: Sonata Op. 1", "Alban Berg", ""),
    },
    "moisesdb": {
        "moisesdb_v0.1/6c8ec4e0-e04e-592e-8414-f6acaa9699ac": ("", "Ana", "Ana", "pop"),
        "moisesdb_v0.1/7b0ac2c7-1424-5c55-921a-ed18f6b91f0c": ("", "Ana", "Ana", "rock"),
        "moisesdb_v0.1/b05ea503-8811-50d3-95cf-16e6b53a7d56": ("", "Béla", "Béla", "singer/songwriter"),
    },
    "slakh": {
        "test/Track01876/mix.flac": ("test", f"{1876:032x}", "", ""),
        "train/Track00001/mix.flac": ("train", f"{2:032x}", "", ""),
        "train/Track00002/mix.flac": ("train", f"{2:032x}", "", ""),
        "validation/Track01501/mix.flac": ("validation", f"{1501:032x}", "", ""),
    },
}


def files_of(root: Path, entry: Entry) -> list[Path]:
    return [file_path(table_name(root), name) for name in entry.parts or (entry.name,)]


def reasons(root: Path, name: str) -> dict[str, str]:
    """By path below the corpus' folder."""
    return {os.path.relpath(file.path, root): file.reason for file in LAYOUTS[name](root).skipped}


def test_each_known_corpus_has_a_miniature() -> None:
    assert sorted({*LAYOUTS} - {"folder"}) == KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_tracks_of_an_intact_corpus(name: str, untouched: Callable[[str], Path]) -> None:
    found = LAYOUTS[name](untouched(name))
    assert [entry.name for entry in found.entries] == sorted(EXPECTED[name])
    assert {e.name: (e.split, e.group, e.artist, e.genre) for e in found.entries} == EXPECTED[name]
    assert [file.path.name for file in found.skipped] == (["omitted"] if name == "slakh" else [])


@pytest.mark.parametrize("name", KNOWN)
def test_files_of_every_track_open(name: str, untouched: Callable[[str], Path]) -> None:
    root = untouched(name)
    for entry in LAYOUTS[name](root).entries:
        infos = [probe(path) for path in files_of(root, entry)]
        assert len({(info.sample_rate, info.frames) for info in infos}) == 1
        assert all(info.duration_seconds == pytest.approx(1.0, abs=0.1) for info in infos)


@pytest.mark.parametrize("name", KNOWN)
def test_a_corpus_behind_a_link_is_the_same(
    name: str, untouched: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(untouched(name))
    expected = LAYOUTS[name](untouched(name)).entries
    assert LAYOUTS[name](tmp_path / "link").entries == expected
    monkeypatch.chdir(untouched(name))
    assert LAYOUTS[name](Path()).entries == expected


@pytest.mark.parametrize("name", KNOWN)
def test_another_folder_is_refused_with_what_to_type(name: str, tmp_path: Path) -> None:
    write_music(tmp_path / "holiday" / "song.wav", 0)
    with pytest.raises(LayoutError, match=r"is not laid out as .*: looked for .*--corpus folder") as refusal:
        LAYOUTS[name](tmp_path)
    assert repr(str(tmp_path)) in str(refusal.value)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_missing_folder_and_a_file_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="does not exist"):
        LAYOUTS[name](tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(LayoutError, match="is not a folder"):
        LAYOUTS[name](tmp_path / "file")


@pytest.mark.parametrize("name", ["musdb18hq", "maestro", "fma", "jamendo", "slakh"])
def test_the_folder_above_is_refused_with_the_right_one(name: str, copied: Callable[[str], Path]) -> None:
    root = copied(name)
    with pytest.raises(LayoutError) as refusal:
        LAYOUTS[name](root.parent)
    assert f"The folder {str(root)!r} in it is" in str(refusal.value)


def test_moisesdb_is_found_from_the_folder_of_its_songs_and_from_the_one_above(copied: Callable[[str], Path]) -> None:
    root = copied("moisesdb")
    songs = LAYOUTS["moisesdb"](root / "moisesdb_v0.1").entries
    assert [f"moisesdb_v0.1/{entry.name}" for entry in songs] == sorted(EXPECTED["moisesdb"])
    with pytest.raises(LayoutError, match="in it is; type that one"):
        LAYOUTS["moisesdb"](root.parent)


@pytest.mark.parametrize("name", KNOWN)
def test_audio_that_the_corpus_does_not_know_is_skipped(name: str, copied: Callable[[str], Path]) -> None:
    root = copied(name)
    stranger = write_music(root / "train" / "my own.flac", 3)
    (root / "cover.jpg").write_bytes(b"a picture")
    assert {entry.name for entry in LAYOUTS[name](root).entries} == EXPECTED[name].keys()
    told = reasons(root, name)
    assert told.keys() - {"omitted"} == {str(stranger.relative_to(root))}
    assert all(len(reason) > 10 for reason in told.values())


@pytest.mark.parametrize("name", KNOWN)
def test_a_link_out_of_the_corpus_is_no_track(name: str, copied: Callable[[str], Path], tmp_path: Path) -> None:
    root = copied(name)
    victim = files_of(root, LAYOUTS[name](root).entries[0])[0]
    outside = tmp_path / "outside" / victim.name
    outside.parent.mkdir()
    victim.rename(outside)
    victim.symlink_to(outside)
    found = LAYOUTS[name](root)
    assert len(found.entries) == len(EXPECTED[name]) - 1
    told = reasons(root, name)
    assert "leads out of the corpus' folder" in told[str(victim.relative_to(root))]


@pytest.mark.parametrize("name", KNOWN)
def test_folders_directly_in_the_corpus_may_be_links_to_another_disk(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    root = copied(name)
    expected = LAYOUTS[name](root).entries
    disk = tmp_path / "disk"
    disk.mkdir()
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        folder.rename(disk / folder.name)
        (root / folder.name).symlink_to(disk / folder.name)
    loops = {"loop": root, "self": root / "self", "up": tmp_path, "twice": next(disk.iterdir())}
    for link, target in loops.items():
        (root / link).symlink_to(target)
    (disk / next(disk.iterdir()).name / "loop").symlink_to(disk)
    write_music(tmp_path / "beside" / "song.wav", 0)
    found = LAYOUTS[name](root)
    assert found.entries == expected
    told = reasons(root, name)
    assert "leads out of the corpus' folder" in told["up"]
    assert not [path for path in told if "beside" in path]


# MAESTRO's files lie in folders directly in the corpus.
@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"maestro"}))
def test_a_linked_folder_outside_is_no_part_and_loops_end(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    root = copied(name)
    folder = files_of(root, LAYOUTS[name](root).entries[0])[0].parent
    outside = Path(shutil.move(folder, tmp_path / "outside"))
    folder.symlink_to(outside)
    (root / "loop").symlink_to(root)
    found = LAYOUTS[name](root)
    assert 0 < len(found.entries) < len(EXPECTED[name])
    assert "leads out of the corpus' folder" in reasons(root, name)[str(folder.relative_to(root))]
    assert all(path.resolve().is_relative_to(root.resolve()) for e in found.entries for path in files_of(root, e))


@pytest.mark.parametrize("name", ["fma", "jamendo", "maestro"])
def test_a_missing_file_is_skipped_with_table_and_line(name: str, copied: Callable[[str], Path]) -> None:
    root = copied(name)
    gone = sorted(EXPECTED[name])[-1]
    (root / gone).unlink()
    assert {entry.name for entry in LAYOUTS[name](root).entries} == EXPECTED[name].keys() - {gone}
    (reason,) = reasons(root, name).values()
    assert ", line " in reason
    assert "names it, but it is not there" in reason


@pytest.mark.parametrize("name", ["fma", "jamendo", "maestro"])
def test_tables_without_any_audio_are_refused(name: str, copied: Callable[[str], Path]) -> None:
    root = copied(name)
    for path in (*root.rglob("*.mp3"), *root.rglob("*.wav")):
        path.unlink()
    with pytest.raises(LayoutError, match="is not laid out as"):
        LAYOUTS[name](root)


def test_a_song_of_musdb_without_its_mixture_is_skipped(copied: Callable[[str], Path]) -> None:
    root = copied("musdb18hq")
    song = "train/Hop Along - Sister Cities"
    (root / song / "mixture.wav").unlink()
    assert len(LAYOUTS["musdb18hq"](root).entries) == 5
    assert "no mixture.wav" in reasons(root, "musdb18hq")[song]


def test_compressed_musdb_is_refused_with_what_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "ANiMAL - Rockshow.stem.mp4").write_bytes(b"ftyp")
    with pytest.raises(LayoutError, match=r"Rockshow\.stem\.mp4': \.mp4 cannot be read here; convert it"):
        LAYOUTS["musdb18hq"](tmp_path)


def test_musdb_validates_on_fourteen_songs_of_fourteen_artists() -> None:
    assert len(VALIDATION) == len({song.partition(" - ")[0] for song in VALIDATION}) == 14


def test_musdb_songs_with_strange_names_keep_them(copied: Callable[[str], Path]) -> None:
    root = copied("musdb18hq")
    song = root / "test" / os.fsdecode(b"Zw\xf6lf\n \xf0\x9f\x8e\xb5 \\x41 - x")
    shutil.move(root / "test" / "Zeno - Signs", song)
    shutil.copytree(song, root / "test" / "no dash")
    entries = LAYOUTS["musdb18hq"](root).entries
    odd, plain = entries[1], entries[2]
    assert files_of(root, odd) == [song / "mixture.wav"]
    assert probe(files_of(root, odd)[0]).frames > 0
    assert odd.name.encode().isascii() is False
    assert odd.group == ""
    assert odd.artist == "Zw\\xf6lf\\x0a 🎵 \\x5cx41"
    assert (plain.name, plain.group) == ("test/no dash/mixture.wav", "")


def test_slakh_takes_one_mixture_a_song_and_none_without_its_uuid(copied: Callable[[str], Path]) -> None:
    root = copied("slakh")
    write_music(root / "train" / "Track00001" / "mix.wav", 0)
    (root / "train" / "Track00002" / "metadata.yaml").unlink()
    (root / "test" / "Track01876" / "metadata.yaml").write_text("stems: {UUID: x}\n", encoding="utf-8")
    (root / "validation" / "Track01501" / "mix.flac").unlink()
    write_music(root / "validation" / "Track01501" / "mix.wav", 2)
    entries = LAYOUTS["slakh"](root).entries
    assert [entry.name for entry in entries] == ["train/Track00001/mix.flac", "validation/Track01501/mix.wav"]
    told = reasons(root, "slakh")
    assert "once more" in told["train/Track00001/mix.wav"]
    assert "no UUID" in told["train/Track00002/mix.flac"]
    assert "no UUID" in told["test/Track01876/mix.flac"]
    assert "2 audio files" in told["omitted"]


def test_a_song_of_moisesdb_without_a_source_is_no_track(copied: Callable[[str], Path]) -> None:
    root = copied("moisesdb")
    first = LAYOUTS["moisesdb"](root).entries[0]
    assert len(first.parts) == 4
    files_of(root, first)[1].unlink()
    assert len(LAYOUTS["moisesdb"](root).entries) == 2
    told = reasons(root, "moisesdb")
    assert told.keys() == {first.name, first.parts[1]}
    assert "1 of its 4 sources are missing" in told[first.name]


def test_a_folder_that_vanishes_while_it_is_searched_is_no_traceback(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied("moisesdb")
    scan = os.scandir

    def late(path: str) -> object:
        # Just after it was listed by the folder above.
        if str(path).endswith("moisesdb_v0.1"):
            shutil.rmtree(path, ignore_errors=True)
        return scan(path)

    monkeypatch.setattr(os, "scandir", late)
    # Newer versions of Python find nothing there, this one's error is turned into ours.
    with pytest.raises(LayoutError, match=r"cannot be searched for \*/\*/data\.json .*retry|is not laid out as"):
        LAYOUTS["moisesdb"](root)
