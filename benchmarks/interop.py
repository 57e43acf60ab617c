"""Compares the codec at full size with the official JAX implementation.

    python -m benchmarks.interop --layouts released mono

The official code (in its own environment; `make interop` makes it) draws seeded weights and computes every part of the
codec on real music. Our codec gets the same weights, and each part gets the official code's inputs. The exit code is 1
if a limit is broken. The command writes parity.json and the official arrays, one NPZ of about 150-260 MB for each
layout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.official.audio_file import write_signal
from benchmarks.official.client import OfficialWorker
from benchmarks.official.layouts import LAYOUTS
from benchmarks.parity import Parity, compare_arrays, compare_codes
from datamodules.audio.files import read_audio
from spectrostream.atomic_files import write_whole
from spectrostream.codec import SpectroStream
from spectrostream.errors import UserError
from spectrostream.frontends import SAMPLES_PER_TOKEN
from spectrostream.weights import from_official

MUSIC = Path(__file__).resolve().parent.parent / "datamodules" / "demo_corpus" / "freedoom_e1m1.flac"
MUSIC_START_SECONDS = 2.0
SAMPLES = 191_777  # 4 s; an odd number, so that the last STFT hop and the last token are incomplete
FEWER_SAMPLES = 47_777  # 1 s, for all layouts but the released one
# float32 in another order of summation; the largest error of all parts and layouts was 2.0e-6 when this was chosen.
LIMIT = 1e-5
DEFAULT_LAYOUTS = ("released", "fusion-3", "fusion-0", "no-split", "mono")
SEED = 20260101


@dataclass(frozen=True)
class OfficialOutputs:
    """The official arrays of one layout by name, and our codec with the same weights."""

    arrays: dict[str, NDArray[Any]]
    codec: SpectroStream

    @classmethod
    def read(cls, path: Path) -> OfficialOutputs:
        """Read the NPZ of the worker; `tests/fixtures/README.md` lists its entries."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        params = {name.removeprefix("param/"): value for name, value in arrays.items() if name.startswith("param/")}
        return cls(arrays, from_official(params).eval())

    @property
    def audio(self) -> Tensor:
        """The input, `[1, channels, samples]`."""
        return torch.from_numpy(self.arrays["in/audio"]).T[None]

    def codes(self, levels: int | None = None) -> Tensor:
        """Return the official codes in our layout: int64 `[1, levels, tokens]`."""
        return torch.from_numpy(self.arrays["out/codes"]).long().T[None, :levels]

    def out(self, name: str) -> NDArray[Any]:
        """Return an official output, time first."""
        return self.arrays[f"out/{name}"]


@torch.no_grad()
def compare_outputs(official: OfficialOutputs) -> list[Parity]:
    """Compare every part on the official code's inputs; the codes also from the audio."""
    parts = (_encoder_parity, _decoder_parity, _streamed_parity, _inference_parity)
    return [parity for part in parts for parity in part(official)]


def _encoder_parity(official: OfficialOutputs) -> Iterator[Parity]:
    codec, audio = official.codec, official.audio
    yield compare_arrays("STFT", _time_first(codec.frontend.analysis(audio)), official.out("stft"), LIMIT)
    yield compare_arrays("embeddings", _time_first(codec.embed(audio)), official.out("embeddings"), LIMIT)
    embeddings = torch.from_numpy(official.out("embeddings")).T[None]
    codes = codec.quantizer.encode(embeddings, codec.levels)
    yield _code_parity("codes of the official embeddings", official, codes, same_embeddings=True)
    yield _code_parity("codes of the audio", official, codec.encode(audio), same_embeddings=False)


def _decoder_parity(official: OfficialOutputs) -> Iterator[Parity]:
    codec = official.codec
    dequantized = codec.quantizer.decode(official.codes())
    yield compare_arrays("dequantized", _time_first(dequantized), official.out("dequantized"), LIMIT)
    features = codec.decoder(dequantized)[..., codec.frames_per_token :, :]  # the look-ahead is cropped
    yield compare_arrays("decoder features", _time_first(features), official.out("decoder_features"), LIMIT)
    for name in sorted(official.arrays):
        if name.startswith("out/waveform_"):
            levels = int(name.rpartition("_")[2])
            waveform = _time_first(codec.decode(official.codes(levels)))
            yield compare_arrays(f"waveform from {levels} levels", waveform, official.arrays[name], LIMIT)


def _streamed_parity(official: OfficialOutputs) -> Iterator[Parity]:
    """Compare our result for the whole signal with the official stream."""
    if "out/streamed_codes" not in official.arrays:
        return
    codec = official.codec
    yield _code_parity(
        "codes, whole against streamed",
        official,
        codec.encode(official.audio),
        same_embeddings=False,
        expected=official.out("streamed_codes"),
    )
    waveform = _time_first(codec.decode(official.codes()))
    streamed = official.out("streamed_waveform")
    yield compare_arrays("waveform, whole against streamed", waveform, streamed, LIMIT)


