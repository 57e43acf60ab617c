from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_ins import (
    SMALL_FONT_PACKAGE,
    apt_get,
    deb,
    freedoom_files,
    on_path,
    program,
    soundfont_files,
    write_debs,
    write_files,
)

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.downloading import downloaded
from datamodules.free_corpora.packages import Given, found_packages


class Silent:
    """A report that remembers what was being done."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def doing(self, what: str) -> None:
        self.said.append(what)

    def total(self, seconds: float) -> None: ...

    def advance(self, seconds: float) -> None: ...


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in apt-get on PATH that has both packages, and where it writes its log."""
    log = tmp_path / "apt.log"
    apt_get(tmp_path / "bin", write_debs(tmp_path / "served"), log)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return log


def downloads(log: Path) -> int:
    return sum("--print-uris" not in line for line in log.read_text().splitlines())


def test_a_package_is_downloaded_once(tmp_path: Path, archive: Path) -> None:
    report = Silent()
    first = downloaded("freedoom", tmp_path / "cache", report)
    assert first.read_bytes() == (tmp_path / "served" / first.name).read_bytes()
    assert downloaded("freedoom", tmp_path / "cache", report) == first
    assert downloads(archive) == 1
    assert any(line.startswith("downloading freedoom: 0 of") for line in report.said)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", first.name]


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path: Path, archive: Path) -> None:
    path = downloaded("freedoom", tmp_path / "cache", Silent())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert downloaded("freedoom", tmp_path / "cache", Silent()).read_bytes() == whole
    assert downloads(archive) == 2


def test_a_file_that_was_not_promised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debs = write_debs(tmp_path / "served")
    apt_get(tmp_path / "bin", debs, tmp_path / "log", promised={"freedoom": "0" * 64})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RecipeError, match="not the file that was promised"):
        downloaded("freedoom", tmp_path / "cache", Silent())
    assert not list((tmp_path / "cache").rglob("*.deb"))


def test_an_unknown_package_is_said_with_apts_own_words(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(RecipeError, match=r"E: Unable to locate package nosuch\); type: apt-get update") as caught:
        downloaded("nosuch", tmp_path / "cache", Silent())
    assert "--package-file" in str(caught.value)


def test_a_download_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """import sys
if "--print-uris" in sys.argv:
    print("'http://x/f.deb' f_1_all.deb 5 SHA256:00")
else:
    print("E: Failed to fetch f.deb  Could not connect", "W: sandbox", sep="\\n", file=sys.stderr)
    sys.exit(100)
"""
    program(tmp_path / "bin", "apt-get", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RecipeError, match=r"could not be downloaded \(E: Failed to fetch"):
        downloaded("f", tmp_path / "cache", Silent())


def test_no_apt_get_is_said_with_the_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", on_path(tmp_path / "empty"))
    with pytest.raises(RecipeError, match=r"no apt-get here.*--package-file FILE\.deb, or --source FOLDER"):
        downloaded("freedoom", tmp_path / "cache", Silent())


NAMES: dict[str, tuple[str, ...]] = {"freedoom": ("usr/share/games/*",), SMALL_FONT_PACKAGE: ("usr/share/sounds/*",)}


def test_packages_come_from_folders_then_files_then_apt(tmp_path: Path, archive: Path) -> None:
    folder = write_files(tmp_path / "folder", soundfont_files())
    given = Given([folder], [], tmp_path / "cache")
    packages = found_packages(NAMES, given, tmp_path / "work", Silent())
    assert packages[SMALL_FONT_PACKAGE].root == folder
    assert packages["freedoom"].version == "1.0-1"
    assert (packages["freedoom"].root / "usr/share/games/doom/freedoom1.wad").is_file()
    assert archive.read_text().count("download freedoom") == 1
    assert SMALL_FONT_PACKAGE not in archive.read_text()


def test_package_files_are_told_apart_by_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", on_path(tmp_path / "empty"))
    files = [path.rename(tmp_path / f"{i}.deb") for i, path in enumerate(write_debs(tmp_path / "x").values())]
    packages = found_packages(NAMES, Given([], files, tmp_path / "cache"), tmp_path / "work", Silent())
    assert {name: len(package.sha256) for name, package in packages.items()} == {"freedoom": 64, SMALL_FONT_PACKAGE: 64}


def test_another_file_of_the_same_package_is_unpacked_again(tmp_path: Path) -> None:
    font = write_debs(tmp_path / "x")[SMALL_FONT_PACKAGE]
    newer = tmp_path / "newer.deb"
    newer.write_bytes(deb("freedoom", {**freedoom_files(), "usr/share/games/new": b""}, version="2"))
    for file, version in ((tmp_path / "x" / "freedoom_1.0-1_all.deb", "1.0-1"), (newer, "2")):
        packages = found_packages(NAMES, Given([], [file, font], tmp_path), tmp_path / "work", Silent())
        assert packages["freedoom"].version == version
        assert (packages["freedoom"].root / "usr/share/games/new").exists() == (version == "2")


def test_a_file_of_another_package_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.deb"
    other.write_bytes(deb("tetris", {}))
    with pytest.raises(
        RecipeError, match=f"holds the package tetris; this recipe needs freedoom and {SMALL_FONT_PACKAGE}"
    ):
        found_packages(NAMES, Given([], [other], tmp_path), tmp_path / "work", Silent())


def test_a_folder_without_such_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds none of the packages freedoom and"):
        found_packages(NAMES, Given([tmp_path], [], tmp_path), tmp_path / "work", Silent())
