"""A folder that was prepared from one manifest is not replaced by another one, however the one has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.manifest import write_manifest
from datamodules.preparing.jobs import Settings
from datamodules.preparing.log import PrepareError
from datamodules.preparing.prepare import Prepared, prepare

FLAC = Settings("flac24", as_shards=False)
SHARDS = Settings("pcm16", as_shards=True)
Change = Callable[[pandas.DataFrame, Path], pandas.DataFrame]


def scanned(root: Path, *names: str, **columns: object) -> pandas.DataFrame:
    files = [
        write_raw(root / name, noisy_tones(0.2, 48000, seed), 48000) if not (root / name).exists() else root / name
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


def test_what_was_begun_is_not_replaced(mine: pandas.DataFrame, tmp_path: Path) -> None:
    prepared(mine, tmp_path, "mine.parquet", SHARDS).path.unlink()
    with pytest.raises(PrepareError, match=r"holds 2 tracks.*the first 'folder/a\.wav'"):
        prepared(scanned(tmp_path / "other", "c.wav"), tmp_path, "other.parquet", SHARDS)
    assert prepared(mine, tmp_path, "mine.parquet", SHARDS).made == 0


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
    "put together": lambda table, root: pandas.concat(
        [scanned(root.parent / "other", "c.wav").assign(corpus="other"), table.assign(content_hash="")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", list(UPDATES))
def test_the_same_music_goes_on_however_its_manifest_is_called(
    mine: pandas.DataFrame, tmp_path: Path, change: str
) -> None:
    prepared(mine, tmp_path, "mine.parquet")
    new = UPDATES[change](mine, tmp_path / "mine")
    assert prepared(new, tmp_path, "called otherwise.parquet").tracks == len(new)


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


def test_a_manifest_that_cannot_be_read_is_made_again(mine: pandas.DataFrame, tmp_path: Path) -> None:
    made = prepared(mine, tmp_path, "mine.parquet")
    made.path.write_bytes(b"damaged")
    assert prepared(mine.iloc[:1], tmp_path, "less.parquet").tracks == 1
