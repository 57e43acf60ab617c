"""A folder that was prepared from one manifest is not replaced by another one, however the one has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.corpora.manifest import MANIFEST_NAME, write_manifest
from datamodules.preparing.jobs import Settings
from datamodules.preparing.log import PrepareError
from datamodules.preparing.prepare import Prepared, prepare

pytestmark = pytest.mark.processes

FLAC = Settings("flac24", as_shards=False)
SHARDS = Settings("pcm16", as_shards=True)
Change = Callable[[pandas.DataFrame, Path], pandas.DataFrame]


def scanned(root: Path, *names: str, seconds: float = 0.2, **columns: object) -> pandas.DataFrame:
    files = [
        write_raw(root / name, noisy_tones(seconds, 48000, seed), 48000) if not (root / name).exists() else root / name
        for seed, name in enumerate(names)
    ]
    return manifest_of(root, files, **columns)


def prepared(table: pandas.DataFrame, folder: Path, name: str, settings: Settings = FLAC) -> Prepared:
    """Into `folder / "out"`, from a file."""
    write_manifest(table, folder / name)
    return prepare(table, folder / "out", settings, manifest=folder / name)


@pytest.fixture
def mine(tmp_path: Path) -> pandas.DataFrame:
    return scanned(tmp_path / "mine", "a.wav", "b.wav", content_hash=["1", "2"])


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("settings", [FLAC, SHARDS])
@pytest.mark.parametrize("names", [("c.wav",), ("a.wav", "b.wav")])
def test_what_is_there_is_not_replaced(
    mine: pandas.DataFrame, tmp_path: Path, settings: Settings, names: tuple[str, ...]
) -> None:
    prepared(mine, tmp_path, "mine.parquet", settings)
    before = everything(tmp_path / "out")
    other = scanned(tmp_path / "other", *names, content_hash=[f"other {name}" for name in names])
    message = (
        rf"--out '.*/out' holds 2 tracks of '.*/mine\.parquet', the first 'folder/a\.wav'; none of them is in "
        rf"'.*/other\.csv', which would replace them: type another --out, for instance --out '{tmp_path}/out-other', "
        "or remove the folder"
    )
    with pytest.raises(PrepareError, match=message):
        prepared(other, tmp_path, "other.csv", settings)
    assert everything(tmp_path / "out") == before
    assert prepared(mine, tmp_path, "mine.parquet", settings).made == 0


@pytest.mark.parametrize("settings", [FLAC, SHARDS])
@pytest.mark.parametrize("names", [("c.wav",), ("a.wav", "b.wav")])
def test_what_was_begun_is_not_replaced(
    mine: pandas.DataFrame, tmp_path: Path, settings: Settings, names: tuple[str, ...]
) -> None:
    prepared(mine, tmp_path, "mine.parquet", settings).path.unlink()
    before = everything(tmp_path / "out")
    other = scanned(tmp_path / "other", *names, content_hash=[f"other {name}" for name in names])
    with pytest.raises(PrepareError, match=r"holds 2 tracks.*the first 'folder/a\.wav"):
        prepared(other, tmp_path, "other.parquet", settings)
    assert everything(tmp_path / "out") == before
    assert prepared(mine, tmp_path, "mine.parquet", settings).made == 0


def test_usable_tracks_alone_are_in_common(mine: pandas.DataFrame, tmp_path: Path) -> None:
    prepared(mine, tmp_path, "mine.parquet")
    other = scanned(tmp_path / "other", "a.wav", "c.wav", content_hash=["", "3"], problem=["is empty", ""])
    with pytest.raises(PrepareError, match="holds 2 tracks"):
        prepared(other, tmp_path, "other.parquet")


@pytest.mark.parametrize("settings", [FLAC, SHARDS])
@pytest.mark.parametrize(
    ("names", "seconds"), [(("a.wav", "c.wav", "d.wav", "e.wav", "f.wav"), 0.2), (("a.wav", "b.wav"), 0.3)]
)
def test_without_samples_a_name_in_another_folder_says_little(
    tmp_path: Path, settings: Settings, names: tuple[str, ...], seconds: float
) -> None:
    mine = scanned(tmp_path / "mine", "a.wav", "b.wav", "g.wav", content_hash=["1", "2", "7"])
    prepared(mine, tmp_path, "mine.parquet", settings)
    with pytest.raises(PrepareError, match="holds 3 tracks"):
        prepared(scanned(tmp_path / "other", *names, seconds=seconds), tmp_path, "other.parquet", settings)


def test_the_pieces_of_a_track_are_as_long_as_the_track(mine: pandas.DataFrame, tmp_path: Path) -> None:
    pieces = replace(SHARDS, piece_seconds=0.15)
    prepared(mine, tmp_path, "mine.parquet", pieces)
    other = scanned(tmp_path / "other", "c.wav")
    with pytest.raises(PrepareError, match="holds 2 tracks"):
        prepared(other, tmp_path, "other.parquet", pieces)
    moved = scanned(tmp_path / "moved", "a.wav", "b.wav")
    assert prepared(moved, tmp_path, "moved.parquet", pieces).tracks == 2


def test_an_empty_manifest_keeps_nobody_out(mine: pandas.DataFrame, tmp_path: Path) -> None:
    write_manifest(mine.iloc[:0], tmp_path / "out" / MANIFEST_NAME)
    assert prepared(mine, tmp_path, "mine.parquet").tracks == 2
    # Unless the log knows of music.
    write_manifest(mine.iloc[:0], tmp_path / "out" / MANIFEST_NAME)
    with pytest.raises(PrepareError, match="holds 2 tracks"):
        prepared(scanned(tmp_path / "other", "c.wav"), tmp_path, "other.parquet")


UPDATES: dict[str, Change] = {
    "a file less": lambda table, root: table.iloc[:1],
    "a file more": lambda table, root: scanned(root, "a.wav", "b.wav", "c.wav"),
    "a column more": lambda table, root: table.assign(mood="calm"),
    "headers only": lambda table, root: table.assign(content_hash=""),
    "other samples in all files": lambda table, root: table.assign(content_hash=["3", "4"]),
    "another name": lambda table, root: table.assign(corpus="live"),
    "another name, headers only": lambda table, root: table.assign(corpus="live", content_hash=""),
    "other names of the files": lambda table, root: scanned(root, "c.wav", "d.wav", content_hash=["1", "2"]),
    "another folder": lambda table, root: scanned(root.parent / "moved", "a.wav", "b.wav", content_hash=["1", "2"]),
    "another folder, headers only": lambda table, root: scanned(root.parent / "moved", "a.wav", "b.wav"),
    "another folder, headers only, a file less": lambda table, root: scanned(root.parent / "moved", "a.wav"),
    "put together": lambda table, root: pandas.concat(
        [scanned(root.parent / "other", "c.wav").assign(corpus="other"), table.assign(content_hash="")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("settings", [FLAC, SHARDS])
@pytest.mark.parametrize("change", list(UPDATES))
def test_the_same_music_goes_on_however_its_manifest_is_called(
    mine: pandas.DataFrame, tmp_path: Path, change: str, settings: Settings, is_finished: bool
) -> None:
    made = prepared(mine, tmp_path, "mine.parquet", settings)
    if not is_finished:  # killed before this was written
        made.path.unlink()
    new = UPDATES[change](mine, tmp_path / "mine")
    assert prepared(new, tmp_path, "called otherwise.parquet", settings).tracks == len(new)


def test_the_same_manifest_may_change_altogether(mine: pandas.DataFrame, tmp_path: Path) -> None:
    """A folder of a single file, which makes room for another one."""
    prepared(mine.iloc[:1], tmp_path, "mine.parquet")
    (tmp_path / "link").symlink_to(tmp_path)
    write_manifest(mine.iloc[1:], tmp_path / "mine.parquet")
    manifest = tmp_path / "link" / "mine.parquet"
    assert prepare(mine.iloc[1:], tmp_path / "out", FLAC, manifest=manifest).tracks == 1


@pytest.mark.parametrize("sources", [{}, {"manifests": 3, "roots": {"a": 1}}, {"manifests": [[]], "roots": [None]}])
def test_a_folder_of_an_older_version_goes_on_where_names_agree(
    mine: pandas.DataFrame, tmp_path: Path, sources: dict[str, object]
) -> None:
    prepared(mine, tmp_path, "mine.parquet")
    log = tmp_path / "out" / "prepared.jsonl"
    begin, *lines = map(json.loads, log.read_text().splitlines())
    log.write_text("".join(json.dumps(line) + "\n" for line in ({"settings": begin["settings"]} | sources, *lines)))
    changed = mine.assign(content_hash=["3", "4"])
    assert prepared(changed, tmp_path, "called otherwise.parquet").made == 0
    with pytest.raises(PrepareError, match="holds 2 tracks"):
        prepared(scanned(tmp_path / "other", "c.wav"), tmp_path, "other.parquet")


@pytest.mark.parametrize("sources", [{}, {"sources": 3}, {"sources": {"folder/a.wav.flac": [1]}}])
@pytest.mark.parametrize("settings", [FLAC, SHARDS])
def test_what_an_older_version_began_goes_on_by_names_and_folders(
    mine: pandas.DataFrame, tmp_path: Path, settings: Settings, sources: dict[str, object]
) -> None:
    prepared(mine, tmp_path, "mine.parquet", settings).path.unlink()
    log = tmp_path / "out" / "prepared.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line.pop("sources", None)
    log.write_text("".join(json.dumps(line | sources) + "\n" for line in lines))
    for name, seconds in (("c.wav", 0.2), ("b.wav", 0.3)):
        other = scanned(tmp_path / f"other {name}", name, seconds=seconds)
        with pytest.raises(PrepareError, match="holds 2 tracks"):
            prepared(other, tmp_path, "other.parquet", settings)
    moved = scanned(tmp_path / "moved", "a.wav", "b.wav")
    for number, table in enumerate((mine.assign(content_hash=["3", "4"]), moved)):
        prepared(table, tmp_path, f"called otherwise {number}.parquet", settings).path.unlink()


def test_a_manifest_that_cannot_be_read_is_made_again(mine: pandas.DataFrame, tmp_path: Path) -> None:
    made = prepared(mine, tmp_path, "mine.parquet")
    made.path.write_bytes(b"damaged")
    assert prepared(mine.iloc[:1], tmp_path, "less.parquet").tracks == 1
