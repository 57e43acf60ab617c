import os
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import codec_speed, matmul_peak
from benchmarks.codec_rows import CODEC_ROWS, RELEASED, CodecRow
from benchmarks.codec_speed import OFFICIAL, take_turns
from benchmarks.matmul_peak import PRECISIONS, matmul_peaks
from benchmarks.official.client import OfficialWorkerError
from benchmarks.speed_table import MISSING, Measured, step_table, throughput_table
from benchmarks.timed_codecs import OPERATIONS, LocalCodec, OfficialCodec
from spectrostream.codec import SpectroStream, SpectroStreamConfig
from spectrostream.quantizer import QuantizerConfig


def tiny_codec():
    quantizer = QuantizerConfig(levels=4, codebook_size=16, initial_vectors=16)
    return SpectroStream(
        SpectroStreamConfig(encoder_width=2, decoder_width=2, embedding_dim=8, quantizer=quantizer)
    ).eval()


class Plain(nn.Module):
    """A codec whose arithmetic can be done by hand, without streams."""

    sample_rate, channels, levels, is_causal, latency_samples = 48000, 2, 1, False, None

    def __init__(self):
        super().__init__()
        self.down = nn.Conv1d(2, 8, kernel_size=4, stride=4)
        self.up = nn.ConvTranspose1d(8, 2, kernel_size=4, stride=4)

    def encode(self, audio: Tensor, *, levels=None):
        return self.down(audio)

    def decode(self, codes: Tensor, *, length: int):
        return self.up(codes)


class Recurrent(Plain):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(8, 8)


class FakeCodec:
    """Takes a known time, and notes that it was its turn."""

    parameters, macs = 10, {"encode": 1e9, "decode": 2e9}

    def __init__(self, name, log, seconds, operations=frozenset(OPERATIONS)):
        self.name, self.log, self.each, self.operations = name, log, seconds, operations

    def seconds(self, operation):
        self.log.append((operation, self.name))
        return self.each


AUDIO = torch.linspace(-0.5, 0.5, 2 * 9600).reshape(1, 2, 9600)


def test_a_codec_has_the_operations_that_it_can_do():
    assert LocalCodec(tiny_codec(), AUDIO, counts=True).operations == OPERATIONS.keys()
    assert LocalCodec(Plain(), AUDIO, counts=True).operations == {"encode", "decode"}


def test_a_step_is_one_token_in_and_one_out():
    timed = LocalCodec(tiny_codec(), AUDIO, counts=False)
    for _ in range(3):
        assert timed._calls["step encode"]().shape == (1, 4, 1)
        assert timed._calls["step decode"]().shape == (1, 2, 1920)
    assert timed._calls["quantize"]().shape == (1, 4, 5)
    assert timed._calls["decode"]().shape == AUDIO.shape


def test_multiply_accumulates_are_those_of_a_call():
    each = 9600 / 4 * 2 * 8 * 4
    assert LocalCodec(Plain(), AUDIO, counts=True).macs == {"encode": each, "decode": each}
    assert LocalCodec(Plain(), AUDIO, counts=False).macs == {}
    assert LocalCodec(Recurrent(), AUDIO, counts=True).macs == {}


def test_a_time_is_the_median_of_calls(monkeypatch):
    import benchmarks.timed_codecs as timed_codecs

    timed = LocalCodec(Plain(), AUDIO, counts=False)
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(timed_codecs.time, "perf_counter", lambda: next(clock))
    monkeypatch.setitem(OPERATIONS, "encode", 3)
    assert timed.seconds("encode") == 2.0


def test_the_official_codec_is_asked_for_the_same_signal_and_operations(tmp_path):
    class Worker:
        def ask(self, command, **arguments):
            if command == "build":
                self.signal = np.load(arguments["audio"])
                return {"parameters": {"encoder": 3, "decoder": 4, "quantizer": 100}, "seconds": 1.0}
            assert (command, arguments["runs"]) == ("time", OPERATIONS[arguments["operation"]])
            return {"seconds": 0.25}

    worker = Worker()
    official = OfficialCodec(worker, AUDIO, tmp_path, seed=0)
    assert official.parameters == 7
    assert np.array_equal(worker.signal.T, AUDIO[0].numpy())
    assert [official.seconds(operation) for operation in official.operations] == [0.25] * len(OPERATIONS)


