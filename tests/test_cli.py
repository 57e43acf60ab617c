from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent / "ablations"))
from small_study import TINY_DAC, write_config, write_music, write_study

from ablations.compose import load_layer
from spectrostream.bitstream.files import read_bitstream
from spectrostream.other_codecs.dac import Dac, DacConfig
from spectrostream.weights import save_codec
from spectrostream_cli import main

pytestmark = pytest.mark.processes

COMMANDS = ("train", "ablate", "report", "encode", "decode", "repack", "stream", "info", "export")
RATE = 48000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with music, a configuration, a trained run, sounds good and bad, and a coded file."""
    shop = tmp_path_factory.mktemp("shop")
    music = write_music(shop / "music")
    config = write_config(shop, training={"max_steps": 2})
    assert main(["train", f"config={config}", f"data.root={music}", f"out={shop / 'run'}"]) == 0
    noise = 0.1 * np.random.default_rng(0).standard_normal((RATE, 2))
    soundfile.write(shop / "good.wav", noise, RATE)
    soundfile.write(shop / "six.wav", np.zeros((100, 6)), RATE)
    soundfile.write(shop / "silent.wav", np.zeros((RATE // 2, 2)), RATE)
    soundfile.write(shop / "one.wav", noise[:1], RATE)
    soundfile.write(shop / "mono.wav", noise[:44100, 0], 44100, subtype="PCM_24")
    noise[5] = np.nan
    soundfile.write(shop / "nan.wav", noise, RATE, subtype="FLOAT")
    (shop / "text.wav").write_text("this is no audio")
    (shop / "text.sps").write_text("this is no coded file, but it is long enough to hold a header")
    (shop / "text.safetensors").write_text("these are no weights")
    (shop / "nothing.safetensors").touch()
    (shop / "empty").mkdir()
    assert main(["encode", str(shop / "good.wav"), str(shop / "good.sps"), "--weights", str(shop / "run")]) == 0
    (shop / "cut.sps").write_bytes((shop / "good.sps").read_bytes()[:-9])
    save_codec(Dac(DacConfig(**TINY_DAC)), shop / "dac.safetensors")  # type: ignore[arg-type]
    torch.manual_seed(1)
    other = [
        f"config={config}",
        f"data.root={music}",
        f"out={shop / 'other'}",
        "training.seed=9",
        "training.max_steps=1",
    ]
    assert main(["train", *other]) == 0
    return shop


def encoded(shop: Path, tmp_path: Path, name: str, *options: str) -> Path:
    path = tmp_path / f"{name}.sps"
    assert main(["encode", str(shop / name), str(path), "--weights", str(shop / "run"), *options]) == 0
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"examples:\n  spectrostream {command} " in shown


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {command} " in shown for command in COMMANDS)
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def test_mono_at_another_rate_is_coded_and_comes_back_as_long(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One second at 44.1 kHz: tiled to two channels and resampled, as `encode --help` says."""
    coded = encoded(shop, tmp_path, "mono.wav")
    size = coded.stat().st_size
    assert f"coded: {coded} ({size} bytes, 1.00 s, {size * 8 / 1000:.2f} kbps with header, " in capsys.readouterr().out
    assert main(["info", str(coded)]) == 0
    assert "1.00 s, 48000 Hz, 2 channels, 4 levels x 4 bits x 25 frames (0.40 kbps; " in capsys.readouterr().out
    for name in ("new/folder/back.wav", "back.flac"):
        back = tmp_path / name
        assert main(["decode", str(coded), str(back), "--weights", str(shop / "run" / "codec.safetensors")]) == 0
        info = soundfile.info(back)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (48000, 2, 48000, "PCM_24")
        assert f"decoded: {back} (1.00 s" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "samples"), [("silent.wav", RATE // 2), ("one.wav", 1)])
def test_odd_but_possible_audio_is_coded(shop: Path, tmp_path: Path, name: str, samples: int) -> None:
    coded = encoded(shop, tmp_path, name)
    assert main(["decode", str(coded), str(tmp_path / "back.wav"), "--weights", str(shop / "run")]) == 0
    assert soundfile.info(tmp_path / "back.wav").frames == samples


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ([], 4),
        (["--levels", "1"], 1),
        (["--levels", "3"], 3),
        (["--kbps", "0.1"], 1),
        (["--kbps", "0.19"], 1),
        (["--kbps", "0.3"], 3),
        (["--kbps", "0.35"], 3),
        (["--kbps", "0.4"], 4),
    ],
)
def test_a_rate_is_never_exceeded(shop: Path, tmp_path: Path, options: list[str], levels: int) -> None:
    header, codes = read_bitstream(encoded(shop, tmp_path, "good.wav", *options))
    assert header.levels == levels
    assert codes.shape == (levels, 25)
    assert header.file_bytes == (tmp_path / "good.wav.sps").stat().st_size


