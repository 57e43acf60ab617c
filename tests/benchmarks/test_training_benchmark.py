import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import training, training_turn, training_watch
from benchmarks.training import cases, matrix_rate, take_turns
from benchmarks.training_case import TrainingCase
from benchmarks.training_operators import OperatorProfile
from benchmarks.training_table import COLUMNS, MISSING, TrainingRow, title, training_table
from benchmarks.training_turn import SkippedUpdatesError, decode_music, profile, start_codebooks, train
from benchmarks.training_watch import QuantizerTimer, peak_memory_bytes, quantizer_of
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig
from spectrostream.quantizer import QuantizerConfig, ResidualVectorQuantizer

pytestmark = pytest.mark.processes

CONFIGS = Path(__file__).parents[2] / "configs"
OURS = """
model:
  {kind: spectrostream, encoder_width: 2, decoder_width: 2, embedding_dim: 8,
   quantizer: {levels: 4, codebook_size: 16, initial_vectors: 100000}}
discriminator: {windows: [256], width: 2, multipliers: [2], frequency_strides: [2], time_strides: [2]}
training: {adversarial_start: 1000}
data: {crop_seconds: 0.1, num_workers: 8}
evaluation: {levels: [4]}
"""
DAC = """
model: {kind: dac, encoder_width: 4, decoder_width: 32, levels: 3, codebook_size: 16}
discriminator: {kind: dac, periods: [2], windows: [512], width: 2, per_channel: true}
training: {recipe: dac}
data: {crop_seconds: 0.07, num_workers: 8}
evaluation: {levels: [3]}
"""


@pytest.fixture
def configs(tmp_path):
    for name, text in (("ours", OURS), ("dac", DAC)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: str(tmp_path / f"{name}.yaml") for name in ("ours", "dac")}


def turn_of(seconds, audio_seconds=2.0, waited=0.0, memory=1e9, steps=2.0):
    return {
        "seconds": seconds,
        "processor_seconds": 0.5 * seconds,
        "audio_seconds": audio_seconds,
        "waited": waited,
        "peak_memory": memory,
        "steps": steps,
    }


PROFILE = {
    "flops": 8e9,
    "quantizer_forward": 0.3,
    "quantizer_backward": 0.1,
    "seconds": 4.0,
    "codec_parameters": 5e6,
    "discriminator_parameters": 2.5e5,
}


def cells_of(line):
    return dict(zip(COLUMNS, (cell.strip() for cell in line.strip("|").split(" | ")), strict=True))


