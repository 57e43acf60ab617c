"""info, as words and as JSON; export, run by another runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from datamodules.audio.files import read_audio
from spectrostream.weights import codec_fingerprint
from spectrostream_cli import main

pytestmark = pytest.mark.processes


def run(*words: object) -> int:
    return main([str(word) for word in words])


def facts_of(capsys: pytest.CaptureFixture[str], *paths: object) -> list[dict[str, object]]:
    capsys.readouterr()
    assert run("info", "--json", *paths) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("option", [(), ("--entropy-coding",)])
def test_a_coded_file_is_described(
    bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    out = tmp_path / "x.sps"
    assert run("encode", bench.folder / "good.wav", out, "--weights", bench.weights, "--levels", 3, *option) == 0
    (facts,) = facts_of(capsys, out)
    size = out.stat().st_size
    assert facts == {
        "path": str(out),
        "kind": "coded",
        "seconds": 12.345,
        "samples": 592560,
        "sample_rate": 48000,
        "channels": 2,
        "levels": 3,
        "bits_per_index": 4,
        "frames": 309,
        "kbps": pytest.approx(12 * 309 / 12345.0),
        "file_bytes": size,
        "file_kbps": pytest.approx(size * 8 / 12345.0),
        "chunks": 2,
        "entropy_coded": bool(option),
        "entropy_coded_chunks": 2 if option else 0,
        "missing_frames": 0,
        "codec": codec_fingerprint(bench.codec).hex(),
    }
    assert run("info", out) == 0
    said = capsys.readouterr().out
    assert f"2 chunks, {'2 of them entropy-coded' if option else 'packed'}, codec " in said


def test_chunks_that_were_left_out_are_counted(bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, damaged = tmp_path / "x.sps", tmp_path / "damaged.sps"
    assert run("encode", bench.folder / "good.wav", out, "--weights", bench.weights) == 0
    content = bytearray(out.read_bytes())
    content[100] ^= 1
    out.write_bytes(content)
    assert run("repack", out, damaged, "--levels", 2, "--conceal") == 0
    (facts,) = facts_of(capsys, damaged)
    assert (facts["chunks"], facts["missing_frames"], facts["frames"]) == (1, 250, 309)
    assert run("info", damaged) == 0
    assert ", 250 frames are missing, " in capsys.readouterr().out


def test_weights_and_audio_are_described(bench, capsys: pytest.CaptureFixture[str]) -> None:
    weights, folder, audio = facts_of(capsys, bench.weights, bench.weights.parent, bench.folder / "mono.ogg")
    assert weights["codec"] == folder["codec"] == codec_fingerprint(bench.codec).hex()
    assert (weights["levels"], weights["kbps"], weights["latency_ms"]) == (4, pytest.approx(0.4), 80.0)
    assert weights["parameters"] == sum(parameter.numel() for parameter in bench.codec.parameters())
    assert audio["seconds"] == 2.5
    assert (audio["sample_rate"], audio["channels"], audio["container"]) == (44100, 1, "OGG")


def test_an_unfinished_run_is_described(bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("model: {}")
    (facts,) = facts_of(capsys, tmp_path)
    assert (facts["kind"], facts["is_trained"], facts["checkpoints"], facts["weights"]) == ("run", False, [], None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000007.ckpt").touch()
    (tmp_path / "failed.json").write_text('{"reason": "no memory"}')
    assert run("info", tmp_path) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}: a run, not finished, last checkpoint step-00000007.ckpt, failed: no memory" in said
    (tmp_path / "failed.json").write_text("{")
    assert run("info", tmp_path) == 1
    assert "failed.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_info_describes_the_other_files_after_an_error(
    bench, capsys: pytest.CaptureFixture[str], json_option: tuple[str, ...]
) -> None:
    names = [bench.folder / name for name in ("missing", "good.wav", "text.wav")]
    assert run("info", *names, *json_option) == 1
    shown = capsys.readouterr()
    assert f"error: there is no file or folder {names[0]}\n" in shown.err
    assert "text.wav': cannot be read as audio" in shown.err
    if json_option:
        assert [facts["kind"] for facts in json.loads(shown.out)] == ["unusable", "audio", "unusable"]
    else:
        assert shown.out.startswith(f"{names[1]}: 12.35 s, 48000 Hz, 2 channels, WAV PCM_16")


@pytest.mark.slow
def test_exported_graphs_encode_and_decode(bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "onnx"
    assert run("export", "--weights", bench.weights, out, "--levels", 3) == 0
    assert capsys.readouterr().out.endswith(" bytes), 3 of 4 levels\n")
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    audio = read_audio(bench.folder / "short.flac")[None]
    expected = bench.codec.encode(audio, levels=3)
    (codes,) = onnxruntime.InferenceSession(out / "encoder.onnx").run(None, {"audio": audio.numpy()})
    assert np.mean(codes == expected.numpy()) > 0.98  # near ties may differ
    padded = torch.cat((expected, torch.full_like(expected[:, :1], -1)), dim=1)
    (decoded,) = onnxruntime.InferenceSession(out / "decoder.onnx").run(None, {"codes": padded.numpy()})
    torch.testing.assert_close(torch.from_numpy(decoded), bench.codec.decode(expected), atol=1e-4, rtol=1e-4)
    assert run("export", "--weights", bench.weights, out) == 1
    assert "encoder.onnx exists; --overwrite replaces it" in capsys.readouterr().err
