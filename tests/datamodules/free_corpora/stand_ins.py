"""Small real things for the tests of recipes: MIDI files, WADs, a soundfont, Debian packages, and programs on PATH."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import struct
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

A4 = 69
# 96 ticks to a quarter note and the default tempo of half a second for it.
TICKS_PER_SECOND = 192
GAMES = "usr/share/games/doom"
SMALL_FONT = "usr/share/sounds/sf3/MuseScore_General_Lite.sf3"
SMALL_FONT_PACKAGE = "musescore-general-soundfont-small"
COPYRIGHT = "Files: *\nCopyright: 2001 Somebody\nLicense: freedoom-license\n"


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">4sI", name, len(body)) + body


def midi(*tracks: bytes, kind: int = 1, division: int = 96) -> bytes:
    header = chunk(b"MThd", struct.pack(">HHH", kind, len(tracks), division))
    return header + b"".join(chunk(b"MTrk", track) for track in tracks)


def delta(ticks: int) -> bytes:
    """A variable-length number."""
    digits = [ticks & 0x7F]
    while ticks := ticks >> 7:
        digits.append(ticks & 0x7F | 0x80)
    return bytes(reversed(digits))


END = b"\x00\xff\x2f\x00"


def tones(keys: Sequence[int], *, seconds: float = 0.5, rest: float = 0.0, velocity: int = 100) -> bytes:
    """A MIDI file: after a rest one note after another, with a tempo track of its own."""
    ticks = delta(round(seconds * TICKS_PER_SECOND))
    first = delta(round(rest * TICKS_PER_SECOND))
    notes = b"".join(
        (first if i == 0 else b"\0") + bytes((0x90, key, velocity)) + ticks + bytes((0x80, key, 0))
        for i, key in enumerate(keys)
    )
    return midi(b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big") + END, b"\x00\xc0\x00" + notes + END)


def chord(keys: Sequence[int], seconds: float = 1.0) -> bytes:
    """All keys at once, as loud as can be."""
    on = b"".join(bytes((0, 0x90, key, 127)) for key in keys)
    off = b"".join(
        delta(round(seconds * TICKS_PER_SECOND) if i == 0 else 0) + bytes((0x80, key, 0)) for i, key in enumerate(keys)
    )
    return midi(on + off + END, kind=0)


def wad(lumps: Sequence[tuple[str, bytes]], magic: bytes = b"IWAD") -> bytes:
    position, directory, body = 12, b"", b""
    for name, content in lumps:
        directory += struct.pack("<II8s", position, len(content), name.encode())
        body += content
        position += len(content)
    return struct.pack("<4sII", magic, len(lumps), position) + body + directory


def soundfont(amplitude: float = 0.5) -> bytes:
    """An SF2 file with one looped sine, so that key 69 sounds at 440 Hz."""
    period, periods = 100, 44
    wave = amplitude * np.sin(2 * np.pi * np.arange(period * periods) / period)
    samples = np.concatenate((np.round(wave * 32767), np.zeros(46))).astype("<i2").tobytes()
    header = struct.pack("<20s5I", b"sine", 0, period * periods, period, period * 41, 440 * period)
    tables = (
        (
            b"phdr",
            struct.pack("<20s3H3I", b"sine", 0, 0, 0, 0, 0, 0) + struct.pack("<20s3H3I", b"EOP", 0, 0, 1, 0, 0, 0),
        ),
        (b"pbag", struct.pack("<4H", 0, 0, 1, 0)),
        (b"pmod", bytes(10)),
        (b"pgen", struct.pack("<4H", 41, 0, 0, 0)),  # instrument 0
        (b"inst", struct.pack("<20sH", b"sine", 0) + struct.pack("<20sH", b"EOI", 1)),
        (b"ibag", struct.pack("<4H", 0, 0, 2, 0)),
        (b"imod", bytes(10)),
        (b"igen", struct.pack("<6H", 54, 1, 53, 0, 0, 0)),  # looped; sample 0
        (b"shdr", header + struct.pack("<BbHH", A4, 0, 0, 1) + struct.pack("<20s5IBbHH", b"EOS", *[0] * 9)),
    )
    info = (
        b"INFO" + _riff(b"ifil", struct.pack("<HH", 2, 1)) + _riff(b"isng", b"EMU8000\0") + _riff(b"INAM", b"sine\0\0")
    )
    data = b"sdta" + _riff(b"smpl", samples)
    presets = b"pdta" + b"".join(_riff(name, body) for name, body in tables)
    return _riff(b"RIFF", b"sfbk" + b"".join(_riff(b"LIST", part) for part in (info, data, presets)))


def _riff(name: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", name, len(body)) + body + b"\0" * (len(body) % 2)


def tar(files: Mapping[str, bytes], compression: str = "xz", links: Mapping[str, str] | None = None) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, to in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, to
            archive.addfile(member)
    return target.getvalue()


def ar(members: Sequence[tuple[str, bytes]]) -> bytes:
    content = b"!<arch>\n"
    for name, body in members:
        content += (
            f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        )
    return content


def deb(
    package: str, files: Mapping[str, bytes], *, version: str = "1.0-1", compression: str = "xz", **options: object
) -> bytes:
    """A package file as dpkg-deb writes it."""
    control = f"Package: {package}\nVersion: {version}\nArchitecture: all\nDescription: music\n for tests\n".encode()
    data = tar({f"./{name}": content for name, content in files.items()}, compression, **options)  # type: ignore[arg-type]
    return ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.gz", tar({"./control": control}, "gz")),
            (f"data.tar.{compression}", data),
        ]
    )


def freedoom_files() -> dict[str, bytes]:
    """A miniature of the package: four lumps with music, two of them the same."""
    return {
        f"{GAMES}/freedoom1.wad": wad(
            [
                ("D_E1M1", tones([69, 72])),
                ("D_E1M2", tones([60], seconds=1.0)),
                ("MAP01", b""),
                ("D_MUS", b"MUS\x1a...."),
            ]
        ),
        f"{GAMES}/freedoom2.wad": wad([("D_RUNNIN", tones([64])), ("D_AGAIN", tones([69, 72]))]),
        "usr/share/doc/freedoom/copyright": COPYRIGHT.encode(),
    }


def soundfont_files() -> dict[str, bytes]:
    return {
        SMALL_FONT: soundfont(),
        f"usr/share/doc/{SMALL_FONT_PACKAGE}/copyright": b"MIT licence, by somebody\n",
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_debs(folder: Path) -> dict[str, Path]:
    """The two packages that freedoom is built from, as files by package."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"freedoom": freedoom_files(), SMALL_FONT_PACKAGE: soundfont_files()}
    paths = {package: folder / f"{package}_1.0-1_all.deb" for package in files}
    for package, path in paths.items():
        path.write_bytes(deb(package, files[package]))
    return paths


