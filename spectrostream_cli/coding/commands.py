"""`encode`, `decode` and `repack`: the commands for coded files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from spectrostream.errors import UserError
from spectrostream_cli.coding.load_codec import chosen_levels, levels_of, load_codec, precision_note
from spectrostream_cli.coding.many_files import (
    Job,
    Outcome,
    Plan,
    is_finished,
    make_parent,
    planned,
    require_free,
    run_jobs,
)
from spectrostream_cli.command import (
    STANDARD_STREAM,
    Commands,
    add_codec_options,
    add_command,
    add_overwrite,
    add_rate,
)

if TYPE_CHECKING:
    from rich.console import Console

    from spectrostream.bitstream.files import StreamHeader
    from spectrostream_cli.coding.decode_file import Decoded
    from spectrostream_cli.coding.encode_file import Coded
    from spectrostream_cli.progress import AudioProgress

_CODED = ".sps"
_DECODED = ("wav", "flac", "aiff", "caf", "w64")
_ENCODE = """  spectrostream encode in.wav out.sps --weights runs/tiny --kbps 8
  spectrostream encode in.flac out.sps --weights runs/tiny/codec.safetensors --levels 16
  spectrostream encode /music coded --weights runs/tiny --entropy-coding
  spectrostream encode in.wav - --weights runs/tiny --kbps 8 > out.sps

Any format that libsndfile reads (WAV, FLAC, Ogg, MP3, ...). Mono is tiled to the codec's channels; other sample rates
are resampled to 48 kHz; any other number of channels is an error. A batch keeps the names below a folder; a file that
fails does not stop the rest. Run the same command again to resume: finished files are skipped."""
_DECODE = """  spectrostream decode in.sps out.wav --weights runs/tiny
  spectrostream decode coded decoded --weights runs/tiny --format flac
  spectrostream decode damaged.sps out.wav --weights runs/tiny --conceal
  cat in.sps | spectrostream decode - out.wav --weights runs/tiny

The audio has exactly the length that was encoded, in 24 bits. Batches work as in encode."""
_REPACK = """  spectrostream repack in.sps out.sps --kbps 4
  spectrostream repack in.sps out.sps --levels 16
  cat in.sps | spectrostream repack - - --kbps 4 > out.sps

Keeps the first levels of a coded file; needs no weights and decodes nothing."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add encode, decode and repack."""
    _add_encode(commands)
    _add_decode(commands)
    _add_repack(commands)


def _add_encode(commands: Commands[argparse.ArgumentParser]) -> None:
    encode = add_command(
        commands, "encode", _encode, "audio files to coded files", _ENCODE, stdout_is_data=_writes_to_stdout
    )
    _add_paths(encode, "audio files, or folders of them", "coded file (.sps), a folder, or - for the standard output")
    add_codec_options(encode)
    add_rate(encode)
    encode.add_argument(
        "--entropy-coding", action="store_true", help="smaller files with the same codes, a little slower"
    )
    add_overwrite(encode)


def _add_decode(commands: Commands[argparse.ArgumentParser]) -> None:
    decode = add_command(commands, "decode", _decode, "coded files to audio files", _DECODE)
    formats = ", ".join(f".{name}" for name in _DECODED)
    _add_paths(
        decode,
        "coded files (.sps), folders of them, or - for the standard input",
        f"audio file ({formats}), or a folder",
    )
    add_codec_options(decode)
    decode.add_argument("--format", choices=_DECODED, default="wav", help="of files in a folder (default: wav)")
    decode.add_argument("--conceal", action="store_true", help="decode around damage and say what was lost")
    add_overwrite(decode)


def _add_repack(commands: Commands[argparse.ArgumentParser]) -> None:
    repack = add_command(
        commands, "repack", _repack, "fewer levels of a coded file", _REPACK, stdout_is_data=_writes_to_stdout
    )
    repack.add_argument("input", help="coded file (.sps), or - for the standard input")
    repack.add_argument("output", help="coded file (.sps), or - for the standard output")
    add_rate(repack, default=None)
    repack.add_argument("--conceal", action="store_true", help="leave out damaged chunks")
    add_overwrite(repack)


