"""Nothing of the user's is overwritten, and what cannot be prepared is said before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_of
from music_files import noisy_tones, write_raw

from datamodules.corpora.manifest import typed, write_manifest
from datamodules.preparing.jobs import Settings
from datamodules.preparing.log import PrepareError
from datamodules.preparing.prepare import INDEX_NAME, MANIFEST_NAME, PASSED_OVER_NAME, prepare
from datamodules.preparing.refusals import require_apart

FLAC = Settings("flac24", as_shards=False)
SHARDS = Settings("pcm16", as_shards=True)


@pytest.fixture
def music(tmp_path: Path) -> pandas.DataFrame:
    """`src/x.flac` and `src/folder/x.flac`: prepared into `src`, the first would become the second."""
    files = [
        write_raw(tmp_path / "src" / name, noisy_tones(0.3, 48000, seed), 48000)
        for seed, name in enumerate(["x.flac", "folder/x.flac"])
    ]
    return manifest_of(tmp_path / "src", files)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("settings", [FLAC, SHARDS])
@pytest.mark.parametrize(
    ("out", "relation"),
    [("src", "is the folder"), ("src/new", "lies in"), ("other/../src/folder", "lies in"), (".", "holds")],
)
def test_music_is_not_written_into(
    music: pandas.DataFrame, tmp_path: Path, out: str, relation: str, settings: Settings
) -> None:
    before = everything(tmp_path)
    with pytest.raises(PrepareError, match=f"{relation} .*src.*type --out.*src-prepared"):
        prepare(music, tmp_path / out, settings)
    assert everything(tmp_path) == before


def test_links_lead_nowhere_else(music: pandas.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("src")
    linked_root = music.assign(root=str(tmp_path / "link"))
    for table, out in ((music, "link"), (music, "link/new"), (linked_root, "src")):
        with pytest.raises(PrepareError, match="type --out"):
            prepare(table, tmp_path / out, FLAC)
    assert prepare(music, tmp_path / "src-prepared", FLAC).tracks == 2


parts = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4)


@pytest.mark.slow
@given(root=parts, out=parts)
def test_apart_is_neither_inside_nor_around(root: list[str], out: list[str]) -> None:
    table = typed(pandas.DataFrame({"root": ["/".join(["/none", *root])], "name": ["x.flac"]}))
    shorter = min(len(root), len(out))
    if root[:shorter] == out[:shorter]:
        with pytest.raises(PrepareError):
            require_apart(table, Path("/none", *out))
    else:
        require_apart(table, Path("/none", *out))


@pytest.mark.parametrize("root", ["\\x00", "/a\\x00b", "/" + "x" * 5000])
def test_a_root_that_no_disk_has_is_no_traceback(music: pandas.DataFrame, tmp_path: Path, root: str) -> None:
    require_apart(music.assign(root=root), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "name"),
    [(FLAC, MANIFEST_NAME), (FLAC, PASSED_OVER_NAME), (SHARDS, INDEX_NAME), (SHARDS, PASSED_OVER_NAME)],
)
def test_the_manifest_is_not_overwritten(
    music: pandas.DataFrame, tmp_path: Path, settings: Settings, name: str
) -> None:
    manifest = tmp_path / "out" / name
    write_manifest(music, manifest)
    before = everything(tmp_path)
    with pytest.raises(PrepareError, match=r"would be overwritten.*type another --out"):
        prepare(music, tmp_path / "out", settings, manifest=tmp_path / "src" / ".." / "out" / name)
    assert everything(tmp_path) == before
    assert prepare(music, tmp_path / "new", settings, manifest=manifest).tracks == 2


def test_unknown_splits_are_named(music: pandas.DataFrame, tmp_path: Path) -> None:
    table = music.assign(split=["größe", "valid"])
    for settings in (FLAC, SHARDS):
        with pytest.raises(PrepareError, match="'größe', 'valid'; allowed are train, validation, test and nothing"):
            prepare(table, tmp_path / "out", settings)
    many = pandas.concat([music.assign(split=f"fold {number}") for number in range(9)])
    with pytest.raises(PrepareError, match=r"'fold 4', \.\.\.;"):
        prepare(many, tmp_path / "out", SHARDS)
    assert not (tmp_path / "out").exists()


def test_an_index_of_shards_is_prepared_already(music: pandas.DataFrame, tmp_path: Path) -> None:
    index = prepare(music, tmp_path / "shards", SHARDS).path
    for settings in (FLAC, replace(SHARDS, encoding="flac24")):
        with pytest.raises(PrepareError, match=r"index of shards, prepared already.*data\.shards=FOLDER"):
            prepare(pandas.read_parquet(index), tmp_path / "out", settings, manifest=index)
    assert not (tmp_path / "out").exists()
