"""The command line: `spectrostream train | ablate | report | encode | decode | info`.

The front door alone may reach every room, and does so inside its commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from spectrostream.codec import SpectroStream

_EXAMPLES = {
    "train": """examples:
  spectrostream train config=tiny out=runs/tiny
  spectrostream train config=small data.root=/music out=runs/small training.max_steps=200000 trainer.devices=2
  spectrostream train config=tiny out=runs/fusion3 model.fusion=3

Started again with the same words, it goes on where it stopped.""",
    "ablate": """examples:
  spectrostream ablate study=demo out=runs/demo
  spectrostream ablate study=my_study.yaml data.root=/music out=runs/mine jobs=2

Finished runs are not repeated, interrupted ones go on, a failed one does not stop the rest.""",
    "report": """examples:
  spectrostream report study=demo out=runs/demo

Writes the report again from what lies in the folder.""",
    "encode": """examples:
  spectrostream encode in.wav out.sps --weights runs/tiny --kbps 8
  spectrostream encode in.flac out.sps --weights runs/tiny/codec.safetensors --levels 16

Mono is tiled to the codec's channels; other sample rates are resampled to 48 kHz.""",
    "decode": """examples:
  spectrostream decode in.sps out.wav --weights runs/tiny""",
    "info": """examples:
  spectrostream info out.sps
  spectrostream info runs/tiny
  spectrostream info music.flac""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for an explained mistake, 2 from argparse, 130 when interrupted."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    from rich.console import Console

    console = Console(stderr=False)
    try:
        last_line = parsed.run(parsed, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no permission, no space, a folder where a file should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; type the same command again to go on", file=sys.stderr)
        return 130
    console.print(last_line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spectrostream",
        description="Train, ablate and compare SpectroStream, a 48 kHz stereo neural audio codec.",
        epilog="`spectrostream COMMAND --help` has examples.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    words = "key=value words; dotted keys override the configuration, for instance training.max_steps=1000"
    for name, run, summary, usage in (
        ("train", _train, "train one codec", "config=NAME|FILE out=FOLDER [key=value ...]"),
        ("ablate", _ablate, "run a study and write its report", "study=NAME|FILE out=FOLDER [jobs=N] [key=value ...]"),
        ("report", _report, "write a study's report again", "study=NAME|FILE out=FOLDER [key=value ...]"),
    ):
        command = _command(commands, name, run, summary)
        command.usage = f"spectrostream {name} {usage}"
        command.add_argument("words", nargs="*", metavar="key=value", help=words)
    encode = _command(commands, "encode", _encode, "audio file to coded file")
    encode.add_argument("input", type=Path, help="WAV, FLAC, Ogg, MP3, ...")
    encode.add_argument("output", type=Path, help="coded file (.sps)")
    _add_weights(encode)
    rate = encode.add_mutually_exclusive_group()
    rate.add_argument("--kbps", type=float, help="rate of all channels together (default: the highest)")
    rate.add_argument("--levels", type=int, help="number of quantizer levels")
    decode = _command(commands, "decode", _decode, "coded file to audio file")
    decode.add_argument("input", type=Path, help="coded file (.sps)")
    decode.add_argument("output", type=Path, help="audio file: .wav (24 bit) or .flac")
    _add_weights(decode)
    info = _command(commands, "info", _info, "what a coded file, a run, weights or an audio file is")
    info.add_argument("path", type=Path)
    return parser


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", type=Path, required=True, help="codec.safetensors, or the folder of a run")


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace, Console], str],
    summary: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _train(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import train

    given, overrides = _split_words(arguments.words, required=("config", "out"))
    weights = train(given["config"], overrides, Path(given["out"]), console)
    return f"trained: {weights} (logs and checkpoints beside it)"


def _ablate(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import ablate

    given, overrides = _split_words(arguments.words, required=("study", "out"), optional=("jobs",))
    jobs = _positive("jobs", given["jobs"]) if "jobs" in given else None
    page, failed = ablate(given["study"], overrides, Path(given["out"]), jobs, console)
    if failed:
        raise UserError(f"{failed} runs failed and are marked so in {page}; run again to retry them")
    return f"report: {page}"


def _report(arguments: argparse.Namespace, console: Console) -> str:
    from ablations.commands import report

    given, overrides = _split_words(arguments.words, required=("study", "out"))
    return f"report: {report(given['study'], overrides, Path(given['out']), console)}"


def _encode(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.audio_files import read_audio
    from spectrostream.bitstream import Header, write_bitstream
    from spectrostream.weights import codec_fingerprint

    codec = _load(arguments.weights)
    levels = _levels(codec, arguments.kbps, arguments.levels)
    audio = read_audio(arguments.input, sample_rate=codec.sample_rate, channels=codec.channels)
    with console.status(f"encoding {arguments.input}"):
        codes = codec.encode(audio[None], levels=levels)[0]
    header = Header(
        configuration_hash=codec_fingerprint(codec),
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        samples=audio.shape[-1],
        levels=levels,
        bits_per_index=(codec.codebook_size - 1).bit_length(),
        frames=codes.shape[-1],
    )
    _make_parent(arguments.output)
    write_bitstream(arguments.output, header, codes)
    seconds = audio.shape[-1] / codec.sample_rate
    size = arguments.output.stat().st_size
    return (
        f"coded: {arguments.output} ({size} bytes, {seconds:.2f} s, {size * 8 / seconds / 1000:.2f} kbps with header)"
    )


def _decode(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.audio_files import write_audio
    from spectrostream.bitstream import BitstreamError, read_bitstream
    from spectrostream.weights import codec_fingerprint

    if not arguments.input.is_file():
        raise UserError(f"there is no coded file {arguments.input}")
    header, codes = read_bitstream(arguments.input)
    codec = _load(arguments.weights)
    if codec_fingerprint(codec) != header.configuration_hash:
        raise UserError(
            f"{arguments.input} was encoded by another codec than {arguments.weights}; "
            "give the weights it was encoded with"
        )
    if codes.numel() and int(codes.max()) >= codec.codebook_size:
        raise BitstreamError(f"{arguments.input} holds an index beyond the codebooks' {codec.codebook_size} entries")
    try:
        with console.status(f"decoding {arguments.input}"):
            audio = codec.decode(codes[None], length=header.samples)[0]
    except ValueError as error:  # frames and samples that contradict each other
        raise BitstreamError(f"{arguments.input}: {error}") from error
    _make_parent(arguments.output)
    clipped = write_audio(arguments.output, audio, header.sample_rate)
    note = f", {clipped} samples clipped" if clipped else ""
    return f"decoded: {arguments.output} ({header.samples / header.sample_rate:.2f} s{note})"


def _info(arguments: argparse.Namespace, console: Console) -> str:
    path: Path = arguments.path
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    if path.suffix == ".sps" and path.is_file():
        from spectrostream.bitstream import read_header

        header = read_header(path)
        seconds = header.samples / header.sample_rate
        kbps = header.levels * header.bits_per_index * header.frames / max(seconds, 1e-9) / 1000
        return (
            f"{path}: {seconds:.2f} s, {header.sample_rate} Hz, {header.channels} channels, {header.levels} levels x "
            f"{header.bits_per_index} bits x {header.frames} frames ({kbps:.2f} kbps), "
            f"codec {header.configuration_hash.hex()}"
        )
    if path.is_dir() or path.suffix == ".safetensors":
        from spectrostream.weights import codec_fingerprint, load_codec

        codec = load_codec(_weights_file(path))
        parameters = sum(parameter.numel() for parameter in codec.parameters())
        return f"{path}: {codec.config}\n{parameters:,} parameters, codec {codec_fingerprint(codec).hex()}"
    from datamodules.audio_files import probe

    audio = probe(path)
    return f"{path}: {audio.duration_seconds:.2f} s, {audio.sample_rate} Hz, {audio.channels} channels"


def _split_words(
    words: Sequence[str], *, required: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The command's own `key=value` words, and the overrides."""
    given: dict[str, str] = {}
    overrides = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in (*required, *optional):
            given[key] = value
        else:
            overrides.append(word)
    missing = [key for key in required if not given.get(key)]
    if missing:
        raise UserError(f"{' and '.join(f'{key}=..' for key in missing)} is missing; see --help for examples")
    return given, overrides


