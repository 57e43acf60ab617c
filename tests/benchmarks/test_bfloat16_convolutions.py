"""The sweep of bfloat16 shapes, and that no network of ours has one of those known to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ablations.compose import load_experiment
from benchmarks import bfloat16_convolutions
from benchmarks.bfloat16_convolutions import (
    Shape,
    few_features,
    few_positions,
    kind_of,
    main,
    relative_error,
    single_bin,
    swept,
)
from spectrostream import SpectroStream, SpectroStreamConfig
from spectrostream.adversarial.contract import DiscriminatorConfig
from spectrostream.adversarial.dac_discriminator import DacDiscriminatorConfig
from spectrostream.adversarial.discriminators import build_discriminator
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig
from spectrostream.frontends import FRONT_ENDS

WIDTHS = range(1, 33)


def pair(value: int | tuple[int, ...], axes: int) -> tuple[int, int]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    return (values[0], values[1]) if axes == 2 else (0 if values[0] == 0 else 1, values[0])


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> set[Shape]:
    """Of all convolutions that run from now on; with one axis they are convolutions of height 1."""
    seen: set[Shape] = set()

    def noted(right: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, *rest: Any) -> Tensor:
            kernel = (1, *weight.shape[2:])[-2:]
            sizes = x.shape[-1], x.shape[2] if axes == 2 else 1
            channels = weight.shape[1], weight.shape[0]
            seen.add(Shape(*channels, kernel, pair(stride, axes), pair(padding, axes), *sizes))
            return right(x, weight, bias, stride, padding, *rest)

        return run

    monkeypatch.setattr(F, "conv1d", noted(F.conv1d, 1))
    monkeypatch.setattr(F, "conv2d", noted(F.conv2d, 2))
    return seen


def wrong(shapes: set[Shape]) -> Iterator[Shape]:
    return (shape for shape in shapes if kind_of(shape))


def run_codec(config: SpectroStreamConfig) -> None:
    with torch.device("meta"):  # nothing is computed, shapes alone count
        codec = SpectroStream(config)
        codec.synthesize(codec.embed(torch.empty(1, config.channels, 9600)), 9600)


def run_discriminator(config: DiscriminatorConfig) -> None:
    with torch.no_grad():
        build_discriminator(config, channels=2)(torch.zeros(1, 2, config.shortest_audio))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "small", "paper", "dac"])
def test_no_shipped_configuration_has_a_shape_that_amx_gets_wrong(name: str, shapes: set[Shape]) -> None:
    config = load_experiment(name)
    run_discriminator(config.discriminator)
    if isinstance(config.model, SpectroStreamConfig):
        run_codec(config.model)
    assert len(shapes) > 10
    assert list(wrong(shapes)) == []


@pytest.mark.slow
@pytest.mark.parametrize("frontend", FRONT_ENDS)
def test_which_codec_widths_have_a_shape_that_amx_gets_wrong(frontend: str, shapes: set[Shape]) -> None:
    found = set()
    for width in WIDTHS:
        shapes.clear()
        run_codec(SpectroStreamConfig(frontend=frontend, encoder_width=width, decoder_width=width, embedding_dim=8))
        found |= {width for _ in wrong(shapes)}
    # Of the waveform's 1x8 kernels with 8 and 12 features; there `precision_check` takes float32.
    assert found == ({2, 3} if frontend == "waveform" else set())


@pytest.mark.slow
@pytest.mark.parametrize("config", [MultiScaleSTFTConfig, DacDiscriminatorConfig])
def test_no_discriminator_width_has_a_shape_that_amx_gets_wrong(
    config: type[DiscriminatorConfig], shapes: set[Shape]
) -> None:
    for width in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
        run_discriminator(config(width=width))
    assert len(shapes) > 100
    assert list(wrong(shapes)) == []


def test_the_known_kinds() -> None:
    assert few_features(Shape(8, 1, (1, 8), (1, 1), (0, 0), 8))
    assert few_features(Shape(12, 16, (3, 16), (1, 2), (0, 0), 90))
    assert not few_features(Shape(16, 1, (1, 8), (1, 1), (0, 0), 8))
    assert not few_features(Shape(8, 1, (1, 7), (1, 1), (0, 0), 8))
    assert not few_features(Shape(8, 1, (1, 4), (1, 1), (0, 0), 8))
    assert not few_features(Shape(3, 1, (1, 32), (1, 1), (0, 0), 32))
    assert single_bin(Shape(64, 64, (4, 4), (2, 2), (1, 1), 3))
    assert not single_bin(Shape(64, 64, (4, 4), (2, 2), (1, 1), 4))
    assert not single_bin(Shape(64, 64, (4, 4), (2, 2), (0, 0), 4))
    assert single_bin(Shape(64, 64, (4, 4), (2, 2), (0, 0), 5))
    assert single_bin(Shape(64, 64, (3, 3), (1, 2), (0, 0), 3))
    assert not single_bin(Shape(64, 64, (3, 3), (1, 1), (1, 1), 1))


def test_the_sweep_prints_the_wrong_shapes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = [Shape(32, 16, (1, 3), (1, 1), (0, 0), 8), Shape(8, 1, (1, 8), (1, 1), (0, 0), 8)]
    monkeypatch.setattr(bfloat16_convolutions, "swept", lambda: iter(few))
    right = F.conv2d

    def broken(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        y = right(x, weight, *rest)
        return y * torch.nan if y.dtype == torch.bfloat16 and weight.shape[3] == 8 else y

    monkeypatch.setattr(F, "conv2d", broken)
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "| 8 | 1 | 1x8 | 1x1 | 0 | 16x8 | inf | few features |",
        "1 of 2 shapes are wrong; 1 are of the kinds known from processors with AMX",
    ]
    assert "ONEDNN_MAX_CPU_ISA" in lines[0]


def test_the_sweep_holds_both_kinds_and_right_shapes() -> None:
    shapes = list(swept())
    assert sum(map(few_features, shapes)) > 20
    assert sum(map(single_bin, shapes)) > 20
    assert sum(map(few_positions, shapes)) > 20
    assert len(set(shapes)) == len(shapes)
    # A shape that every processor computes rightly.
    assert 0.0005 < relative_error(Shape(32, 32, (3, 3), (1, 1), (0, 0), 16)) < 0.01