def test_the_command_measures_whole_steps_of_ours_and_of_dac(configs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "numbers" / "training.json"
    words = ["--configs", f"{configs['ours']},{configs['dac']}", "--batch-seconds", "0.2", "--rounds", "1"]
    words += ["--steps", "1", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    monkeypatch.setattr(training, "matmul_peaks", lambda: {"float32": 1e12})
    # Processes of their own, which other tests start, take seconds each.
    monkeypatch.setattr(training, "turn", lambda what, case: training_turn.MEASURED[what](case))
    assert training.main() == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"All numbers of all rounds: {out}"
    ours, dac = (cells_of(line) for line in printed.splitlines() if line.startswith(("| ours", "| dac")))
    assert ours["batch of a process"] == "2 x 0.1 s"
    assert dac["batch of a process"] == "3 x 0.0667 s"
    assert dac["against DAC"] == "1.00x"
    assert MISSING not in [cell for name, cell in ours.items() if name != COLUMNS[-1]]
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows] == ["spectrostream", "dac"]
    for row in rows:
        assert all(math.isfinite(value) and value > 0 for value in row["medians"].values())
        assert 0 < row["medians"]["data_wait_share"] < 1
        assert 0 < row["medians"]["quantizer_share"] < 1
        assert row["profile"]["quantizer_backward"] > 0
        assert row["turns"][0]["audio_seconds"] == pytest.approx(0.2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["averaging", "find_unused"])
def test_two_processes_train_on_twice_the_audio(configs, strategy):
    case = TrainingCase(configs["ours"], batch_seconds=0.2, devices=2, strategy=strategy, steps=1)
    measured = training.turn("speed", case)
    assert measured is not None
    assert measured["audio_seconds"] == pytest.approx(0.4, rel=1e-3)


@pytest.mark.slow
def test_a_turn_that_fails_is_missing_and_says_why(configs, capsys):
    broken = TrainingCase(configs["ours"], batch_seconds=0.2, precision="64-true")
    row = TrainingRow(broken, "spectrostream", turns=[training.turn("speed", broken)])
    assert row.turns == [None]
    said = capsys.readouterr().err
    assert "is missing (speed): code 2" in said
    assert "trainer.precision" in said
    assert cells_of(training_table([row]).splitlines()[2])["audio-s per s"] == MISSING


def test_a_turn_with_skipped_updates_is_refused(configs, tmp_path, monkeypatch, capsys):
    def skips(case):
        raise SkippedUpdatesError("1 of 3 updates were skipped")

    case = json.dumps(dataclasses.asdict(TrainingCase(configs["ours"])))
    monkeypatch.setitem(training_turn.MEASURED, "speed", skips)
    assert training_turn.main(["speed", case, str(tmp_path / "result.json")]) == 2
    assert capsys.readouterr().err == "error: 1 of 3 updates were skipped\n"
    assert not list(tmp_path.glob("result*"))
    with pytest.raises(SkippedUpdatesError, match="not finite"):
        training_turn._require_finite([nn.Parameter(torch.tensor([1.0, math.nan]))])


@pytest.mark.parametrize("name", ["tiny", "small", "paper", "dac"])
@pytest.mark.parametrize("seconds", [1.28, 2.56, 40.96])
def test_all_shipped_configurations_use_the_same_seconds_and_the_discriminator_from_the_first_step(name, seconds):
    config = TrainingCase(name, batch_seconds=seconds).experiment()
    assert config.data.batch_size * round(config.data.crop_seconds * 48000) == pytest.approx(seconds * 48000, rel=1e-4)
    assert config.training.adversarial_start == 0
    assert config.trainer.validate_every == 0
    assert config.trainer.wandb == "disabled"
    usual = 0.38 if name == "dac" else 1.28
    assert config.data.crop_seconds == pytest.approx(usual, rel=0.15)


def test_the_arithmetic_that_is_counted_is_that_of_the_first_layer_and_more(configs):
    # The discriminator's first convolution: 7 x 7 from 6 features to 2, on 128 bins of each frame; three forward passes
    # (real, fake, fake again), two backward passes for its weights, and one for the decoded audio.
    case = TrainingCase(configs["ours"], batch_seconds=0.2, steps=1)
    config = case.experiment().discriminator
    assert isinstance(config, MultiScaleSTFTConfig)
    frames = math.ceil((4800 - 256) / 128) + 1
    once = 2 * 2 * frames * 128 * 7 * 7 * 6 * 2
    measured = profile(case)
    assert measured["flops"] > 6 * once
    longer = profile(TrainingCase(configs["ours"], batch_seconds=0.4, steps=1))
    assert longer["flops"] / measured["flops"] == pytest.approx(2, rel=0.05)
    assert longer["discriminator_parameters"] == measured["discriminator_parameters"] > 7 * 7 * 6 * 2


@pytest.mark.parametrize("name", ["ours", "dac"])
def test_parts_and_operators_take_less_time_than_the_step(configs, name):
    case = TrainingCase(configs[name], batch_seconds=0.2, steps=1)
    look = OperatorProfile(case.warm_up)
    train(case, case.experiment(), look)
    lines = [line.strip("| ").split(" | ") for line in look.table(rows=5).splitlines() if line.startswith("| ")]
    parts = {cells[0]: (int(cells[1]), float(cells[3].removesuffix(" %"))) for cells in lines if "%" in cells[3]}
    assert parts["discriminator, forward"][0] == 3  # the original, the decoded, and the decoded again for the codec
    assert parts["backward, both"][0] == 2
    assert parts["quantizer, forward"][0] == 1
    assert all(0 <= share <= 100 for _, share in parts.values())
    names = ("discriminator's turn", "codec's turn", "both updates", "codec, forward")
    turns = sum(parts[name][1] for name in names)
    assert 50 < turns <= 101
    assert sum(name.startswith("aten::") or "Backward" in name for name in parts) >= 3


class Waiting(nn.Module):
    """Tells the false clock how long it takes."""

    def __init__(self, clock, forward, backward):
        super().__init__()
        self.clock, self.forward_seconds, self.backward_seconds = clock, forward, backward

    def forward(self, x):
        self.clock[0] += self.forward_seconds
        y = 2 * x
        y.register_hook(lambda gradient: self._wait())
        return y

    def _wait(self):
        self.clock[0] += self.backward_seconds


def test_the_quantizer_timer_measures_forward_and_backward(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training_watch, "now", lambda: clock[0])
    before, quantizer = Waiting(clock, 5.0, 7.0), Waiting(clock, 1.0, 2.0)
    timer = QuantizerTimer(quantizer)
    for _ in range(2):
        quantizer(before(torch.ones(3, requires_grad=True))).sum().backward()
    assert (timer.forward_seconds, timer.backward_seconds) == (2.0, 4.0)
    timer.remove()
    quantizer(torch.ones(3, requires_grad=True))
    assert timer.forward_seconds == 2.0


def test_the_hooks_leave_the_quantizers_named_result(configs):
    quantizer = ResidualVectorQuantizer(QuantizerConfig(levels=2, codebook_size=4, initial_vectors=4), 3)
    quantizer.learning.adopt(quantizer.codebooks)
    timer = QuantizerTimer(quantizer)
    embeddings = torch.randn(2, 3, 5, requires_grad=True)
    result = quantizer(embeddings)
    assert result.is_started
    (result.embeddings.sum() + result.commitment_loss).backward()
    assert timer.forward_seconds > 0
    assert timer.backward_seconds > 0


def test_codebooks_are_initialised_and_the_music_is_in_memory_before_the_first_step(configs):
    from ablations.assembly import data_module, training_module

    config = TrainingCase(configs["ours"], batch_seconds=0.2).experiment()
    module = training_module(config)
    assert not module.codec.quantizer.learning.is_started
    start_codebooks(module)
    assert module.codec.quantizer.learning.is_started
    assert quantizer_of(module.codec) is module.codec.quantizer
    data = data_module(config)
    decode_music(data, config)
    assert data.train_dataset()._reader._whole


def test_medians_and_ratios_are_taken_over_rounds():
    # A slow spell in round 2 hits both: the ratio of the medians would be 3, the rounds say 2.
    ours = TrainingRow(
        TrainingCase("ours"), "spectrostream", [turn_of(1.0), turn_of(10.0), turn_of(2.0)], PROFILE, 1e10
    )
    dac = TrainingRow(TrainingCase("dac"), "dac", [turn_of(2.0), turn_of(20.0), turn_of(6.0)])
    assert ours.speed_against(dac) == 2.0
    assert ours.speed_against(None) is None
    numbers = ours.numbers()
    assert numbers["audio_seconds_per_second"] == 1.0
    assert numbers["steps_per_second"] == 1.0
    assert numbers["flops_per_second"] == 8e9
    assert numbers["share_of_peak"] == 0.8
    assert numbers["quantizer_share"] == pytest.approx(0.1)
    assert dac.numbers()["flops_per_second"] is None


def test_a_failed_round_does_not_change_the_others():
    ours = TrainingRow(TrainingCase("ours"), "spectrostream", [turn_of(1.0), None, turn_of(3.0)])
    dac = TrainingRow(TrainingCase("dac"), "dac", [turn_of(2.0), turn_of(2.0), None])
    assert ours.speed_against(dac) == 2.0
    assert ours.numbers()["audio_seconds_per_second"] == pytest.approx((2 + 2 / 3) / 2)


def test_the_table_compares_rows_with_the_same_execution():
    rows = [
        TrainingRow(TrainingCase("tiny"), "spectrostream", [turn_of(1.0, waited=0.01)], PROFILE, 1e11),
        TrainingRow(TrainingCase("tiny", devices=2), "spectrostream", [turn_of(1.25, audio_seconds=4.0)]),
        TrainingRow(TrainingCase("tiny", compile=True), "spectrostream", [turn_of(0.5)]),
        TrainingRow(TrainingCase("dac"), "dac", [turn_of(4.0)]),
    ]
    plain, two, compiled, dac = map(cells_of, training_table(rows).splitlines()[2:])
    assert plain["configuration"] == "tiny, 32-true"
    assert plain["against DAC"] == "4.00x"
    assert plain["waiting for data"] == "1.00 %"
    assert plain["processors"] == "0.50"
    assert plain["GFLOP per step"] == "8.0"
    assert plain["of the peak"] == "16 %"
    assert plain["codec + discriminator"] == "5.00 + 0.25 M"
    assert two["configuration"] == "tiny, 32-true, 2 processes, averaging"
    assert (two["against 1 process"], two["against DAC"]) == ("1.60x", MISSING)
    assert (compiled["against DAC"], compiled["quantizer"]) == (MISSING, MISSING)
    assert dac["against DAC"] == "1.00x"


def test_rows_take_turns_and_are_profiled_once(monkeypatch, capsys):
    log, peaks = [], iter([2.0, 5.0, 3.0])
    monkeypatch.setattr(training, "turn", lambda what, case: log.append((what, case.devices)) or turn_of(1.0))
    monkeypatch.setattr(training, "matrix_rate", lambda precision, threads: next(peaks))
    rows = [TrainingRow(TrainingCase("tiny", devices=devices), "spectrostream") for devices in (1, 2)]
    take_turns(rows, rounds=3)
    assert log == [*3 * [("speed", 1), ("speed", 2)], ("profile", 1)]
    assert [row.peak for row in rows] == [5.0, 5.0]
    assert rows[0].profile is rows[1].profile is not None


def test_strategies_differ_only_between_processes():
    parser = training._parser()
    given = parser.parse_args(["--configs", "tiny", "--devices", "1,2", "--strategy", "averaging,find_unused"])
    assert [title(case) for case in cases(given)] == [
        "tiny, 32-true",
        "tiny, 32-true, 2 processes, averaging",
        "tiny, 32-true, 2 processes, find unused",
    ]
    both = parser.parse_args(["--configs", "tiny,dac", "--compile", "off,on", "--channels-last"])
    assert [case.compile for case in cases(both)] == [False, True, False, True]
    assert "compiled, channels last" in title(cases(both)[1])


def test_a_wrong_configuration_is_an_error_before_any_measurement(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training", "--configs", "tinny"])
    monkeypatch.setattr(training, "take_turns", lambda *_: pytest.fail("measured"))
    assert training.main() == 2
    assert "allowed: a path to a YAML file, or one of dac, paper, small, tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--batch-seconds", "0"),
        ("--rounds", "0"),
        ("--steps", "-1"),
        ("--devices", "1,0"),
        ("--compile", "maybe"),
        ("--strategy", "none"),
    ],
)
def test_impossible_options_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        training._parser().parse_args([*words])
    assert "is not possible; allowed:" in capsys.readouterr().err


def test_the_peak_is_that_of_the_precision(monkeypatch):
    monkeypatch.setattr(training, "matmul_peaks", lambda: {"float32": 4.0, "bfloat16": 2.0})
    assert matrix_rate("32-true", 1) == 4.0
    assert matrix_rate("bf16-mixed", 1) == 2.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="other systems count with the parent's memory")
def test_peak_memory_is_this_processs_own():
    code = "from benchmarks.training_watch import peak_memory_bytes as peak; import torch; a = peak()"
    code += "; x = torch.ones(50_000_000); print(a, peak())"
    filled = torch.ones(200_000_000)  # 0.8 GB in the parent
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert filled.sum() > 0
    assert before < 0.8e9 < peak_memory_bytes()
    assert 1.5e8 < after - before < 3e8
