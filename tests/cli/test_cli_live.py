"""stream: PCM through pipes and files in real time, to the exact sample; clean ends of every kind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from workbench import RATE, hidden_or_unfinished, noise, started, write_sound

from datamodules.audio.files import read_audio
from spectrostream.errors import UserError
from spectrostream.frontends import SAMPLES_PER_TOKEN as TOKEN
from spectrostream_cli import main
from spectrostream_cli.coding import live
from spectrostream_cli.coding.pcm import PcmSink, PcmSource

pytestmark = pytest.mark.processes

DTYPES = {"s16le": "<i2", "f32le": "<f4"}


def run(*words: object) -> int:
    return main([str(word) for word in words])


def expected_audio(codec, audio: torch.Tensor, levels: int | None = None) -> torch.Tensor:
    fast = codec.for_inference()
    return fast.decode(fast.encode(audio[None], levels=levels), length=audio.shape[1])[0]


@given(
    format=st.sampled_from(sorted(DTYPES)),
    frames=st.integers(1, 50),
    channels=st.integers(1, 3),
    block=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_pcm_goes_in_and_out_unchanged(format: str, frames: int, channels: int, block: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, (frames, channels))
    content = (values * (32767 if format == "s16le" else 1)).astype(DTYPES[format]).tobytes()
    source, target = PcmSource(io.BytesIO(content), format, channels), io.BytesIO()
    sink = PcmSink(target, format)
    sizes = []
    for audio in source.blocks(block):
        assert audio.dtype == torch.float32
        assert len(audio) == channels
        sizes.append(audio.shape[1])
        sink.write(audio)
    source.require_whole()
    assert target.getvalue() == content
    assert sum(sizes) == frames
    assert set(sizes[:-1]) <= {block}
    assert sink.clipped == 0


def test_full_scale_is_one_and_beyond_it_is_clipped() -> None:
    target = io.BytesIO()
    sink = PcmSink(target, "s16le")
    sink.write(torch.tensor([[1.0, -1.0, 1.5, -7.0, 0.5, 0.0]]))
    assert np.frombuffer(target.getvalue(), "<i2").tolist() == [32767, -32768, 32767, -32768, 16384, 0]
    assert sink.clipped == 2
    (block,) = PcmSource(io.BytesIO(np.array([-32768, 16384], "<i2").tobytes()), "s16le", 1).blocks(9)
    assert block.tolist() == [[-1.0, 0.5]]


def test_invalid_pcm_is_explained() -> None:
    for content, format, message in (
        (b"", "s16le", "ended before the first sample"),
        (b"\0" * 3, "s16le", "ended before the first sample"),
        (b"\0" * 10, "s16le", r"ended 2 bytes into a frame of 4 \(2 channels, 2 bytes each\)"),
        (np.full(4, np.nan, "<f4").tobytes(), "f32le", "NaN or infinite"),
    ):
        source = PcmSource(io.BytesIO(content), format, 2)
        with pytest.raises(UserError, match=message):  # noqa: PT012  either may see it
            list(source.blocks(2))
            source.require_whole()


def test_an_input_that_does_not_block_is_an_error() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as stream, pytest.raises(UserError, match="does not block"):
        list(PcmSource(stream, "s16le", 2).blocks(10))
    os.close(writing)


def test_pcm_through_a_pipe_is_the_codec_s_audio_sample_by_sample(bench) -> None:
    """Not a whole number of blocks; f32le, so that nothing is rounded."""
    audio = torch.from_numpy(noise(1.2345).T.astype(np.float32).copy())
    words = ("stream", "--weights", bench.weights, "--levels", 3, "--format", "f32le")
    process = started(*words, stdin=subprocess.PIPE)
    content, said = process.communicate(audio.T.contiguous().numpy().astype("<f4").tobytes(), timeout=60)
    assert process.returncode == 0, said
    out = torch.from_numpy(np.frombuffer(content, "<f4").reshape(-1, 2).T.copy())
    expected = expected_audio(bench.codec, audio, levels=3)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
    line = said.decode().strip()
    assert line.startswith("streamed: the standard output (1.23 s at 0.3 kbps, 31 blocks, step median ")
    assert "latency 80 ms (algorithmic)" in line


class _Standard:
    """Stands for sys.stdin or sys.stdout."""

    def __init__(self, content: bytes = b"") -> None:
        self.buffer = io.BytesIO(content)

    def flush(self) -> None:
        pass


def test_a_file_to_pcm_and_pcm_to_a_file(bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = bench.folder / "short.flac", tmp_path / "out.wav"
    audio = read_audio(source)
    expected = expected_audio(bench.codec, audio).clamp(-1, 1)
    stdout = _Standard()
    monkeypatch.setattr("sys.stdout", stdout)
    assert run("stream", source, "-", "--weights", bench.weights, "--no-pacing") == 0
    monkeypatch.undo()
    pcm = torch.from_numpy(np.frombuffer(stdout.buffer.getvalue(), "<i2").reshape(-1, 2).T / 32768).float()
    torch.testing.assert_close(pcm, expected, atol=2**-15, rtol=0)
    floats = audio.T.contiguous().numpy().astype("<f4").tobytes()
    monkeypatch.setattr("sys.stdin", _Standard(floats))
    assert run("stream", "-", out, "--weights", bench.weights, "--format", "f32le") == 0
    torch.testing.assert_close(read_audio(out), expected, atol=1e-5, rtol=0)
    # PCM that ends inside a frame leaves no file.
    monkeypatch.setattr("sys.stdin", _Standard(floats[:-1]))
    assert run("stream", "-", tmp_path / "cut.wav", "--weights", bench.weights, "--format", "f32le") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_each_block_is_written_before_the_next_arrives(bench) -> None:
    """Block b is completed by block b + 2: after five there are three, while the input stays open."""
    process = started("stream", "--weights", bench.weights, stdin=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    block = (noise(TOKEN / RATE) * 20000).astype("<i2").tobytes()
    process.stdin.write(5 * block)
    process.stdin.flush()
    assert len(process.stdout.read(3 * len(block))) == 3 * len(block)
    rest, said = process.communicate(b"\1\2\3\4\5", timeout=60)
    assert len(rest) == 2 * len(block) + 4
    assert process.returncode == 1
    assert b"error: the standard input ended 1 bytes into a frame of 4" in said


def test_a_closed_pipe_ends_the_stream(bench) -> None:
    process = started("stream", "--weights", bench.weights, stdin=subprocess.PIPE, bufsize=0)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(bytes(4 * TOKEN * 5))
    assert len(process.stdout.read(100)) == 100
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):  # it may be gone before it has read all of this
        process.stdin.write(bytes(4 * TOKEN * 8))
    said = process.stderr.read().decode()
    assert process.wait(60) == 141
    process.stdin.close()
    process.stderr.close()
    assert said.splitlines()[-1] == "stopped: nobody reads the output any more"
    assert "Traceback" not in said
    assert " blocks, step median " in said


def test_a_file_streams_in_real_time_and_ctrl_c_leaves_no_output(bench, tmp_path: Path) -> None:
    """good.wav lasts 12 s: while it sounds there is no output yet, and after Ctrl-C none is left."""
    out = tmp_path / "out.wav"
    process = started("stream", bench.folder / "good.wav", out, "--weights", bench.weights)
    end = time.monotonic() + 60
    while not hidden_or_unfinished(tmp_path):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)
    assert not out.exists()
    os.kill(process.pid, signal.SIGINT)
    said, error = (stream.decode() for stream in process.communicate(timeout=30))
    assert process.returncode == 130, error
    assert error.endswith("\nstopped\n")
    assert 5 <= int(said.split(" blocks, ")[0]) <= 100, said  # half a second is 12 blocks
    assert list(tmp_path.iterdir()) == []


def test_pacing_is_the_clock_s(bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = write_sound(tmp_path / "in.wav", 1.0)
    words = ("stream", sound, tmp_path / "out.wav", "--weights", bench.weights)
    begin = time.perf_counter()
    assert run(*words) == 0
    paced = time.perf_counter() - begin
    assert paced > 1.0
    assert "25 blocks, step median " in capsys.readouterr().out
    audio = read_audio(sound)
    expected = expected_audio(bench.codec, audio).clamp(-1, 1)
    torch.testing.assert_close(read_audio(tmp_path / "out.wav"), expected, atol=1e-5, rtol=0)
    assert run(*words, "--no-pacing") == 1
    assert "out.wav exists; --overwrite replaces it" in capsys.readouterr().err
    assert run(*words, "--no-pacing", "--overwrite") == 0


def test_a_file_at_another_rate_streams_as_it_is_coded(bench, tmp_path: Path) -> None:
    """Resampling block by block gives the same audio as resampling the whole file."""
    source, out = bench.folder / "mono.mp3", tmp_path / "out.flac"
    assert run("stream", source, out, "--weights", bench.weights, "--no-pacing") == 0
    audio = read_audio(source)
    assert soundfile.info(out).frames == audio.shape[1]
    expected = expected_audio(bench.codec, audio).clamp(-1, 1)
    torch.testing.assert_close(read_audio(out), expected, atol=1e-5, rtol=0)


def test_late_blocks_and_percentiles_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only these steps move: 98 of 10 ms, one of 60 and one of 100 ms, in blocks of 40 ms."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    for is_paced, late in ((False, 2), (True, 3)):
        now[0] = 5.0
        clock = live.BlockClock(0.04, is_paced=is_paced)
        for number in range(100):
            clock.block_arrives()
            now[0] += {50: 0.06, 90: 0.1}.get(number, 0.01)
            clock.block_is_out()
        assert clock.summary() == (f"100 blocks, step median 10.0 ms, 99th percentile 60.0 ms, {late} late blocks")
        # 98 x 10 + 160 ms of work; paced, the last block arrives after 4 s and is out 10 ms later.
        assert now[0] - 5.0 == pytest.approx(4.01 if is_paced else 1.14)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stream missing.wav out.wav", "missing.wav': cannot be opened"),
        ("stream six.wav out.wav", "has 6 channels, allowed are 1 or 2"),
        ("stream good.wav out.mp3", "cannot write the extension '.mp3', allowed are .wav, .flac"),
        ("stream good.wav out.wav --kbps 7", "--kbps 7 is not possible with this codec; allowed: --levels 1..4"),
        ("stream good.wav text.wav", "text.wav exists; --overwrite replaces it"),
    ],
)
def test_a_mistake_is_explained(
    bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.chdir(bench.folder)
    before = {path.name for path in bench.folder.iterdir()}
    assert run(*words.split(), "--weights", bench.weights) == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in bench.folder.iterdir()} == before
