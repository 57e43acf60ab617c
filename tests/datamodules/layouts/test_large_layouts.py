"""What only FMA and MTG-Jamendo have: subsets, several folders of the same tracks, tables that lie elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from miniatures import FMA_ROWS, JAMENDO_ROWS, fma_table, write_music

from datamodules.layouts import LAYOUTS, LayoutError

fma, jamendo = LAYOUTS["fma"], LAYOUTS["jamendo"]


@pytest.mark.parametrize("place", ["fma_small/tracks.csv", "fma_small/fma_metadata/tracks.csv", "tracks.csv"])
def test_the_table_is_found_around_a_subset_s_folder(place: str, copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    expected = ["000/000002.mp3", "000/000140.mp3", "001/001000.mp3"]
    assert [entry.name for entry in fma(root / "fma_small").entries] == expected  # fma_metadata/ lies beside it
    (root / place).parent.mkdir(exist_ok=True)
    (root / "fma_metadata" / "tracks.csv").rename(root / place)
    assert [entry.name for entry in fma(root / "fma_small").entries] == expected


def test_without_the_table_the_error_says_where_to_get_it_and_where_to_put_it(copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    shutil.rmtree(root / "fma_metadata")
    with pytest.raises(LayoutError, match=r"fma_metadata\.zip.*https://github\.com/mdeff/fma.*unpack") as refusal:
        fma(root)
    assert repr(str(root / "fma_metadata")) in str(refusal.value)


def test_only_tracks_of_the_subsets_that_are_there_are_missed(copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    assert fma(root).skipped == ()
    write_music(root / "fma_large" / "155" / "155320.mp3", 7)
    found = fma(root)
    assert len(found.entries) == 4
    # Track 5 of medium belongs into large too; the longest version's folder is where it is missed.
    (missed,) = found.skipped
    assert missed.path == root / "fma_large" / "000" / "000005.mp3"
    # Three rows of names, then two lines more in each biography.
    assert missed.reason.startswith("tracks.csv, line 7, names it")


def test_of_a_track_in_several_folders_the_longest_version_counts(copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    for folder in ("fma_full", "fma_medium"):
        write_music(root / folder / "000" / "000002.mp3", 8)
    found = fma(root)
    assert {entry.name for entry in found.entries} == {
        *("fma_full/000/000002.mp3", "fma_small/000/000140.mp3", "fma_small/001/001000.mp3"),
    }
    reasons = {file.path.parts[-3]: file.reason for file in found.skipped}
    assert reasons.keys() == {"fma_medium", "fma_small"}
    assert all("is track 2 once more, after 'fma_full/000/000002.mp3'" in reason for reason in reasons.values())


def test_files_that_are_no_track_of_the_table_are_skipped(copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    write_music(root / "fma_small" / "000" / "000003.mp3", 8)  # unknown
    write_music(root / "fma_small" / "001" / "000140.mp3", 8)  # in another folder than its own
    write_music(root / "fma_small" / "000" / "0002.mp3", 8)
    write_music(root / "fma_small" / "٠٠٠" / "٠٠٠٠٠٥.mp3", 8)  # digits, but not these
    found = fma(root)
    assert len(found.entries) == 3
    reasons = {file.path.name: file.reason for file in found.skipped}
    assert reasons["000003.mp3"] == "tracks.csv has no track 3"
    assert len(reasons) == 4
    assert all("is no <3 digits>" in reason for name, reason in reasons.items() if name != "000003.mp3")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("set.split", "holdout", r"line 4: the split 'holdout' is none of train, validation, test"),
        ("set.subset", "tiny", r"line 4: the subset 'tiny' is none of small, medium, large"),
        ("track_id", "../2", r"line 4: the track '\.\./2' is no number"),
        ("track_id", "²", r"line 4: the track '²' is no number"),
        ("track_id", "140", r"line 10: the track 140 has a line before"),
    ],
)
def test_a_wrong_value_is_an_error_with_its_line(
    column: str, value: str, message: str, copied: Callable[[str], Path]
) -> None:
    root = copied("fma")
    rows = [FMA_ROWS[0] | {column: value}, *FMA_ROWS[1:]]
    (root / "fma_metadata" / "tracks.csv").write_text(fma_table(rows), encoding="utf-8")
    with pytest.raises(LayoutError, match=f"tracks.csv', {message}"):
        fma(root)


@pytest.mark.slow
def test_a_table_as_long_as_the_real_one_takes_seconds(copied: Callable[[str], Path]) -> None:
    root = copied("fma")
    numbers = [1000 * folder + number for folder in range(155) for number in range(690)]
    row = dict(FMA_ROWS[0]) | {"track_id": "@", "artist.bio": '<p>A "long", long story,\nin lines</p>' * 5}
    header, mark, record = fma_table([row]).rpartition("@")
    table = header + "".join(f"{number}{record}" for number in numbers)
    (root / "fma_metadata" / "tracks.csv").write_text(table, encoding="utf-8")
    start = time.process_time()
    found = fma(root)
    assert time.process_time() - start < 15  # measured: 3
    assert mark
    assert len(found.entries) == 3
    assert len(found.skipped) == len(numbers) - 3


def test_jamendo_takes_the_better_quality_and_the_cleaner_tags(copied: Callable[[str], Path]) -> None:
    root = copied("jamendo")
    write_music(root / "raw_30s" / "audio-low" / "14" / "214.low.mp3", 9)
    raw = (root / "data" / "autotagging.tsv").read_text(encoding="utf-8").replace("genre---punkrock", "genre---punk")
    (root / "data" / "raw_30s.tsv").write_text(
        raw + "track_0000999\tartist_000001\talbum_1\t99/999.mp3\t31.0\tgenre---pop\n", encoding="utf-8"
    )
    write_music(root / "raw_30s" / "audio" / "99" / "999.mp3", 10)
    found = jamendo(root)
    entries = {entry.name: entry for entry in found.entries}
    assert entries["raw_30s/audio/14/214.mp3"].genre == "punkrock"
    assert entries["raw_30s/audio/99/999.mp3"].genre == "pop"
    (low,) = found.skipped
    assert low.path.name == "214.low.mp3"
    assert "is 14/214.mp3 once more" in low.reason


def test_jamendo_s_tables_may_lie_in_a_clone_beside_the_audio(copied: Callable[[str], Path]) -> None:
    root = copied("jamendo")
    (root / "mtg-jamendo-dataset").mkdir()
    (root / "data").rename(root / "mtg-jamendo-dataset" / "data")
    expected = {row.split("\t")[3] for _, row in JAMENDO_ROWS if "786434" not in row}
    assert {e.name.removeprefix("raw_30s/audio/") for e in jamendo(root).entries} >= expected
    (root / "mtg-jamendo-dataset" / "data").rename(root / "raw_30s" / "data")
    found = jamendo(root / "raw_30s" / "audio")
    assert {entry.name for entry in found.entries} == expected
    assert {entry.split for entry in found.entries} == {"train", "validation", ""}
    assert [file.path.name for file in found.skipped] == ["786434.mp3"]


def test_jamendo_without_split_files_has_no_split_and_with_two_of_three_is_refused(
    copied: Callable[[str], Path],
) -> None:
    root = copied("jamendo")
    splits = root / "data" / "splits" / "split-0"
    (splits / "autotagging-test.tsv").unlink()
    with pytest.raises(LayoutError, match=r"autotagging-test\.tsv': cannot be read"):
        jamendo(root)
    shutil.rmtree(splits)
    assert {entry.split for entry in jamendo(root).entries} == {""}


def test_a_track_on_two_sides_of_jamendo_s_split_is_refused(copied: Callable[[str], Path]) -> None:
    root = copied("jamendo")
    test = root / "data" / "splits" / "split-0" / "autotagging-test.tsv"
    with test.open("a", encoding="utf-8") as file:
        file.write(JAMENDO_ROWS[0][1])
    with pytest.raises(LayoutError, match=r"autotagging-test\.tsv', line 3: track_0000214 is in train too"):
        jamendo(root)


def test_jamendo_without_tables_says_what_to_clone(copied: Callable[[str], Path]) -> None:
    root = copied("jamendo")
    shutil.rmtree(root / "data")
    with pytest.raises(LayoutError, match=r"git clone https://github\.com/MTG/mtg-jamendo-dataset '"):
        jamendo(root)