def _add_paths(command: argparse.ArgumentParser, inputs: str, output: str) -> None:
    command.add_argument("inputs", nargs="+", metavar="INPUT", help=inputs)
    command.add_argument("output", metavar="OUTPUT", help=output)


def _writes_to_stdout(arguments: argparse.Namespace) -> bool:
    return str(arguments.output) == STANDARD_STREAM


def _encode(arguments: argparse.Namespace, console: Console) -> str:
    from datamodules.audio.files import probe
    from datamodules.audio.find_files import AUDIO_EXTENSIONS

    _require_files(arguments.inputs, "encode reads audio from files; for PCM on a pipe type: spectrostream stream")
    plan = _plan(arguments, AUDIO_EXTENSIONS, _CODED, (arguments.output,))
    loaded = load_codec(arguments)
    levels = chosen_levels(loaded.codec, arguments)
    from spectrostream_cli.coding.encode_file import Coded, FileEncoder

    encoder = FileEncoder(loaded, levels, entropy_coding=arguments.entropy_coding)
    progress = _progress(console, plan, lambda path: probe(path).duration_seconds)

    def work(job: Job) -> Coded | None:
        if _writes_to_stdout(arguments):
            return encoder.encode(job.source, sys.stdout.buffer, progress.advance)
        if not arguments.overwrite and is_finished(job, lambda target: encoder.has_made(job.source, target)):
            return None
        make_parent(job.target)
        return encoder.encode(job.source, job.target, progress.advance)

    outcome = run_jobs(plan, work, progress)
    notes = precision_note(arguments, "the codes were made")
    if arguments.entropy_coding and outcome.done:
        notes += f"; entropy coding saved {_saved(Coded.total(outcome.done))}"
    return outcome.last_line(_encoded_line(outcome, arguments.output, notes))


def _encoded_line(outcome: Outcome[Coded], output: str, notes: str) -> str:
    from spectrostream_cli.coding.encode_file import Coded

    total = Coded.total(outcome.done)
    if not outcome.done:
        return f"coded: nothing new in {_shown(output)}"
    return (
        f"coded: {_shown(output)} ({_files(outcome.done)}{total.file_bytes} bytes, {total.seconds:.2f} s, "
        f"{total.kbps:.2f} kbps with header{'s' * (len(outcome.done) > 1)}, "
        f"{_speed(total.seconds, outcome.seconds)}{notes})"
    )


def _saved(total: Coded) -> str:
    share = total.saved_bits / (total.file_bytes * 8 + total.saved_bits)
    return f"{total.saved_bits} bits ({share:.1%})"


def _decode(arguments: argparse.Namespace, console: Console) -> str:
    from spectrostream.bitstream.files import read_header

    plan = _decoding_plan(arguments)
    loaded = load_codec(arguments)
    from spectrostream_cli.coding.decode_file import FileDecoder

    decoder = FileDecoder(loaded, conceal=arguments.conceal)
    progress = _progress(console, plan, lambda path: read_header(path).samples / loaded.codec.sample_rate)

    def work(job: Job) -> Decoded | None:
        is_piped = str(job.source) == STANDARD_STREAM
        if is_piped:
            require_free(job.target, arguments)
        elif not arguments.overwrite and is_finished(job, lambda target: decoder.has_made(job.source, target)):
            return None
        make_parent(job.target)
        decoded = decoder.decode(sys.stdin.buffer if is_piped else job.source, job.target, progress.advance)
        if damage := decoded.damage():
            progress.say(f"{'the standard input' if is_piped else job.source}: concealed {damage}")
        return decoded

    outcome = run_jobs(plan, work, progress)
    return outcome.last_line(_decoded_line(outcome, arguments))


def _decoding_plan(arguments: argparse.Namespace) -> Plan:
    from datamodules.audio.blocks import require_writable

    _require_files([arguments.output], "decode writes audio to files; type a name such as out.wav, or a folder")
    plan = _plan(arguments, {_CODED}, f".{arguments.format}", arguments.inputs)
    for source, target in plan.jobs:
        require_writable(target)
        if not plan.is_batch and str(source) != STANDARD_STREAM and not source.is_file():
            raise UserError(f"there is no coded file {source}")
    return plan


