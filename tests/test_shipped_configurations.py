from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ablations.compose import ConfigError, configs_folder, find_yaml, load_experiment
from ablations.study import load_study, studies_folder
from lightning_modules.optimization import learning_rate
from spectrostream.adversarial.dac_discriminator import DacDiscriminatorConfig
from spectrostream.adversarial.objectives import RECIPES
from spectrostream.other_codecs.dac import DacConfig
from spectrostream.registry import build_codec
from spectrostream_cli.parser import build_parser
from spectrostream_cli.training import split_words

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(configs_folder().glob("*.yaml"))
STUDIES = sorted(studies_folder().glob("*.yaml"))


def commands(text: str) -> list[list[str]]:
    """Every `spectrostream ...` line: in fenced blocks, in YAML headers, in brackets."""
    found = re.findall(r"^[#\s]*(?:Command:\s+(?:.*\()?)?(spectrostream \w+ .+?)\)?\s*$", text, flags=re.MULTILINE)
    return [shlex.split(command, comments=True)[1:] for command in found]


def fenced(text: str) -> str:
    return "\n".join(re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


README = commands(fenced((ROOT / "README.md").read_text(encoding="utf-8")))
HEADERS = {path.name: commands(path.read_text(encoding="utf-8")) for path in (*CONFIGS, *STUDIES)}


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_composes(path: Path) -> None:
    config = load_experiment(path.stem)
    assert config == load_experiment(str(path))
    with pytest.raises(ConfigError, match="did you mean training"):
        load_experiment(path.stem, ["trainig.seed=1"])


def test_tiny_is_tiny() -> None:
    with torch.device("meta"):
        codec = build_codec(load_experiment("tiny").model)
    assert sum(parameter.numel() for parameter in codec.parameters()) < 1_000_000


def test_paper_has_the_released_size() -> None:
    with torch.device("meta"):
        codec = build_codec(load_experiment("paper").model)
    assert sum(parameter.numel() for parameter in codec.encoder.parameters()) == 9_251_904
    assert sum(parameter.numel() for parameter in codec.decoder.parameters()) == 35_684_546
    assert tuple(codec.quantizer.codebooks.shape) == (64, 1024, 256)
    assert codec.kbps(64) == 16.0


def test_dac_has_descript_s_sizes_and_weights() -> None:
    config = load_experiment("dac")
    assert config.model == DacConfig()
    assert config.discriminator == DacDiscriminatorConfig()
    assert (config.training.recipe, config.training.loss) == ("dac", RECIPES["dac"].weights)
    assert (config.data.crop_seconds, config.data.batch_size) == (0.38, 72)
    for side, clip in ((config.training.generator, 1000.0), (config.training.discriminator, 10.0)):
        assert (side.learning_rate, side.betas, side.weight_decay) == (1e-4, (0.8, 0.99), 0.01)
        assert (side.schedule, side.decay, side.gradient_clip_norm) == ("exponential", 0.999996, clip)


@pytest.mark.slow
def test_the_demo_moves_every_axis_and_compares_with_dac() -> None:
    study = load_study("demo")
    runs = study.runs()
    roles = [run.variant.role for run in runs]
    assert (roles.count("baseline"), roles.count("peer")) == (1, 1)
    assert roles.count("variant") >= 5
    assert all(len(places) > 1 for places in study.positions(runs).values())
    (dac,) = [run for run in runs if run.variant.role == "peer"]
    assert isinstance(dac.config.model, DacConfig)
    (baseline,) = [run for run in runs if run.variant.role == "baseline"]
    assert baseline.config.training == replace(dac.config.training)
    for run in runs:
        (moved,) = [key for key in run.variant.set if not key.startswith("evaluation.")] or ["nothing"]
        assert (moved == "nothing") == (run is baseline)


@pytest.mark.slow
def test_the_demo_s_models_are_at_rest_when_they_are_evaluated() -> None:
    """At the full rate one update can undo most of what was learned, so that the last step says little."""
    for run in load_study("demo").runs():
        training = run.config.training
        rates = [learning_rate(training.generator, step, training.max_steps) for step in range(training.max_steps)]
        assert rates[-1] < max(rates) / 100, run.name


def test_every_configuration_s_header_has_its_command() -> None:
    for path in (*CONFIGS, *STUDIES):
        assert HEADERS[path.name], path
        key = "config" if path in CONFIGS else "study"
        assert any(f"{key}={path.stem}" in command for command in HEADERS[path.name]), path


@pytest.mark.slow
@pytest.mark.parametrize("command", [*README, *(one for found in HEADERS.values() for one in found)], ids=" ".join)
def test_a_documented_command_can_be_typed(command: list[str]) -> None:
    parsed = build_parser().parse_args(command)
    if parsed.command == "train":
        given, overrides = split_words(parsed.words, required=("config", "out"))
        # What starts from the reader's own run cannot be here.
        load_experiment(given["config"], [word for word in overrides if not word.startswith("training.start_from=")])
    elif parsed.command in ("ablate", "report"):
        optional = ("jobs",) if parsed.command == "ablate" else ()
        given, overrides = split_words(parsed.words, required=("study", "out"), optional=optional)
        if not given["study"].endswith(".yaml"):  # the reader's own file
            find_yaml(given["study"], studies_folder(), "study")
            assert load_study(given["study"]).runs(overrides)


@pytest.mark.parametrize("name", ["README.md", "JOURNAL.md", "BENCHMARKS.md"])
def test_no_number_is_left_to_fill_in(name: str) -> None:
    assert not re.findall(r"@[A-Z]+@", (ROOT / name).read_text(encoding="utf-8"))