def test_levels_and_a_rate_exclude_each_other(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.sps"
    words = ["encode", str(shop / "good.wav"), str(out), "--weights", str(shop / "run"), "--kbps", "1", "--levels", "1"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("encode {shop}/missing.wav {out}.sps --weights {shop}/run", "missing.wav': cannot be opened: No such file"),
        ("encode {shop}/text.wav {out}.sps --weights {shop}/run", "text.wav': cannot be read as audio"),
        (
            "encode {shop}/empty {out}.sps --weights {shop}/run",
            "empty holds none of the files that are looked for",
        ),
        ("encode {shop}/nan.wav {out}.sps --weights {shop}/run", "has 2 NaN or infinite samples among 96000"),
        ("encode {shop}/six.wav {out}.sps --weights {shop}/run", "has 6 channels, allowed are 1 or 2; mix it down"),
        ("encode {shop}/good.wav {shop}/good.wav/x.sps --weights {shop}/run", "good.wav cannot be created: "),
        ("encode {shop}/text.wav {shop}/empty --weights {shop}/run", "text.wav': cannot be read as audio"),
        (
            "encode {shop}/good.wav {out}.sps --weights {shop}/run --levels 5",
            "allowed: --levels 1..4 or --kbps 0.1..0.4",
        ),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/run --levels 0", "--levels 0 is not possible"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/run --kbps 8", "--kbps 8 is not possible"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/run --kbps 0.05", "--kbps 0.05 is not possible"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/run --kbps nan", "--kbps nan is not possible"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/run --kbps inf", "--kbps inf is not possible"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/no", "there is no file or folder "),
        (
            "encode {shop}/good.wav {out}.sps --weights {shop}/empty",
            "empty holds no weights: neither codec.",
        ),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/text.safetensors", "is not a readable safetensors file"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/nothing.safetensors", "is not a readable safetensors file"),
        ("encode {shop}/good.wav {out}.sps --weights {shop}/dac.safetensors", "holds a codec of kind 'dac'"),
        ("decode {shop}/missing.sps {out}.wav --weights {shop}/run", "there is no coded file"),
        ("decode {shop}/cut.sps {out}.wav --weights {shop}/run", "the data end here"),
        ("decode {shop}/text.sps {out}.wav --weights {shop}/run", "not a SpectroStream file"),
        ("decode {shop}/good.wav {out}.wav --weights {shop}/run", "not a SpectroStream file"),
        ("decode {shop}/good.sps {out}.wav --weights {shop}/other", "was encoded by another codec than"),
        ("decode {shop}/good.sps {out}.wav --weights {shop}/no", "there is no file or folder "),
        ("decode {shop}/good.sps {out}.mp3 --weights {shop}/run", "cannot write the extension '.mp3'"),
        ("decode {shop}/good.sps {shop}/good.wav/x.wav --weights {shop}/run", "good.wav cannot be created: "),
        ("repack {shop}/good.sps {out}.sps --levels 5", "allowed: --levels 1..4 or --kbps 0.1..0.4"),
        ("repack {shop}/good.sps {out}.sps --kbps 0.05", "--kbps 0.05 is not possible with"),
        ("repack {shop}/missing.sps {out}.sps --kbps 4", "there is no coded file"),
        ("repack {shop}/text.sps {out}.sps --kbps 4", "text.sps: byte 0: magic is"),
        ("repack {shop}/cut.sps {out}.sps --levels 4", "cut.sps: byte "),
        ("export --weights {shop}/run {shop}/good.wav", "good.wav: File exists"),
        ("export --weights {shop}/run {out} --levels 9", "levels = 9 is not possible with this codec; allowed: 1..4"),
        ("info {shop}/missing", "there is no file or folder"),
        ("info {shop}/text.wav", "cannot be read as audio"),
        ("info {shop}/text.sps", "not a SpectroStream file"),
        ("info {shop}/empty", "empty holds no weights: neither codec."),
        ("train out={out}", "config=.. is missing; see --help for examples"),
        ("train", "config=.. is missing"),
        ("ablate", "study=.. and out=.. is missing"),
        ("train config=tiny out={out} data={shop}/nowhere", "does not exist. Type data.root="),
        ("train config=tyni out={out}", "config = 'tyni': there is no such file; allowed: a path to a YAML file"),
        ("train config=tiny out={out} training.max_step=3", "did you mean training.max_steps?"),
        ("train config=tiny out={out} max_steps", "'max_steps' is not an override; type key=value"),
        ("train config=tiny out={out} data.root={shop}/empty", "No usable audio below"),
        ("train config=tiny out={out} data.root={shop}/nowhere", "does not exist. Type data.root="),
        (
            "train config={shop}/minute.yaml data.root={shop}/music out={shop}/good.wav",
            "good.wav is a file; type out=FOLDER",
        ),
        (
            "train config={shop}/minute.yaml data.root={shop}/music out={out} trainer.accelerator=gpu",
            "trainer.accelerator = 'gpu' is not possible: this machine has none",
        ),
        (
            "train config={shop}/minute.yaml data.root={shop}/music out={out} training.generator.learning_rate=1e30 "
            "training.max_steps=3",
            "is not finite at step",
        ),
        (
            "train config={shop}/minute.yaml data.root={shop}/music out={shop}/run model.fusion=3",
            "holds a run of another configuration or corpus",
        ),
        (
            "ablate study=nothing out={out}",
            "study = 'nothing': there is no such file; allowed: a path to a YAML file, or",
        ),
        ("ablate study=demo out={out} jobs=0", "jobs = '0' is not possible; allowed: a whole number, 1 or more"),
        ("ablate study=demo out={out} jobs=two", "jobs = 'two' is not possible"),
        ("ablate study=demo out={out} data.rot=x", "did you mean data.root?"),
        ("report study=demo out={out}", "the baseline has no results in"),
    ],
)
def test_a_mistake_is_explained(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    before = sorted(path for path in shop.rglob("*") if path.is_file())
    assert main([word.format(shop=shop, out=tmp_path / "out") for word in words.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("error: ") == 1
    assert "Traceback" not in error
    # What explains itself in several lines lists what was seen in a music folder.
    assert error.count("\n") == 1 or "No usable audio" in error
    left = [path for path in tmp_path.rglob("*") if path.suffix in (".sps", ".wav", ".mp3", ".safetensors")]
    assert [path for path in left if path.parent.name != "bad-batches"] == []
    if "trainer.accelerator" not in words:
        assert [path for path in sorted(shop.rglob("*")) if path.is_file() and path.name != "lock"] == [
            path for path in before if path.name != "lock"
        ]


def test_info_tells_what_a_thing_is(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "run": "run: a run, trained after 2 steps, last checkpoint step-00000002.ckpt; its configuration is ",
        "run/codec.safetensors": " parameters, 4 levels of 0.1 kbps (up to 0.4), latency 80 ms, codec ",
        "dac.safetensors": "DacConfig(kind='dac'",
        "mono.wav": "1.00 s, 44100 Hz, 1 channels",
        "music/track-0.flac": "9.00 s, 48000 Hz, 2 channels",
    }
    for name, words in expected.items():
        assert main(["info", str(shop / name)]) == 0
        assert words in capsys.readouterr().out


def test_a_finished_training_is_not_repeated(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (shop / "run").rglob("*.*") if "json" not in path.suffix}

    before = {path: time for path, time in state().items() if path.suffix != ".yaml"}
    words = ["train", f"config={shop / 'minute.yaml'}", f"data.root={shop / 'music'}", f"out={shop / 'run'}"]
    assert main([*words, "evaluation.workers=2"]) == 0
    assert f"trained: {shop / 'run' / 'codec.safetensors'}" in capsys.readouterr().out
    assert {path: time for path, time in state().items() if path.suffix != ".yaml"} == before
    # Weights that were lost come back from the last checkpoint.
    weights = load_file(shop / "run" / "codec.safetensors")
    copied = Path(shutil.copytree(shop / "run", shop / "copied"))
    (copied / "codec.safetensors").unlink()
    assert main([*words[:-1], f"out={copied}"]) == 0
    again = load_file(copied / "codec.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    shutil.rmtree(copied)


@pytest.mark.slow
def test_the_shortest_words_train_in_a_folder_named_after_the_configuration(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"config={shop / 'minute.yaml'}", f"data={shop / 'music'}"]) == 0
    assert "trained: runs/minute/codec.safetensors" in capsys.readouterr().out
    assert (tmp_path / "runs" / "minute" / "codec.safetensors").is_file()
    assert load_layer(tmp_path / "runs" / "minute" / "config.yaml").data.root == str(shop / "music")


@pytest.mark.slow
def test_a_study_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    music = write_music(tmp_path / "music", tracks=1)
    study = write_study(tmp_path, variants=None, peers=None, axes=None)
    words = [f"study={study}", f"data.root={music}", f"out={tmp_path / 'out'}"]
    page = tmp_path / "out" / "report" / "index.html"
    assert main(["ablate", *words, "jobs=1"]) == 0
    said = capsys.readouterr().out
    assert "A minute's study: 1 runs, 0 done before" in said
    assert "baseline: done after" in said
    assert said.endswith(f"report: {page}\n")
    first = page.stat().st_mtime_ns
    assert main(["report", *words]) == 0
    assert capsys.readouterr().out.endswith(f"report: {page}\n")
    assert page.stat().st_mtime_ns > first
