"""encode, decode, repack: what the codec itself would give, in files and pipes, whole or not at all."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from workbench import RATE, codec_on_disk, hidden_or_unfinished, noise, started, write_sound

from datamodules.audio.files import read_audio
from spectrostream.bitstream.files import BitstreamReader, read_bitstream, read_header
from spectrostream.cpu_inference import convert as inference
from spectrostream.frontends import SAMPLES_PER_TOKEN as TOKEN
from spectrostream.weights import codec_fingerprint
from spectrostream_cli import command, main
from spectrostream_cli.coding import encode_file as encoding

pytestmark = pytest.mark.processes

HALF_STEP_24_BITS = 2**-24


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def coded(bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coded") / "good.sps"
    assert run("encode", bench.folder / "good.wav", path, "--weights", bench.weights) == 0
    return path


def test_a_coded_file_holds_the_codec_s_codes(bench, coded: Path) -> None:
    """12.345 s are more than one piece of the reader, the encoder and the file."""
    header, codes = read_bitstream(coded)
    audio = read_audio(bench.folder / "good.wav")
    with torch.no_grad():
        expected = bench.codec.for_inference().encode(audio[None])[0]
    assert torch.equal(codes, expected)
    assert header.configuration_hash == codec_fingerprint(bench.codec)
    assert (header.samples, header.levels, header.frames) == (audio.shape[1], 4, -(-audio.shape[1] // TOKEN))
    assert coded.stat().st_size == header.file_bytes


@pytest.mark.parametrize("extension", ["wav", "flac", "aiff", "caf", "w64"])
def test_decoded_audio_is_the_codec_s_within_24_bits(bench, coded: Path, tmp_path: Path, extension: str) -> None:
    out = tmp_path / "new" / f"out.{extension}"
    assert run("decode", coded, out, "--weights", bench.weights) == 0
    header, codes = read_bitstream(coded)
    expected = bench.codec.for_inference().decode(codes[None], length=header.samples)[0].clamp(-1, 1)
    assert soundfile.info(out).subtype == "PCM_24"
    torch.testing.assert_close(read_audio(out), expected, atol=2.1 * HALF_STEP_24_BITS + 1e-6, rtol=0)


@pytest.mark.parametrize("extension", ["flac", "mp3", "ogg"])
def test_mono_at_44100_hz_is_tiled_and_resampled(bench, tmp_path: Path, extension: str) -> None:
    source, out = bench.folder / f"mono.{extension}", tmp_path / "out.sps"
    assert run("encode", source, out, "--weights", bench.weights) == 0
    header, codes = read_bitstream(out)
    audio = read_audio(source)
    assert header.samples == audio.shape[1] == -(-soundfile.info(source).frames * 160 // 147)
    assert torch.equal(codes, bench.codec.for_inference().encode(audio[None])[0])
    assert run("decode", out, tmp_path / "out.wav", "--weights", bench.weights) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == header.samples


@pytest.mark.parametrize("samples", [1, TOKEN - 1, TOKEN, TOKEN + 1, 250 * TOKEN, 250 * TOKEN + 1])
def test_decoded_audio_has_the_length_of_the_input(bench, tmp_path: Path, samples: int) -> None:
    """Around the borders of tokens and pieces."""
    write_sound(tmp_path / "in.wav", samples / RATE)
    assert run("encode", tmp_path / "in.wav", tmp_path / "x.sps", "--weights", bench.weights, "--levels", 1) == 0
    assert run("decode", tmp_path / "x.sps", tmp_path / "x.flac", "--weights", bench.weights) == 0
    assert soundfile.info(tmp_path / "x.flac").frames == samples


def test_entropy_coding_changes_the_size_and_nothing_else(
    bench, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.sps"
    words = ("encode", bench.folder / "good.wav", small, "--weights", bench.weights, "--entropy-coding")
    assert run(*words) == 0
    assert torch.equal(read_bitstream(small)[1], read_bitstream(coded)[1])
    saved = 8 * (coded.stat().st_size - small.stat().st_size)
    assert saved > 0
    said = capsys.readouterr().out
    assert f"{small.stat().st_size} bytes" in said
    assert f"; entropy coding saved {saved} bits ({saved / (8 * coded.stat().st_size):.1%})" in said


def test_entropy_coding_that_saves_nothing_is_left_out(
    bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables for one second cost more than they save."""
    write_sound(tmp_path / "in.wav", 0.1)
    words = ("encode", tmp_path / "in.wav", tmp_path / "x.sps", "--weights", bench.weights, "--entropy-coding")
    assert run(*words) == 0
    assert "entropy coding saved 0 bits (0.0%)" in capsys.readouterr().out
    header = read_header(tmp_path / "x.sps")
    assert (tmp_path / "x.sps").stat().st_size == header.file_bytes
    with BitstreamReader(tmp_path / "x.sps") as reader:
        assert reader.tables is None


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_another_precision_changes_the_codes_and_is_reported(
    bench, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    out = tmp_path / "out.sps"
    words = ("encode", bench.folder / "short.flac", out, "--weights", bench.weights, "--precision", precision)
    assert run(*words) == 0
    assert f"; the codes were made in {precision}" in capsys.readouterr().out
    expected = bench.codec.for_inference(precision=precision).encode(read_audio(bench.folder / "short.flac")[None])
    header, codes = read_bitstream(out)
    assert torch.equal(codes, expected[0])
    # It is the same codec, so either precision decodes it.
    assert header.configuration_hash == read_header(coded).configuration_hash
    assert run("decode", out, tmp_path / "out.wav", "--weights", bench.weights) == 0
    assert "computed in" not in capsys.readouterr().out
    assert run(*words[:2], tmp_path / "usual.sps", *words[3:5]) == 0
    assert "made in" not in capsys.readouterr().out


def test_the_offered_precisions_are_the_codec_s() -> None:
    assert tuple(inference.PRECISIONS) == command.PRECISIONS


def test_compile_is_passed_on_or_refused_without_a_compiler(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("encode", bench.folder / "short.flac", tmp_path / "x.sps", "--weights", bench.weights, "--compile")
    asked = []

    def remember(codec, *, precision: str, compile: bool):
        asked.append((precision, compile))
        return inference.for_inference(codec, precision=precision)

    monkeypatch.setattr("spectrostream.codec.SpectroStream.for_inference", remember)
    monkeypatch.setenv("CXX", "true")  # there on every POSIX machine; nothing is compiled here
    assert run(*words) == 0
    assert asked == [("float32", True)]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run(*words, "--overwrite") == 1
    assert "--compile needs a C++ compiler (no-such-compiler)" in capsys.readouterr().err


def test_pipes_carry_coded_bytes_and_nothing_else(bench, coded: Path, tmp_path: Path) -> None:
    """encode to a pipe, decode from it; words go to the standard error."""
    encoder = started("encode", bench.folder / "good.wav", "-", "--weights", bench.weights)
    decoder = started("decode", "-", tmp_path / "out.wav", "--weights", bench.weights, stdin=subprocess.PIPE)
    content, said = encoder.communicate(timeout=60)
    decoder_said, error = decoder.communicate(content, timeout=60)
    assert (encoder.returncode, decoder.returncode) == (0, 0), (said, error)
    assert content == coded.read_bytes()
    assert said.decode().startswith(f"coded: the standard output ({len(content)} bytes, 12.35 s, ")
    assert decoder_said.decode().startswith(f"decoded: {tmp_path / 'out.wav'} (12.35 s, ")
    assert soundfile.info(tmp_path / "out.wav").frames == read_header(coded).samples


class _Pipe(io.RawIOBase):
    """Hands out what is asked for and cannot be rewound."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        return self._content.readinto(buffer)


class _Standard:
    """Stands for sys.stdin or sys.stdout."""

    def __init__(self, buffer: io.IOBase) -> None:
        self.buffer = buffer

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(("option", "levels"), [(("--kbps", "0.25"), 2), (("--levels", "3"), 3), (("--kbps", 9.9), 4)])
def test_repacking_keeps_the_first_levels(
    coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, object], levels: int
) -> None:
    if option[1] == 9.9:
        assert run("repack", coded, tmp_path / "x.sps", *option) == 1
        assert not (tmp_path / "x.sps").exists()
        return
    assert run("repack", coded, tmp_path / "x.sps", *option) == 0
    header, codes = read_bitstream(tmp_path / "x.sps")
    assert torch.equal(codes, read_bitstream(coded)[1][:levels])
    assert header.samples == read_header(coded).samples
    piped = io.BytesIO()
    monkeypatch.setattr("sys.stdin", _Standard(io.BufferedReader(_Pipe(coded.read_bytes()))))
    monkeypatch.setattr("sys.stdout", _Standard(piped))
    assert run("repack", "-", "-", *option) == 0
    assert piped.getvalue() == (tmp_path / "x.sps").read_bytes()


def test_repacking_in_place_needs_overwrite(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.sps"
    own.write_bytes(coded.read_bytes())
    assert run("repack", own, own, "--levels", 2) == 1
    assert f"error: {own} exists; --overwrite replaces it" in capsys.readouterr().err
    assert own.read_bytes() == coded.read_bytes()
    assert run("repack", own, own, "--levels", 2, "--overwrite") == 0
    assert f"repacked: {own} (2 of 4 levels, 0.2 of 0.4 kbps, 12.35 s)" in capsys.readouterr().out
    assert read_header(own).levels == 2


def test_damage_is_an_error_or_concealed_and_counted(
    bench, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first chunk has 250 of the 309 frames."""
    damaged = tmp_path / "damaged.sps"
    content = bytearray(coded.read_bytes())
    content[200] ^= 1
    damaged.write_bytes(content)
    words = ("decode", damaged, tmp_path / "out.wav", "--weights", bench.weights)
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {damaged}: byte ")
    assert "the chunk is corrupt" in error
    assert not (tmp_path / "out.wav").exists()
    assert run(*words, "--conceal") == 0
    said = capsys.readouterr().out
    assert f"{damaged}: concealed 250 frames at 0.00 s (byte " in said
    assert "; 250 frames lost and concealed)" in said
    header, codes = read_bitstream(damaged, conceal=True)
    expected = bench.codec.for_inference().decode(codes[None], length=header.samples)[0].clamp(-1, 1)
    torch.testing.assert_close(read_audio(tmp_path / "out.wav"), expected, atol=2e-6, rtol=0)


def test_a_truncated_file_is_decoded_up_to_its_end_with_conceal(
    bench, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.sps"
    cut.write_bytes(coded.read_bytes()[:-30])
    words = ("decode", cut, tmp_path / "out.wav", "--weights", bench.weights, "--conceal")
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "concealed the end after 10.00 s is missing (byte " in said
    assert "; 1 without an end)" in said
    assert soundfile.info(tmp_path / "out.wav").frames == 250 * TOKEN


def test_a_file_that_contradicts_its_codec_is_explained(
    bench, coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fingerprint fits, the rest does not: made on purpose."""
    from spectrostream.bitstream.files import Header, write_bitstream

    header, codes = read_bitstream(coded)
    for changes, given, message in (
        ({"samples": 5}, codes, "309 frames of codes stand for"),
        ({"bits_per_index": 5}, codes + 1, "codes go from 1 to 16; allowed: 0..15"),
        ({"levels": 5}, torch.cat((codes, codes[:1])), "this codec was trained with 4"),
        ({"sample_rate": 44100}, codes, "the file claims 44100 Hz and 2 channels; its codec has 48000 Hz and 2"),
        ({"frames": 0, "samples": 0}, codes[:, :0], "nothing was decoded"),
    ):
        path = tmp_path / "odd.sps"
        write_bitstream(path, Header(**{**vars(header), **changes}), given)
        assert run("decode", path, tmp_path / "out.wav", "--weights", bench.weights) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}: ")
        assert message in error
        assert [one.name for one in tmp_path.iterdir()] == ["odd.sps"]


def write_long(path: Path, seconds: int, rate: int = RATE) -> Path:
    """A multiple of 20 s, without holding all of it."""
    block = noise(20, rate=rate).clip(-0.9, 0.9)
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as file:
        for _ in range(seconds // 20):
            file.write(block)
    return path


def test_a_killed_encoder_leaves_nothing_under_the_final_name(bench, tmp_path: Path) -> None:
    long, out = write_long(tmp_path / "long.wav", 600), tmp_path / "out.sps"
    process = started("encode", long, out, "--weights", bench.weights)
    end = time.monotonic() + 60
    while not hidden_or_unfinished(tmp_path):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = hidden_or_unfinished(tmp_path)
    # Another target's command leaves it alone, the same target's removes it.
    assert run("encode", bench.folder / "short.flac", tmp_path / "other.sps", "--weights", bench.weights) == 0
    assert hidden_or_unfinished(tmp_path) == [left]
    assert run("encode", bench.folder / "short.flac", out, "--weights", bench.weights) == 0
    assert hidden_or_unfinished(tmp_path) == []


# A process inherits its parent's ru_maxrss; the kernel's own mark starts anew with the program.
_WITH_PEAK = """
import re, sys
from pathlib import Path
from spectrostream_cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def peak_megabytes(*words: object, timeout: float = 120) -> float:
    """Of a process of its own that must succeed."""
    command = [sys.executable, "-c", _WITH_PEAK, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """Three minutes more are 69 MB of samples; they may not cost 40 MB, in either direction.

    At 44.1 kHz, so that the resampler takes part.
    """
    _, weights = codec_on_disk(tmp_path, frontend="waveform", encoder_width=1, decoder_width=1)
    peaks = {}
    for seconds in (40, 220):
        sound = write_long(tmp_path / f"{seconds}.wav", seconds, rate=44100)
        coded, decoded = tmp_path / f"{seconds}.sps", tmp_path / f"{seconds}.flac"
        peaks["encode", seconds] = peak_megabytes("encode", sound, coded, "--weights", weights)
        peaks["decode", seconds] = peak_megabytes("decode", coded, decoded, "--weights", weights)
        assert soundfile.info(decoded).frames == seconds * RATE
    for direction in ("encode", "decode"):
        assert peaks[direction, 220] - peaks[direction, 40] < 40, peaks


def test_files_are_encoded_in_blocks_of_ten_seconds() -> None:
    assert encoding.PIECE_SAMPLES == 10 * RATE