def program(folder: Path, name: str, body: str) -> Path:
    """An executable Python script, to be found on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def apt_get(folder: Path, debs: Mapping[str, Path], log: Path, promised: Mapping[str, str] | None = None) -> Path:
    """An apt-get that serves these files as the real one does, and logs what it is asked.

    promised: SHA-256 by package where it shall not be the file's own.
    """
    known = {
        package: (str(path), path.name, path.stat().st_size, (promised or {}).get(package) or digest(path))
        for package, path in debs.items()
    }
    return program(
        folder,
        "apt-get",
        f"""import pathlib, shutil, sys
known, words = {known!r}, sys.argv[1:]
with open({str(log)!r}, "a") as log:
    log.write(" ".join(words) + "\\n")
package = words[-1]
if package not in known:
    sys.exit(print(f"E: Unable to locate package {{package}}", file=sys.stderr) or 100)
path, name, size, digest = known[package]
if "--print-uris" in words:
    print(f"'http://archive/pool/{{name}}' {{name}} {{size}} SHA256:{{digest}}")
else:
    shutil.copy(path, name)
""",
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fluidsynth(folder: Path, log: Path, *, peak: float = 0.5, seconds: float = 1.0, after: str = "") -> Path:
    """A fluidsynth that gives a real WAV file with a tone and then half a second of silence.

    after: shell commands to end with; $target is the WAV file, $* what it was told.
    """
    tone = peak * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48000)) / 48000)
    tone[100] = peak
    audio = np.concatenate((np.stack((tone, -tone), axis=1), np.zeros((24000, 2))))
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "tone.wav", audio, 48000, "FLOAT")
    path = folder / "fluidsynth"
    path.write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo 'FluidSynth runtime version 9.8.7'; exit; fi
echo "$*" >> '{log}'
for word; do if [ "$last" = -F ]; then target=$word; fi; last=$word; done
{shutil.which("cp")} '{folder / "tone.wav"}' "$target"
{after}
""")
    path.chmod(0o755)
    return path


def on_path(folder: Path, *names: str) -> str:
    """A PATH with only this folder, into which these programs of the machine are linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = shutil.which(name)
        assert found, f"{name} is not installed"
        (folder / name).symlink_to(found)
    return str(folder)