def _inference_parity(official: OfficialOutputs) -> Iterator[Parity]:
    """Compare the codec for inference, in blocks, with the official result for the whole signal."""
    fast, blocks = official.codec.for_inference(), official.audio.split(SAMPLES_PER_TOKEN, dim=-1)
    yield compare_arrays(
        "embeddings, for inference", _time_first(fast.embed(official.audio)), official.out("embeddings"), LIMIT
    )
    stream = fast.streaming()
    codes = torch.cat([*(stream.encode(block) for block in blocks), stream.finish_encoding()], dim=-1)
    yield _code_parity("codes in blocks, for inference", official, codes, same_embeddings=False)
    audio = [stream.decode(token) for token in official.codes().split(1, dim=-1)]
    waveform = _time_first(torch.cat([*audio, stream.finish_decoding()], dim=-1))
    expected = official.out(f"waveform_{official.codec.levels}")
    yield compare_arrays("waveform in blocks, for inference", waveform, expected, LIMIT)


def _code_parity(
    name: str,
    official: OfficialOutputs,
    codes: Tensor,
    *,
    same_embeddings: bool,
    expected: NDArray[Any] | None = None,
) -> Parity:
    embeddings = official.out("embeddings")
    ours = embeddings if same_embeddings else _time_first(official.codec.embed(official.audio))
    return compare_codes(
        name,
        _time_first(codes),
        official.out("codes") if expected is None else expected,
        embeddings=embeddings,
        embedding_error=np.linalg.norm(ours - embeddings, axis=1),
        codebooks=official.arrays["param/quantizer/embedding"],
    )


def _time_first(value: Tensor) -> NDArray[Any]:
    """Permute `[1, features, time]` or `[1, features, time, bins]` to the official `[time, (bins,) features]`."""
    order = (1, 0) if value.ndim == 3 else (1, 2, 0)
    return value[0].permute(*order).contiguous().numpy()


def run_layout(worker: OfficialWorker, layout: str, folder: Path) -> list[Parity]:
    """Let the official code compute one layout, and compare."""
    channels = LAYOUTS[layout].channels
    samples = SAMPLES if layout == "released" else FEWER_SAMPLES
    audio = read_audio(MUSIC, start_seconds=MUSIC_START_SECONDS, duration_seconds=samples / 48000)[:channels]
    source, output = folder / f"{layout}.audio.npy", folder / f"{layout}.npz"
    write_signal(source, audio.T.numpy())
    worker.ask("parity", layout=layout, seed=SEED, audio=str(source), output=str(output), streamed=layout == "released")
    return compare_outputs(OfficialOutputs.read(output))


def table(layout: str, parities: list[Parity]) -> str:
    """Return the comparison of one layout as Markdown."""
    rows = [(*parity.cells(), "yes" if parity.passes else "**no**") for parity in parities]
    lines = [f"{layout}", "", "| part | ours against the official | limit | kept |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def main() -> int:
    """Print a table for each layout and a last line; return the exit code."""
    arguments = _arguments()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results: dict[str, list[Parity]] = {}
    try:
        with OfficialWorker.start(threads=arguments.threads) as worker:
            versions = worker.ask("versions")
            for layout in arguments.layouts:
                results[layout] = run_layout(worker, layout, folder)
                print(table(layout, results[layout]), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _write_records(folder / "parity.json", results, versions)
    print(last_line(results, versions, time.perf_counter() - start))
    return 0 if all(parity.passes for parities in results.values() for parity in parities) else 1


def last_line(results: dict[str, list[Parity]], versions: dict[str, Any], seconds: float) -> str:
    """Return the result of all comparisons in one line."""
    parities = [parity for rows in results.values() for parity in rows]
    broken = sum(not parity.passes for parity in parities)
    verdict = f"{broken} of {len(parities)} limits broken" if broken else f"all {len(parities)} limits kept"
    return (
        f"interop: {verdict} in {len(results)} layouts against magenta-rt {versions['magenta-rt']} "
        f"(jax {versions['jax']}); {seconds:.0f} s"
    )


def _write_records(path: Path, results: dict[str, list[Parity]], versions: dict[str, Any]) -> None:
    layouts = {layout: [parity.record() for parity in parities] for layout, parities in results.items()}
    document = {"versions": versions | {"torch": torch.__version__}, "seed": SEED, "layouts": layouts}
    # JSON has no NaN: an error that cannot be computed becomes null.
    write_whole(path, json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=DEFAULT_LAYOUTS, help="what to compare")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the official code")
    parser.add_argument("--out", type=Path, default=Path("runs/interop"), help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
