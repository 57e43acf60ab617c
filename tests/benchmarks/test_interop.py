"""The parity driver on the small fixtures of the official code, in the place of its live outputs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import interop
from benchmarks.interop import LIMIT, OfficialOutputs, compare_outputs, last_line, table
from benchmarks.official.client import OfficialWorkerError
from benchmarks.official.layouts import LAYOUTS

FIXTURES = Path(__file__).parent.parent / "fixtures"
VERSIONS = {"magenta-rt": "2.0.3", "jax": "0.10.2"}
PARTS = {
    "STFT",
    "embeddings",
    "codes of the official embeddings",
    "codes of the audio",
    "dequantized",
    "decoder features",
    "waveform from 8 levels",
    "codes, whole against streamed",
    "waveform, whole against streamed",
    "embeddings, for inference",
    "codes in blocks, for inference",
    "waveform in blocks, for inference",
}


def live_arrays(name):
    """A fixture with the names of a live run; the whole stands for the streamed."""
    arrays = dict(np.load(FIXTURES / f"oracle_{name}.npz"))
    kept = {key: value for key, value in arrays.items() if not key.startswith(("out/waveform", "mid", "meta"))}
    kept["out/waveform_8"] = kept["out/streamed_waveform"] = arrays["out/waveform_padded"].reshape(
        -1, arrays["in/audio"].shape[1]
    )
    kept["out/streamed_codes"] = kept["out/codes"]
    return kept


@pytest.fixture(scope="module")
def stereo():
    return live_arrays("stereo_m2")


def outputs(arrays, folder):
    np.savez(folder / "live.npz", **arrays)
    return OfficialOutputs.read(folder / "live.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stereo_m2", "stereo_0", "mono"])
def test_every_part_agrees_with_the_official_code(name, tmp_path):
    parities = compare_outputs(outputs(live_arrays(name), tmp_path))
    assert {parity.name for parity in parities} == PARTS
    assert all(parity.passes for parity in parities), table(name, parities)


def test_streamed_parts_are_compared_only_if_they_are_there(stereo, tmp_path):
    arrays = {key: value for key, value in stereo.items() if "streamed" not in key}
    names = {parity.name for parity in compare_outputs(outputs(arrays, tmp_path))}
    assert names == {name for name in PARTS if "streamed" not in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "broken"),
    [
        ("out/stft", {"STFT"}),
        ("out/dequantized", {"dequantized"}),
        ("out/decoder_features", {"decoder features"}),
        ("out/waveform_8", {"waveform from 8 levels", "waveform in blocks, for inference"}),
        ("out/streamed_waveform", {"waveform, whole against streamed"}),
        ("out/streamed_codes", {"codes, whole against streamed"}),
    ],
)
def test_a_wrong_array_breaks_its_own_limit(array, broken, stereo, tmp_path):
    wrong = stereo[array].copy()
    wrong[3] = (wrong[3] + 1) % 64 if wrong.dtype == np.int32 else wrong[3] + 3 * LIMIT * np.abs(wrong).max()
    parities = compare_outputs(outputs(stereo | {array: wrong}, tmp_path))
    assert {parity.name for parity in parities if not parity.passes} == broken


def test_a_wrong_weight_breaks_what_follows_it(stereo, tmp_path):
    path = "param/decoder/decoder_3/conv2d_3x3/conv/bias"
    parities = compare_outputs(outputs(stereo | {path: stereo[path] + np.float32(0.01)}, tmp_path))
    failed = {parity.name for parity in parities if not parity.passes}
    assert failed == {
        "decoder features",
        "waveform from 8 levels",
        "waveform, whole against streamed",
        "waveform in blocks, for inference",
    }


class FixtureWorker:
    """Answers as the official worker does, from a fixture."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.requests = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, command, **arguments):
        if command == "versions":
            return VERSIONS
        self.requests.append(arguments)
        assert Path(arguments["audio"]).is_file()
        np.savez(arguments["output"], **self.arrays)
        return {"parameters": {}}


def run(monkeypatch, tmp_path, arrays, *layouts):
    worker = FixtureWorker(arrays)
    monkeypatch.setattr(interop.OfficialWorker, "start", lambda threads: worker)
    monkeypatch.setattr(sys, "argv", ["interop", "--out", str(tmp_path / "out"), "--layouts", *layouts])
    return interop.main(), worker


@pytest.mark.slow
def test_the_command_passes_and_writes_its_record(monkeypatch, tmp_path, stereo, capsys):
    code, worker = run(monkeypatch, tmp_path, stereo, "released", "mono")
    assert code == 0
    record = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert record["layouts"].keys() == {"released", "mono"}
    assert all(row["passes"] for rows in record["layouts"].values() for row in rows)
    assert record["versions"]["magenta-rt"] == "2.0.3"
    assert capsys.readouterr().out.splitlines()[-1].startswith("interop: all 24 limits kept in 2 layouts")
    assert [request["streamed"] for request in worker.requests] == [True, False]
    assert not list((tmp_path / "out").glob(".*.unfinished"))


def test_the_music_has_an_odd_length_and_the_layouts_channels(monkeypatch, tmp_path, stereo):
    _, worker = run(monkeypatch, tmp_path, stereo, "released", "mono")
    for request, channels in zip(worker.requests, (2, 1), strict=True):
        audio = np.load(request["audio"])
        assert audio.dtype == np.float32
        assert audio.shape[1] == channels
        assert all(len(audio) % length for length in (2, 480, 1920))
        assert np.sqrt(np.square(audio).mean()) > 0.01


def test_a_broken_limit_ends_with_one_and_nan_is_no_number(monkeypatch, tmp_path, stereo, capsys):
    broken = stereo | {"out/waveform_8": np.full_like(stereo["out/waveform_8"], np.nan)}
    code, _ = run(monkeypatch, tmp_path, broken, "released")
    assert code == 1
    printed = capsys.readouterr().out
    assert "**no**" in printed
    assert "2 of 12 limits broken" in printed.splitlines()[-1]
    rows = json.loads((tmp_path / "out" / "parity.json").read_text())["layouts"]["released"]
    assert {row["name"]: row["passes"] for row in rows}["waveform from 8 levels"] is False
    assert next(row for row in rows if row["name"] == "waveform from 8 levels")["max_error"] is None


def test_without_the_environment_the_command_says_what_to_type(monkeypatch, tmp_path, capsys):
    def start(threads):
        raise OfficialWorkerError("the environment is not there; type: make official-environment")

    monkeypatch.setattr(interop.OfficialWorker, "start", start)
    monkeypatch.setattr(sys, "argv", ["interop", "--out", str(tmp_path)])
    assert interop.main() == 2
    assert "type: make official-environment" in capsys.readouterr().err


def test_the_default_layouts_are_known_and_released_is_the_released_one():
    assert set(interop.DEFAULT_LAYOUTS) <= LAYOUTS.keys()
    assert LAYOUTS["released"] == (2, 6)
    assert "2 of 3" in last_line_of(2, 3)


def last_line_of(broken, total):
    class Row:
        def __init__(self, passes):
            self.passes = passes

    return last_line({"released": [Row(number >= broken) for number in range(total)]}, VERSIONS, 1.0)