def test_codecs_take_turns_within_each_operation(monkeypatch):
    monkeypatch.setattr(codec_speed, "matmul_peaks", lambda: {"float32": next(peaks)})
    peaks, log = iter([2.0, 5.0, 4.0]), []
    codecs = {"a": FakeCodec("a", log, 1.0), "b": FakeCodec("b", log, 2.0, frozenset({"decode"}))}
    best, times = take_turns(codecs, rounds=3)
    assert best == {"float32": 5.0}
    assert times == {"a": {operation: [1.0] * 3 for operation in OPERATIONS}, "b": {"decode": [2.0] * 3}}
    assert log[:3] == [("encode", "a"), ("decode", "a"), ("decode", "b")]
    assert log == log[: len(log) // 3] * 3


def test_speed_is_the_median_of_the_rounds_ratios():
    # A slow spell hits both in round 1: the ratio of the medians would be 3, the rounds say 2.
    official = Measured(None, {}, 1e9, {"encode": [2.0, 20.0, 6.0]})
    own = Measured(5, {"encode": 4e9}, 16e9, {"encode": [1.0, 10.0, 2.0]})
    assert own.speed("encode", official) == 2.0
    assert own.speed("decode", official) is None
    assert own.median("encode") == 2.0
    assert own.share_of_peak("encode") == 0.25  # 8e9 operations in 2 s are 4e9 per second of 16e9
    assert official.share_of_peak("encode") is None


def test_tables_mark_missing_numbers():
    official = Measured(44_936_450, {}, 1e9, {"encode": [4.0], "decode": [8.0], "step encode": [0.04]})
    own = Measured(44_936_450, {"encode": 2e9, "decode": 4e9}, 1e10, {"encode": [2.0], "decode": [8.0]})
    lines = throughput_table({OFFICIAL: official, "ours": own}, OFFICIAL, seconds=2.0).splitlines()
    assert lines[3] == "| ours | 44.94 M | 3.0 | 1.000 | 4.000 | 2.00x | 1.00x | 20 % | 10 % |"
    assert lines[2].count(MISSING) == 3
    steps = step_table({OFFICIAL: official, "ours": own}, OFFICIAL, seconds=2.0).splitlines()
    assert steps[2:] == [f"| {OFFICIAL} | 40.0 | {MISSING} | {MISSING} | 1.00x | {MISSING} | {MISSING} |"]


def test_peaks_are_operations_over_time(monkeypatch):
    monkeypatch.setattr(matmul_peak, "_best_seconds", lambda product, runs: (product(), 0.5)[1])
    assert matmul_peaks(size=64, runs=1) == dict.fromkeys(PRECISIONS, 2 * 64**3 / 0.5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_products_are_computed_in_their_precision(precision):
    product = matmul_peak._product(precision, 32)()
    assert product.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int32}[precision]
    left, right = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = (left * 20).trunc() @ (right * 20).trunc() if precision == "int8" else left @ right
    tolerance = 0.02 * expected.abs().max().item() if precision == "bfloat16" else 1e-4
    assert (product - expected).abs().max() <= tolerance
    assert 0 < matmul_peak._best_seconds(lambda: left @ right, 2) < 10


def test_rows_are_consistent():
    assert RELEASED in CODEC_ROWS
    for row in CODEC_ROWS.values():
        assert row.precision in PRECISIONS
        assert row.arithmetic_of is None or CODEC_ROWS[row.arithmetic_of].arithmetic_of is None


@pytest.fixture
def command(monkeypatch):
    """Runs the command with small codecs and no official environment; processors and threads are put back."""
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    def start(threads):
        raise OfficialWorkerError("the environment is not there; type: make official-environment")

    def missing():
        raise ImportError("no such codec here")

    rows = {
        RELEASED: CodecRow(tiny_codec),
        "int8, the same function": CodecRow(tiny_codec, precision="int8", arithmetic_of=RELEASED),
        "absent": CodecRow(missing),
    }
    for name in list(CODEC_ROWS):
        monkeypatch.delitem(CODEC_ROWS, name)
    CODEC_ROWS.update(rows)
    monkeypatch.setattr(codec_speed.OfficialWorker, "start", start)
    monkeypatch.setattr(codec_speed, "matmul_peaks", lambda: {"float32": 1e9, "bfloat16": 1e9, "int8": 1e18})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["codec_speed", "--seconds", "0.2", "--rounds", "2", *arguments])
        return codec_speed.main()

    yield run
    for name in rows:
        CODEC_ROWS.pop(name)
    torch.set_num_threads(1)
    if processors is not None:
        os.sched_setaffinity(0, processors)


@pytest.mark.slow
def test_the_command_works_without_the_official_environment(command, capsys):
    assert command("--threads", "1") == 0
    printed = capsys.readouterr().out
    assert "official rows are missing: the environment is not there; type: make official-environment" in printed
    assert "absent is missing: no such codec here" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| int8")]
    assert len(rows) == 2
    assert rows[0].endswith("| 0 % | 0 % |")  # its operations are those of the first row, its peak int8's
    assert f"speed against {RELEASED}" in printed


def test_the_official_rows_can_be_required(command, capsys):
    assert command("--threads", "1", "--require-official") == 2
    assert "type: make official-environment" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to processors")
def test_more_threads_than_processors_are_refused(command, capsys):
    assert command("--threads", "4096") == 2
    assert "--threads 4096 is not possible here; allowed: 1.." in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [("--seconds", "0"), ("--seconds", "nan"), ("--rounds", "0"), ("--threads", "-1")]
)
def test_impossible_numbers_are_refused(command, arguments, capsys):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "is not possible; allowed:" in capsys.readouterr().err
