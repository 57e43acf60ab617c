"""The official codec with seeded weights: each part of it compiled, whole and step by step.

Arrays are `[batch, time, ...]` with one example, as the official code has them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn  # type: ignore[import-not-found]
import jax  # type: ignore[import-not-found]
import jax.numpy as jnp  # type: ignore[import-not-found]
import numpy as np

from benchmarks.official.layouts import Layout
from benchmarks.official.loading import load_official
from benchmarks.official.random_weights import draw_codebooks, draw_weights

official = load_official()

import sequence_layers.jax as sl  # type: ignore[import-not-found]  # noqa: E402  importable once the codec is loaded

CODEBOOKS = "quantizer/embedding"
SAMPLES_PER_TOKEN = 1920


def official_config(layout: Layout) -> Any:
    """The released configuration with another channel layout."""
    return dataclasses.replace(
        official.stft_spectrostream_40ms_generic_48khz_stereo_config(),
        num_channels=2 * layout.channels,  # real and imaginary part
        channel_splits=None if layout.fusion is None else layout.channels,
        channel_recombo_block=-2 if layout.fusion is None else layout.fusion,
    )


class OfficialCodec:
    """Parts by name; each takes arrays and gives an array. The weights are drawn for `audio` `[samples, channels]`."""

    def __init__(self, layout: Layout, seed: int, audio: np.ndarray) -> None:
        self.channels = layout.channels
        self._model = official_config(layout).make()
        shapes = self._shapes()
        self.params = draw_weights({path: shape for path, shape in shapes.items() if path != CODEBOOKS}, seed)
        levels, entries, dim = shapes[CODEBOOKS]
        self.params[CODEBOOKS] = np.zeros((levels, entries, dim), np.float32)
        self._tree = _nested(self.params)
        self._compile()
        embeddings = np.asarray(self.embeddings(self.batch(audio)))[0]
        self.params[CODEBOOKS] = draw_codebooks((levels, entries, dim), embeddings, seed)
        self._tree = _nested(self.params)

    def batch(self, audio: np.ndarray) -> jax.Array:
        """`[samples, channels]` to what the official code takes: `[1, samples, channels]`, mono without an axis."""
        return jnp.asarray(audio[None] if self.channels > 1 else audio[None, :, 0])

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        audio = self.batch(np.zeros((4 * SAMPLES_PER_TOKEN, self.channels), np.float32))
        tree = jax.eval_shape(
            lambda key: self._model.init(key, sl.Sequence.from_values(audio), training=False), jax.random.PRNGKey(0)
        )
        leaves = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(tree)["params"])[0]
        return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}

    def _compile(self) -> None:
        self.stft = self._jit(lambda model, audio: model.stft.layer(_sequence(audio), training=False).values)
        self.embeddings = self._jit(
            lambda model, audio: model.waveform_to_embeddings(_sequence(audio), training=False).values
        )
        self.quantize = self._jit(
            lambda model, embeddings: model.quantizer.embeddings_to_codes(_sequence(embeddings)).values
        )
        self.encode = self._jit(lambda model, audio: model.waveform_to_codes(_sequence(audio), training=False).values)
        self.dequantize = self._jit(lambda model, codes: model.quantizer.codes_to_embeddings(_sequence(codes)).values)
        self.features = self._jit(
            lambda model, embeddings: model.decoder.layer(_sequence(embeddings), training=False).values
        )
        self.decode = self._jit(_decode)
        self._step_encode = self._jit(lambda model, audio, state: _step(model.waveform_to_codes_layer, audio, state))
        self._step_decode = self._jit(
            lambda model, embeddings, state: _step(model.embeddings_to_waveform_layer, embeddings, state)
        )

    def _jit(self, method: Callable[..., Any]) -> Callable[..., Any]:
        # The weights are an argument: as constants they would be folded, and stay after they are replaced.
        compiled = jax.jit(lambda tree, *arguments: self._model.apply({"params": tree}, *arguments, method=method))
        return lambda *arguments: compiled(self._tree, *arguments)

    def encoder_stream(self) -> Stepper:
        """1920 samples at a time; the first code comes one block late."""
        spec = sl.ShapeDType((self.channels,) if self.channels > 1 else (), jnp.float32)
        return Stepper(self._step_encode, self._initial("waveform_to_codes_layer", spec))

    def decoder_stream(self) -> Stepper:
        """One embedding at a time; the first block of audio is not yet aligned audio."""
        spec = sl.ShapeDType((self.params[CODEBOOKS].shape[-1],), jnp.float32)
        return Stepper(self._step_decode, self._initial("embeddings_to_waveform_layer", spec))

    def _initial(self, layer: str, spec: Any) -> Any:
        return self._model.apply(
            {"params": self._tree},
            method=lambda model: getattr(model, layer).get_initial_state(1, spec, training=False),
        )


class Stepper:
    """A stream: each call takes the next block and gives what it completes."""

    def __init__(self, step: Callable[..., Any], state: Any) -> None:
        self._step, self._state = step, state

    def __call__(self, block: jax.Array) -> jax.Array:
        """`[1, time, ...]` to `[1, time, ...]`."""
        values, self._state = self._step(block, self._state)
        return values


def _sequence(values: jax.Array) -> Any:
    return sl.Sequence.from_values(values)


def _step(layer: Any, values: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    result, state = layer.step(_sequence(values), state, training=False)
    return result.values, state


def _decode(model: Any, codes: jax.Array) -> jax.Array:
    """All that the codes stand for: the decoder looks one embedding ahead, so a zero embedding follows the last."""
    embeddings = model.quantizer.codes_to_embeddings(_sequence(codes)).values
    padded = jnp.pad(embeddings, ((0, 0), (0, 1), (0, 0)))
    return model.embeddings_to_waveform(_sequence(padded), training=False).values


def _nested(params: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in params.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(value)
    return tree
