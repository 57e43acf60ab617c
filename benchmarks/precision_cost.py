"""Measures the loss of quality in bfloat16 and int8: each against float32, with one codec on the same music.

    python -m benchmarks.precision_cost --weights runs/tiny --levels 43

Without weights the codec is the released layout with random weights. Then only embeddings and decoded embeddings can be
compared.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from datamodules.audio.files import read_audio
from datamodules.corpora.folder_corpus import demo_corpus_root
from reports.metrics.visqol import StereoVisqol, VisqolPool
from spectrostream.codec import SpectroStream
from spectrostream.codec_config import SpectroStreamConfig

SEGMENT_SECONDS = 5.0
START_SECONDS = 8.0
PRECISIONS = ("bfloat16", "int8")
BANDS = ((0, 1000), (1000, 4000), (4000, 10000), (10000, 20000))  # Hz
SAMPLE_RATE = SpectroStream.sample_rate


def main() -> None:
    """Print one line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="as for SpectroStream.from_pretrained")
    parser.add_argument("--levels", type=int, help="of the codes; default: all")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    codec = (
        SpectroStream.from_pretrained(arguments.weights) if arguments.weights else SpectroStream(SpectroStreamConfig())
    )
    float32 = codec.for_inference()
    files = sorted(path for path in demo_corpus_root().iterdir() if path.suffix in (".flac", ".ogg"))
    music = torch.stack(
        [read_audio(path, start_seconds=START_SECONDS, duration_seconds=SEGMENT_SECONDS) for path in files]
    )
    print(f"{len(files)} segments of {SEGMENT_SECONDS:g} s; against float32")
    for precision in PRECISIONS:
        other = codec.for_inference(precision=precision)
        print(f"{precision}:")
        compare_signals(float32, other, music)
        if arguments.weights:
            compare_codes(float32, other, music, arguments.levels)
    if arguments.weights:
        print(f"float32: ViSQOL (left and right) {through(float32, music, arguments.levels):.3f}")


def compare_signals(float32: SpectroStream, other: SpectroStream, music: Tensor) -> None:
    """Print the SNR of the embeddings, and of the audio decoded from float32's embeddings, whole and in bands."""
    embeddings = float32.embed(music)
    print(f"  embeddings: SNR {snr(embeddings, other.embed(music)):.1f} dB")
    expected, actual = (one.synthesize(embeddings, music.shape[-1]) for one in (float32, other))
    bands = ", ".join(
        f"{low / 1000:g}..{high / 1000:g} kHz {band_snr(expected, actual, low, high):.0f}" for low, high in BANDS
    )
    print(f"  decoded embeddings: SNR {snr(expected, actual):.1f} dB ({bands})")


def compare_codes(float32: SpectroStream, other: SpectroStream, music: Tensor, levels: int | None) -> None:
    """Print the share of equal codes, and the ViSQOL of the other precision."""
    expected, actual = (codec.encode(music, levels=levels) for codec in (float32, other))
    first = (expected[:, 0] == actual[:, 0]).float().mean()
    print(f"  equal codes: {(expected == actual).float().mean():.1%} ({first:.1%} in the first level)")
    print(f"  ViSQOL (left and right) {through(other, music, levels):.3f}")


def through(codec: SpectroStream, music: Tensor, levels: int | None) -> float:
    """Return the ViSQOL of the music, encoded and decoded."""
    return visqol(music, codec.decode(codec.encode(music, levels=levels), length=music.shape[-1]))


def band_snr(expected: Tensor, actual: Tensor, low: float, high: float) -> float:
    """Return the SNR in dB between two frequencies in Hz."""
    spectra = (torch.fft.rfft(signal) for signal in (expected, actual))
    bins = [round(edge * 2 / SAMPLE_RATE * (expected.shape[-1] // 2)) for edge in (low, high)]
    return snr(*(torch.view_as_real(spectrum[..., bins[0] : bins[1]]) for spectrum in spectra))


def snr(expected: Tensor, actual: Tensor) -> float:
    """Return the signal-to-noise ratio in dB."""
    return float(10 * (expected.square().sum() / (expected - actual).square().sum()).log10())


def visqol(references: Tensor, estimates: Tensor) -> float:
    """Return the mean of ViSQOL-LR over the segments that have a score."""
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