def _positive(key: str, value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"{key} = {value!r} is not possible; allowed: a whole number, 1 or more")
    return int(value)


def _weights_file(path: Path) -> Path:
    return path / "codec.safetensors" if path.is_dir() else path


def _load(path: Path) -> SpectroStream:
    from spectrostream.codec import SpectroStream
    from spectrostream.weights import load_codec

    codec = load_codec(_weights_file(path))
    if not isinstance(codec, SpectroStream):
        raise UserError(
            f"{path} holds a codec of kind {codec.config.kind!r}; coded files are written by SpectroStream only"
        )
    return codec


def _levels(codec: SpectroStream, kbps: float | None, levels: int | None) -> int:
    if kbps is not None:
        # Never above the rate asked for; what is no number chooses none.
        levels = int(kbps / codec.kbps(1) + 1e-9) if math.isfinite(kbps) else 0
    chosen = codec.levels if levels is None else levels
    if not 1 <= chosen <= codec.levels:
        raise UserError(
            f"{f'--kbps {kbps}' if kbps is not None else f'--levels {levels}'} is not possible with this codec; "
            f"allowed: --levels 1..{codec.levels} or --kbps {codec.kbps(1):g}..{codec.kbps(codec.levels):g}"
        )
    return chosen


def _make_parent(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; type the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} cannot be made: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder {path.parent} is not writable")


if __name__ == "__main__":
    sys.exit(main())
