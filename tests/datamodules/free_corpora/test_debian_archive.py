from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins import ar, deb, tar, write_files

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.debian_archive import Control, read_control, unpack

FILES = {"usr/share/music/a b.ogg": b"one" * 1000, "usr/share/music/deep/c.ogg": b"two", "usr/bin/game": b"elf"}
WANTED = ("usr/share/music/*.ogg",)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "package.deb"
    path.write_bytes(content)
    return path


def unpacked(path: Path, folder: Path, wanted: tuple[str, ...] = WANTED) -> dict[str, bytes]:
    unpack(path, folder, wanted, lambda name: None)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2"])
def test_wanted_files_and_no_others_are_unpacked(tmp_path: Path, compression: str) -> None:
    path = written(tmp_path, deb("game-music", FILES, version="1:2.0-3", compression=compression))
    assert read_control(path) == Control("game-music", "1:2.0-3")
    assert unpacked(path, tmp_path / "out") == {name: FILES[name] for name in FILES if name.endswith(".ogg")}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is Debian's")
@pytest.mark.parametrize("compression", ["xz", "none", "zstd"])
def test_packages_made_by_dpkg_deb_are_read(tmp_path: Path, compression: str) -> None:
    control = b"Package: game-music\nVersion: 7\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: x\n"
    tree = write_files(tmp_path / "tree", {**FILES, "DEBIAN/control": control})
    path = tmp_path / "made.deb"
    subprocess.run(["dpkg-deb", f"-Z{compression}", "-b", tree, path], check=True, capture_output=True)
    assert read_control(path) == Control("game-music", "7")
    assert unpacked(path, tmp_path / "out") == {name: FILES[name] for name in FILES if name.endswith(".ogg")}


def test_a_compression_that_needs_dpkg_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = written(tmp_path, ar([("debian-binary", b"2.0\n"), ("control.tar.zst", b"x"), ("data.tar.zst", b"x")]))
    with pytest.raises(RecipeError, match=r"\.zst, which needs dpkg-deb.*--source FOLDER"):
        read_control(path)


def test_nothing_is_written_outside_and_links_are_passed_over(tmp_path: Path) -> None:
    hostile = {"../evil.ogg": b"x", "usr/share/music/../../../../evil.ogg": b"x", "usr/share/music/good.ogg": b"y"}
    data = tar({**hostile, "/evil.ogg": b"x"}, links={"usr/share/music/link.ogg": "/etc/passwd"})
    path = written(tmp_path, ar([("debian-binary", b"2.0\n"), ("data.tar.xz", data)]))
    assert unpacked(path, tmp_path / "out", ("*.ogg",)) == {"usr/share/music/good.ogg": b"y"}
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a Debian package"),
        (b"PK\x03\x04" + bytes(100), "not a Debian package"),
        (ar([("debian-binary", b"2.0\n")]), "no control.tar"),
        (ar([("control.tar.gz", tar({"./other": b""}, "gz"))]), "no control file"),
        (ar([("control.tar.gz", tar({"./control": b"Package: x\n"}, "gz"))]), "no package and version"),
        (ar([("control.tar.gz", b"no gzip")]), "damaged or cut short"),
        (b"!<arch>\n" + b"x" * 60, "no control.tar"),
    ],
)
def test_what_is_no_package_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(RecipeError, match=said) as caught:
        read_control(path)
    assert str(path) in str(caught.value)


def test_a_missing_package_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be opened: No such file"):
        read_control(tmp_path / "none.deb")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_damaged_packages_give_files_or_a_recipe_error(tmp_path: Path, position: int, value: int, cut: int) -> None:
    content = bytearray(deb("game-music", FILES))
    content[position % len(content)] = value
    path = written(tmp_path, bytes(content[: len(content) - (cut % len(content) if cut % 2 else 0)]))
    with suppress(RecipeError):
        assert read_control(path).package
        unpack(path, tmp_path / "out", WANTED, lambda name: None)
    assert not [p for p in tmp_path.iterdir() if p.name not in ("out", "package.deb")]
