"""What computing in bfloat16 costs in quality: float32 and bfloat16 of one codec on the same music.

    python -m benchmarks.precision_cost --weights runs/tiny --levels 43

Without weights: the released layout with random ones, of which only embeddings and decoded embeddings can be compared.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from datamodules.audio_files import read_audio
from datamodules.corpus import demo_corpus_root
from reports.visqol_scores import StereoVisqol, VisqolPool
from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig

EXCERPT_SECONDS = 5.0
START_SECONDS = 8.0


def main() -> None:
    """Prints one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="as for SpectroStream.from_pretrained")
    parser.add_argument("--levels", type=int, help="of the codes; default: all")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    codec = (
        SpectroStream.from_pretrained(arguments.weights) if arguments.weights else SpectroStream(SpectroStreamConfig())
    )
    float32, bfloat16 = codec.for_inference(), codec.for_inference(precision="bfloat16")
    files = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))
    music = torch.stack(
        [read_audio(path, start_seconds=START_SECONDS, duration_seconds=EXCERPT_SECONDS) for path in files]
    )
    embeddings = float32.embed(music)
    print(f"{len(files)} excerpts of {EXCERPT_SECONDS:g} s; bfloat16 against float32")
    print(f"embeddings: SNR {snr(embeddings, bfloat16.embed(music)):.1f} dB")
    decoded = [one.synthesize(embeddings, music.shape[-1]) for one in (float32, bfloat16)]
    print(f"decoded embeddings: SNR {snr(*decoded):.1f} dB")
    if arguments.weights:
        compare_codes(float32, bfloat16, music, arguments.levels)


def compare_codes(float32: SpectroStream, bfloat16: SpectroStream, music: Tensor, levels: int | None) -> None:
    """Share of equal codes, and ViSQOL of both ways through."""
    codes = [codec.encode(music, levels=levels) for codec in (float32, bfloat16)]
    first = (codes[0][:, 0] == codes[1][:, 0]).float().mean()
    print(f"equal codes: {(codes[0] == codes[1]).float().mean():.1%} ({first:.1%} in the first level)")
    scores = [
        visqol(music, codec.decode(own, length=music.shape[-1]))
        for codec, own in zip((float32, bfloat16), codes, strict=True)
    ]
    print("ViSQOL (left and right): " + ", ".join(f"{score:.3f}" for score in scores) + " (float32, bfloat16)")


def snr(expected: Tensor, actual: Tensor) -> float:
    """In decibels."""
    return float(10 * (expected.square().sum() / (expected - actual).square().sum()).log10())


def visqol(references: Tensor, estimates: Tensor) -> float:
    """Mean over the excerpts that could be scored."""
    with VisqolPool(1) as pool:
        pending = [
            pool.submit_stereo(str(index), reference.numpy(), estimate.numpy())
            for index, (reference, estimate) in enumerate(zip(references, estimates, strict=True))
        ]
        results: list[StereoVisqol] = [one.result() for one in pending]
    values = [result.lr.value for result in results if not result.lr.reason]
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
