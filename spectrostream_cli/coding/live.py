"""`stream`: encode and decode audio block by block, as a live connection does."""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from spectrostream_cli.coding.load_codec import chosen_levels, load_codec, precision_note
from spectrostream_cli.coding.many_files import make_parent, require_free
from spectrostream_cli.command import STANDARD_STREAM, Commands, add_codec_options, add_command, add_overwrite, add_rate

if TYPE_CHECKING:
    from rich.console import Console

    from spectrostream.codec import SpectroStream
    from spectrostream_cli.coding.pcm import BlockSink, BlockSource

FORMATS = ("s16le", "f32le")
_WARM_UP_BLOCKS = 4
_EXAMPLES = """  spectrostream stream --weights runs/tiny --kbps 8 < in.pcm > out.pcm
  spectrostream stream in.wav out.wav --weights runs/tiny --kbps 8
  spectrostream stream in.wav - --weights runs/tiny | aplay -f S16_LE -c 2 -r 48000
  arecord -f S16_LE -c 2 -r 48000 | spectrostream stream - out.flac --weights runs/tiny

Each block of 1920 samples (40 ms) is encoded and decoded when it arrives, and its audio is written at once. The output
is as long as the input. - means raw interleaved PCM at 48 kHz with the codec's channels, see --format. A file is read
in real time, or as fast as possible with --no-pacing. A block is late if its audio is not written within 40 ms."""


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add stream."""
    stream = add_command(
        commands,
        "stream",
        _stream,
        "audio through the codec, block by block, in real time",
        _EXAMPLES,
        stdout_is_data=lambda arguments: bool(arguments.output == STANDARD_STREAM),
        when_stopped="stopped",
    )
    stream.add_argument("input", nargs="?", default=STANDARD_STREAM, help="audio file, or - for PCM (default)")
    stream.add_argument("output", nargs="?", default=STANDARD_STREAM, help="audio file, or - for PCM (default)")
    add_codec_options(stream)
    add_rate(stream)
    stream.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the PCM (default: s16le)")
    stream.add_argument("--no-pacing", action="store_true", help="read a file as fast as possible")
    add_overwrite(stream)


def _stream(arguments: argparse.Namespace, console: Console) -> str:
    _prepare_output(arguments)
    from spectrostream_cli.coding.pcm import open_sink, open_source

    loaded = load_codec(arguments)
    codec = loaded.codec
    levels = chosen_levels(codec, arguments)
    layout = {"sample_rate": codec.sample_rate, "channels": codec.channels}
    is_paced = arguments.input != STANDARD_STREAM and not arguments.no_pacing
    _warm_up(codec, levels)
    clock = BlockClock(_block_seconds(codec), is_paced=is_paced)
    with (
        open_source(arguments.input, sys.stdin.buffer, arguments.format, **layout) as source,
        open_sink(arguments.output, sys.stdout.buffer, arguments.format, **layout) as sink,
    ):
        try:
            samples = _through(codec, levels, source, sink, clock)
        except (KeyboardInterrupt, BrokenPipeError):
            console.print(clock.summary(), highlight=False, soft_wrap=True)
            raise
    return (
        f"streamed: {_shown(arguments.output)} ({samples / codec.sample_rate:.2f} s at {codec.kbps(levels):g} kbps, "
        f"{clock.summary()}, latency {1000 * codec.latency_samples / codec.sample_rate:.0f} ms (algorithmic)"
        f"{f'; {sink.clipped} samples clipped' if sink.clipped else ''}{precision_note(arguments, 'computed')})"
    )


def _prepare_output(arguments: argparse.Namespace) -> None:
    if arguments.output == STANDARD_STREAM:
        return
    from datamodules.audio.blocks import require_writable

    target = Path(arguments.output)
    require_writable(target)
    require_free(target, arguments)
    make_parent(target)


def _through(codec: SpectroStream, levels: int, source: BlockSource, sink: BlockSink, clock: BlockClock) -> int:
    """Encode and decode all blocks; return the number of samples."""
    from spectrostream.frontends import SAMPLES_PER_TOKEN

    samples = 0
    with codec.streaming(levels=levels) as stream:
        for block in source.blocks(SAMPLES_PER_TOKEN):
            clock.block_arrives()
            sink.write(stream.through(block[None])[0])
            clock.block_is_out()
            samples += block.shape[-1]
        sink.write(stream.finish()[0])
    source.require_whole()
    sink.close()
    return samples


def _warm_up(codec: SpectroStream, levels: int) -> None:
    """Run a few blocks of silence first: the first blocks are slow (memory, compilation) and would be late."""
    import torch

    from spectrostream.frontends import SAMPLES_PER_TOKEN

    with codec.streaming(levels=levels) as stream:
        for _ in range(_WARM_UP_BLOCKS):
            stream.through(torch.zeros(1, codec.channels, SAMPLES_PER_TOKEN))


def _block_seconds(codec: SpectroStream) -> float:
    from spectrostream.frontends import SAMPLES_PER_TOKEN

    return SAMPLES_PER_TOKEN / codec.sample_rate


class BlockClock:
    """Measures when blocks arrive, how long each step takes, and how many blocks are late.

    Args:
        block_seconds: Length of a block.
        is_paced: Block n arrives (n + 1) block lengths after the start; otherwise when it was read.

    Attributes:
        late: Number of late blocks.
    """

    def __init__(self, block_seconds: float, *, is_paced: bool) -> None:
        self._block_seconds = block_seconds
        self._is_paced = is_paced
        self._start: float | None = None
        self._arrival = 0.0
        self._began = 0.0
        self._steps = array("d")
        self.late = 0

    def block_arrives(self) -> None:
        """Begin a step; if the clock is paced, wait for the block's time first."""
        now = time.perf_counter()
        if self._start is None:
            self._start = now
        self._arrival = now
        if self._is_paced:
            self._arrival = self._start + (len(self._steps) + 1) * self._block_seconds
            time.sleep(max(self._arrival - now, 0))
        self._began = time.perf_counter()

    def block_is_out(self) -> None:
        """End the step."""
        now = time.perf_counter()
        self._steps.append(now - self._began)
        self.late += now > self._arrival + self._block_seconds

    def summary(self) -> str:
        """Return the numbers of blocks and of late blocks, and the step times, in words."""
        steps = sorted(self._steps) or [0.0]
        median, high = (1000 * steps[int(share * (len(steps) - 1))] for share in (0.5, 0.99))
        return (
            f"{len(self._steps)} blocks, step median {median:.1f} ms, 99th percentile {high:.1f} ms, "
            f"{self.late} late blocks"
        )


def _shown(output: str) -> str:
    return "the standard output" if output == STANDARD_STREAM else output
