"""Many files and folders: names, resuming, failures that do not stop the rest."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
import soundfile
from rich.console import Console
from workbench import RATE, hidden_or_unfinished, started, write_sound

from spectrostream.bitstream.files import read_header
from spectrostream.errors import UserError
from spectrostream_cli import main
from spectrostream_cli.coding.many_files import Job, planned
from spectrostream_cli.progress import AudioProgress

pytestmark = pytest.mark.processes

AUDIO = {".wav", ".flac"}


def run(*words: object) -> int:
    return main([str(word) for word in words])


def targets(inputs: list[Path], output: str) -> list[Job]:
    return planned([str(one) for one in inputs], output, extensions=AUDIO, target_extension=".sps").jobs


def test_names_below_a_folder_are_kept(tmp_path: Path) -> None:
    for name in ("b.wav", "a/deep/C.FLAC", "a/x.y.wav", "a/notes.txt", ".hidden.wav", ".cache/z.wav"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    out = tmp_path / "out"
    assert targets([tmp_path / "in"], str(out)) == [
        Job(tmp_path / "in/a/deep/C.FLAC", out / "a/deep/C.sps"),
        Job(tmp_path / "in/a/x.y.wav", out / "a/x.y.sps"),
        Job(tmp_path / "in/b.wav", out / "b.sps"),
    ]
    both = targets([tmp_path / "in/b.wav", tmp_path / "in/a"], str(out))
    assert [job.target for job in both] == [out / "b.sps", out / "deep/C.sps", out / "x.y.sps"]


def test_one_file_goes_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    one = tmp_path / "one.wav"
    assert targets([one], str(tmp_path / "name")) == [Job(one, tmp_path / "name")]
    assert targets([one], str(tmp_path / "folder")) == [Job(one, tmp_path / "folder/one.sps")]
    assert targets([one], f"{tmp_path}/new/") == [Job(one, tmp_path / "new/one.sps")]


def test_what_cannot_be_planned_is_explained(tmp_path: Path) -> None:
    for name in ("a/x.wav", "b/x.wav", "b/x.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    a, b = tmp_path / "a/x.wav", tmp_path / "b/x.wav"
    for inputs, output, message in (
        ([a, b], "out", f"{a} and {b} would both become out/x.sps; give them different output folders"),
        ([tmp_path / "b"], "out", "would both become out/x.sps"),
        ([a, b], str(a), "is a file; several files need a folder to go to"),
        ([tmp_path / "empty"], "out", "empty holds none of the files that are looked for: .flac, .wav"),
        ([a], str(a), "is the input too"),
    ):
        with pytest.raises(UserError) as caught:
            targets(inputs, output)
        assert message in str(caught.value)


@pytest.fixture
def music(bench, tmp_path: Path) -> Path:
    """Two good files and two bad ones; the good ones come after a bad one by name."""
    music = tmp_path / "music"
    (music / "deep").mkdir(parents=True)
    shutil.copy2(bench.folder / "text.wav", music / "a-bad.wav")
    shutil.copy2(bench.folder / "mono.ogg", music / "b.ogg")
    shutil.copy2(bench.folder / "six.wav", music / "c-six.wav")
    shutil.copy2(bench.folder / "short.flac", music / "deep" / "d.flac")
    return music


def test_a_bad_file_does_not_stop_the_rest(bench, music: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started("encode", music, out, "--weights", bench.weights, "--levels", 2)
    said, error = (stream.decode() for stream in process.communicate(timeout=60))
    assert process.returncode == 1
    assert said == ""
    first, *reasons, last = error.splitlines()
    assert first == "error: 2 of 4 files failed:"
    assert reasons[0].startswith(f"  {music / 'a-bad.wav'}: cannot be read as audio, libsndfile says: ")
    assert reasons[1].startswith(f"  {music / 'c-six.wav'}: has 6 channels, allowed are 1 or 2; mix it down first")
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert made == ["b.sps", "deep/d.sps"]
    size = sum((out / name).stat().st_size for name in made)
    assert last.startswith(f"the others: coded: {out} (2 files, {size} bytes, 3.50 s, {size * 8 / 3500.0:.2f} kbps ")
    assert last.endswith(" times as fast as real time)")


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time: a file that is written again has another inode."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*.*")}


def test_finished_files_are_skipped_without_overwrite(
    bench, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (music / "a-bad.wav").unlink()
    (music / "c-six.wav").unlink()
    out, words = tmp_path / "out", ("--weights", bench.weights, "--levels", 2)
    assert run("encode", music, out, *words) == 0
    first = state(out)
    capsys.readouterr()
    assert run("encode", music, out, *words) == 0
    skipped = f"coded: nothing new in {out}; 2 finished before and skipped, --overwrite repeats them\n"
    assert capsys.readouterr().out == skipped
    assert state(out) == first
    (out / "b.sps").unlink()
    assert run("encode", music, out, *words) == 0
    assert "2.50 s, " in capsys.readouterr().out
    assert state(out)["d.sps"] == first["d.sps"]
    assert run("encode", music, out, *words, "--overwrite") == 0
    assert "(2 files, " in capsys.readouterr().out
    assert state(out)["d.sps"] != first["d.sps"]


def test_a_batch_of_coded_files_is_decoded_and_resumed(
    bench, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coded, out, weights = tmp_path / "coded", tmp_path / "out", ("--weights", bench.weights)
    assert run("encode", music / "b.ogg", music / "deep", coded, *weights) == 0
    (coded / "bad.sps").write_text("no coded file, but long enough to hold a header")
    capsys.readouterr()
    assert run("decode", coded, out, *weights, "--format", "flac") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: 1 of 3 files failed:\n  {coded / 'bad.sps'}: byte 0: magic is b'no c'")
    assert f"the others: decoded: {out} (2 files, 3.50 s, " in error
    assert {path.name: soundfile.info(path).frames for path in out.iterdir()} == {
        "b.flac": read_header(coded / "b.sps").samples,
        "d.flac": RATE,
    }
    (coded / "bad.sps").unlink()
    assert run("decode", coded, out, *weights, "--format", "flac") == 0
    assert "nothing new" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["levels", "codec", "longer", "newer", "foreign"])
def test_a_target_made_with_other_settings_is_an_error(
    bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    source, out = write_sound(tmp_path / "in.wav", 0.5), tmp_path / "out.sps"
    words = ["encode", source, out, "--weights", bench.weights, "--levels", 2]
    assert run(*words) == 0
    message = "exists and was not made from"
    if change == "levels":
        words[-1] = 3
    elif change == "codec":
        content = bytearray(out.read_bytes())
        out.write_bytes(content[:8] + bytes(8) + content[16:])
    elif change == "longer":
        write_sound(source, 0.6)
        os.utime(source, ns=(0, 0))
    elif change == "newer":
        os.utime(source, ns=(0, out.stat().st_mtime_ns + 1))
        message = "exists and is older than"
    else:
        out.write_text("something precious")
    before = out.read_bytes()
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("; --overwrite replaces it\n")
    assert out.read_bytes() == before
    assert run(*words, "--overwrite") == 0
    assert read_header(out).samples == soundfile.info(source).frames


def test_the_output_of_another_file_is_not_taken_for_decoded(
    bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coded = tmp_path / "x.sps"
    assert run("encode", write_sound(tmp_path / "in.wav", 0.5), coded, "--weights", bench.weights) == 0
    other = write_sound(tmp_path / "other.wav", 0.4)
    before = other.read_bytes()
    assert run("decode", coded, other, "--weights", bench.weights) == 1
    assert "exists and was not made from" in capsys.readouterr().err
    assert other.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("encode - x.sps", "- is not possible here: encode reads audio from files; for PCM on a pipe type"),
        ("encode good.wav mono.mp3 -", "- is for one file"),
        ("decode - -", "- is not possible here: decode writes audio to files"),
        ("decode - good.sps x.wav", "- is for one file"),
    ],
)
def test_pipes_are_for_one_file(
    bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.chdir(bench.folder)
    assert run(*words.split(), "--weights", bench.weights) == 1
    assert message in capsys.readouterr().err
    assert not (bench.folder / "x.sps").exists()


def test_no_space_for_the_output_is_explained_and_leaves_nothing(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, audio: object) -> None:
        raise OSError(28, "No space left on device", "out.wav")

    assert run("encode", bench.folder / "short.flac", tmp_path / "x.sps", "--weights", bench.weights) == 0
    monkeypatch.setattr("datamodules.audio.blocks.AudioWriter.write", full)
    assert run("decode", tmp_path / "x.sps", tmp_path / "out.wav", "--weights", bench.weights) == 1
    assert capsys.readouterr().err == "error: out.wav: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.sps"]


def test_ctrl_c_leaves_no_partial_file(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: object, codes: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spectrostream.bitstream.writer.BitstreamWriter.write", interrupted)
    assert run("encode", bench.folder / "short.flac", tmp_path / "x.sps", "--weights", bench.weights) == 130
    assert "stopped; run the same command again to resume" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert hidden_or_unfinished(tmp_path) == []


def test_a_terminal_shows_seconds_of_audio() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with AudioProgress(console, 20.0) as progress:
        progress.name("song.wav")
        progress.advance(10.0)
        progress.advance(10.0)
    shown = screen.getvalue()
    assert "song.wav" in shown
    assert "20/20 s of audio" in shown
