"""What the official codec gives for one signal, part by part, as a parity fixture (`tests/fixtures/README.md`)."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp  # type: ignore[import-not-found]
import numpy as np

from benchmarks.official.codec import SAMPLES_PER_TOKEN, OfficialCodec

LEVELS = (64, 32, 16)


def write_outputs(codec: OfficialCodec, audio: np.ndarray, path: Path, *, streamed: bool) -> None:
    """Writes weights, `audio` `[samples, channels]` and all outputs beside `path`, then renames.

    out/waveform_N: from the first N levels, all that the codes stand for. With `streamed` also out/streamed_codes and
    out/streamed_waveform: block by block, the waveform from the codes of the whole.
    """
    arrays = {"in/audio": audio, **{f"param/{name}": value for name, value in codec.params.items()}}
    arrays |= {f"out/{name}": value for name, value in _whole(codec, audio).items()}
    if streamed:
        arrays["out/streamed_codes"] = _streamed_codes(codec, audio)
        arrays["out/streamed_waveform"] = _streamed_waveform(codec, arrays["out/codes"])
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its own keyword is no name here
    partial.replace(path)


def _whole(codec: OfficialCodec, audio: np.ndarray) -> dict[str, np.ndarray]:
    batch = codec.batch(audio)
    codes = codec.encode(batch)
    dequantized = codec.dequantize(codes)
    outputs = {
        "stft": codec.stft(batch),
        "embeddings": codec.embeddings(batch),
        "codes": codes,
        "dequantized": dequantized,
        "decoder_features": codec.features(dequantized),
        **{f"waveform_{levels}": codec.decode(codes[:, :, :levels]) for levels in LEVELS},
    }
    return {name: _example(value) for name, value in outputs.items()}


def _example(value: jnp.ndarray) -> np.ndarray:
    """`[1, time, ...]` to `[time, ...]`; a mono waveform gets its channel back."""
    array = np.asarray(value)[0]
    return array[:, None] if array.ndim == 1 else array


def _streamed_codes(codec: OfficialCodec, audio: np.ndarray) -> np.ndarray:
    """`[tokens, levels]`: the end of the signal is followed by silence until its last token has come out."""
    tokens = -(-len(audio) // SAMPLES_PER_TOKEN)
    padded = np.zeros(((tokens + 1) * SAMPLES_PER_TOKEN, audio.shape[1]), np.float32)
    padded[: len(audio)] = audio
    step = codec.encoder_stream()
    blocks = np.split(padded, tokens + 1)
    return np.concatenate([_example(step(codec.batch(block))) for block in blocks])[1:]


def _streamed_waveform(codec: OfficialCodec, codes: np.ndarray) -> np.ndarray:
    """`[1920 * tokens, channels]`: a zero embedding follows the last; the first block is the decoder's delay."""
    embeddings = jnp.pad(codec.dequantize(jnp.asarray(codes)[None]), ((0, 0), (0, 1), (0, 0)))
    step = codec.decoder_stream()
    blocks = [_example(step(embeddings[:, token : token + 1])) for token in range(embeddings.shape[1])]
    return np.concatenate(blocks)[SAMPLES_PER_TOKEN:]