def _decoded_line(outcome: Outcome[Decoded], arguments: argparse.Namespace) -> str:
    done = outcome.done
    if not done:
        return f"decoded: nothing new in {arguments.output}"
    notes = ""
    for count, what in (
        (sum(decoded.lost_frames for decoded in done), "frames lost and concealed"),
        (sum(decoded.is_truncated for decoded in done), "without an end"),
        (sum(decoded.clipped for decoded in done), "samples clipped"),
    ):
        notes += f"; {count} {what}" if count else ""
    notes += precision_note(arguments, "the audio was computed")
    seconds = sum(decoded.seconds for decoded in done)
    return f"decoded: {arguments.output} ({_files(done)}{seconds:.2f} s, {_speed(seconds, outcome.seconds)}{notes})"


def _repack(arguments: argparse.Namespace, console: Console) -> str:
    from spectrostream.bitstream.files import BitstreamError, repack
    from spectrostream.frontends import SAMPLES_PER_TOKEN

    target = _repack_target(arguments)
    name = "the standard input" if arguments.input == STANDARD_STREAM else arguments.input
    try:
        header, source = _repack_source(arguments.input)
        per_level = header.bits_per_index * header.sample_rate / SAMPLES_PER_TOKEN / 1000
        levels = levels_of(arguments, kbps_per_level=per_level, most=header.levels, holder=name)
        with console.status(f"repacking {name}"):
            made = repack(source, target, levels=levels, conceal=arguments.conceal)
    except BitstreamError as error:
        raise BitstreamError(f"{name}: {error}") from error
    return (
        f"repacked: {_shown(arguments.output)} ({made.levels} of {header.levels} levels, "
        f"{per_level * made.levels:g} of {per_level * header.levels:g} kbps, {made.samples / made.sample_rate:.2f} s)"
    )


def _repack_target(arguments: argparse.Namespace) -> Path | BinaryIO:
    if _writes_to_stdout(arguments):
        return sys.stdout.buffer
    target = Path(arguments.output)
    require_free(target, arguments)
    make_parent(target)
    return target


def _repack_source(name: str) -> tuple[StreamHeader, Path | BinaryIO]:
    if name == STANDARD_STREAM:
        from spectrostream_cli.coding.peek_header import peeked_header

        return peeked_header(sys.stdin.buffer)
    if not Path(name).is_file():
        raise UserError(f"there is no coded file {name}")
    from spectrostream.bitstream.files import BitstreamReader

    with BitstreamReader(name) as reader:
        return reader.header, Path(name)


def _require_files(names: Sequence[str], remedy: str) -> None:
    if STANDARD_STREAM in names:
        raise UserError(f"{STANDARD_STREAM} is not possible here: {remedy}")


def _plan(
    arguments: argparse.Namespace, extensions: frozenset[str] | set[str], target_extension: str, pipes: Sequence[str]
) -> Plan:
    """Plan the jobs; if `-` is among `pipes`, it means a standard stream, and there must be one file only."""
    if STANDARD_STREAM not in pipes:
        return planned(arguments.inputs, arguments.output, extensions=extensions, target_extension=target_extension)
    if len(arguments.inputs) > 1 or Path(arguments.inputs[0]).is_dir() or Path(arguments.output).is_dir():
        raise UserError("- is for one file; type one input file and one output file with it")
    return Plan([Job(Path(arguments.inputs[0]), Path(arguments.output))], is_batch=False)


def _progress(console: Console, plan: Plan, seconds: Callable[[Path], float]) -> AudioProgress:
    from spectrostream_cli.progress import AudioProgress

    # Reading the headers of thousands of files is worth its time for a bar, not for a line in a log.
    return AudioProgress(console, _total(plan, seconds) if console.is_terminal else None)


def _total(plan: Plan, seconds: Callable[[Path], float]) -> float | None:
    """Return the seconds of all readable files; the others are reported when they are coded."""
    total = 0.0
    for source, _ in plan.jobs:
        try:
            total += seconds(source)
        except (UserError, OSError):
            continue
    return total or None


def _shown(output: str) -> str:
    return "the standard output" if output == STANDARD_STREAM else output


def _files(done: Sequence[object]) -> str:
    return f"{len(done)} files, " if len(done) > 1 else ""


def _speed(audio_seconds: float, wall_seconds: float) -> str:
    return f"{audio_seconds / max(wall_seconds, 1e-9):.1f} times as fast as real time"
