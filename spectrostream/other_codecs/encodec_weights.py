"""The networks of EnCodec from `transformers`: with random weights, or Meta's weights from this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrostream.other_codecs.dac import MissingPackageError, PretrainedWeightsError
from spectrostream.other_codecs.encodec_config import SAMPLE_RATE, EncodecConfig

PRETRAINED_NAME = "facebook/encodec_48khz"
# The values of the 48 kHz model that differ from transformers' defaults and that `EncodecConfig` does not have.
_FIXED = {"sampling_rate": SAMPLE_RATE, "norm_type": "time_group_norm", "use_causal_conv": False, "normalize": True}
# Our keys and those of `transformers.EncodecConfig`. Strides and upsampling ratios have opposite orders.
_KEYS = {
    "channels": "audio_channels",
    "width": "num_filters",
    "strides": "upsampling_ratios",
    "residual_layers": "num_residual_layers",
    "lstm_layers": "num_lstm_layers",
    "embedding_dim": "hidden_size",
    "codebook_size": "codebook_size",
    "bandwidths": "target_bandwidths",
    "chunk_seconds": "chunk_length_s",
    "overlap": "overlap",
}
_HOW_TO_GET_THEM = (
    f"On a machine with a network type: hf download {PRETRAINED_NAME}\n"
    "or give the path of a folder that holds config.json and model.safetensors."
)


def pretrained_model(name: str | Path) -> tuple[EncodecConfig, nn.Module]:
    """Load a pretrained 48 kHz model. Nothing is downloaded or unpickled.

    Args:
        name: A local folder, or a name in the local Hugging Face cache.

    Returns:
        The configuration, and a `transformers.EncodecModel` in float32.

    Raises:
        PretrainedWeightsError: The weights are missing, incomplete, or not those of a 48 kHz EnCodec; the message says
            what to type.
        MissingPackageError: `transformers` is not installed.
    """
    transformers = _import_transformers()
    with _explaining(name):
        inner = transformers.EncodecConfig.from_pretrained(name, local_files_only=True)
    config = _config_of(inner, name)
    with _explaining(name):
        model, report = transformers.EncodecModel.from_pretrained(
            name, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):  # transformers would leave them random
        raise PretrainedWeightsError(
            f"the weights {str(name)!r} lack {len(missing)} tensors, {missing[0]} among them. {_HOW_TO_GET_THEM}"
        )
    return config, model


def random_model(config: EncodecConfig) -> nn.Module:
    """Build a `transformers.EncodecModel` with random weights.

    Raises:
        MissingPackageError: `transformers` is not installed.
    """
    model = _import_transformers().EncodecModel(_inner_config(config))
    for layer in model.quantizer.layers:
        # The codebooks of transformers are zero until weights are loaded, so every code would be 0. EnCodec's authors
        # start so without k-means.
        nn.init.kaiming_uniform_(layer.codebook.embed)
        layer.codebook.embed_avg.copy_(layer.codebook.embed)
    return model


def _inner_config(config: EncodecConfig) -> Any:
    """Convert our configuration to a `transformers.EncodecConfig`."""
    values = {theirs: getattr(config, ours) for ours, theirs in _KEYS.items()}
    values |= {"upsampling_ratios": list(config.strides)[::-1], "target_bandwidths": list(config.bandwidths)}
    return _import_transformers().EncodecConfig(**_FIXED, **values)


@contextmanager
def _explaining(name: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers' errors have no common type
        raise PretrainedWeightsError(
            f"the weights {str(name)!r} cannot be read from this machine. {_HOW_TO_GET_THEM} ({error})"
        ) from error


def _config_of(inner: Any, name: str | Path) -> EncodecConfig:
    """Convert a `transformers.EncodecConfig` to ours; raise PretrainedWeightsError if ours cannot express it."""
    refusal = f"{str(name)!r} is not the 48 kHz EnCodec; allowed: {PRETRAINED_NAME} or a folder that holds it"
    try:
        values = {ours: getattr(inner, theirs) for ours, theirs in _KEYS.items()}
        config = EncodecConfig(**{**values, "strides": tuple(inner.upsampling_ratios)[::-1]})
    except (TypeError, ValueError) as error:
        raise PretrainedWeightsError(f"{refusal}. ({error})") from error
    _require_equal(inner, _inner_config(config), refusal)
    return config


def _require_equal(inner: Any, expected: Any, refusal: str) -> None:
    for key in type(expected).__annotations__:  # EnCodec's own keys, without those that every model has
        given, allowed = (list(v) if isinstance(v := getattr(c, key), tuple) else v for c in (inner, expected))
        if given != allowed:
            raise PretrainedWeightsError(f"{refusal}. ({key} = {given}, not {allowed})")


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("EnCodec needs transformers; type: pip install 'spectrostream[baselines]'") from error
    return transformers
