"""Play a MIDI file: `python -m datamodules.free_corpora.tinysoundfont_player MIDI SOUNDFONT OUT.wav RATE GAIN_DB`.

It is a process of its own, so that a crash of the synthesizer ends one track only. TinySoundFont reads sf2 and sf3
(Vorbis) fonts and has no reverb and no chorus. Its own sequencer is not used: it rounds every step up to a whole
sample, which slows a song down, and it skips events whose time it just missed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from datamodules.free_corpora.contract import RecipeError
from datamodules.free_corpora.midi import ChannelEvent, Song, read_song

_DRUM_CHANNEL = 9
_MAX_VOICES = 512
# After the last event, audio is kept until it is below this, or for at most so many seconds.
_QUIET = 2.0**-15
_LONGEST_TAIL_SECONDS = 20.0
_BLOCK_SAMPLES = 24000


def play(song: Song, soundfont: Path, rate: int, gain_db: float) -> Iterator[np.ndarray]:
    """Play every event at its sample, and the tail.

    Yields:
        Blocks `[samples, 2]`, float32 at `rate` Hz, not clipped.

    Raises:
        RecipeError: The file is no soundfont.
    """
    synth = _Synth(soundfont, rate, gain_db)
    position = 0
    for event in song.events:
        start = round(event.seconds * rate)
        yield from synth.blocks(start - position)
        position = start
        synth.send(event)
    yield from synth.blocks(round(song.seconds * rate) - position)
    yield from _tail(synth, rate)


def _tail(synth: _Synth, rate: int) -> Iterator[np.ndarray]:
    for _ in range(round(_LONGEST_TAIL_SECONDS * rate / _BLOCK_SAMPLES)):
        (block,) = synth.blocks(_BLOCK_SAMPLES)
        yield block
        if np.abs(block).max() < _QUIET:
            return


class _Synth:
    """TinySoundFont, driven by channel events."""

    def __init__(self, soundfont: Path, rate: int, gain_db: float) -> None:
        # An optional dependency.
        import tinysoundfont

        self._synth = tinysoundfont.Synth(gain=gain_db, samplerate=rate)
        try:
            # Bytes, because sfload takes file names as text, and a file name may be no UTF-8.
            self._synth.sfload(soundfont.read_bytes(), max_voices=_MAX_VOICES)
        except OSError as error:
            raise RecipeError(f"the soundfont cannot be read: {error.strerror}") from error
        except Exception as error:  # the bindings raise what C++ throws
            raise RecipeError(f"the soundfont cannot be used: {error}") from error
        for channel in range(16):
            self._program(channel, 0)

    def blocks(self, samples: int) -> Iterator[np.ndarray]:
        """Render the next samples."""
        for start in range(0, samples, _BLOCK_SAMPLES):
            buffer = self._synth.generate_simple(min(_BLOCK_SAMPLES, samples - start))
            yield np.frombuffer(buffer, dtype=np.float32).reshape(-1, 2)

    def send(self, event: ChannelEvent) -> None:
        """Apply an event; this synthesizer ignores pressure on keys."""
        channel, data = event.channel, event.data
        if event.kind == 0x90 and data[1]:
            self._synth.noteon(channel, *data)
        elif event.kind in (0x80, 0x90):
            self._synth.noteoff(channel, data[0])
        elif event.kind == 0xB0:
            self._synth.control_change(channel, *data)
        elif event.kind == 0xC0:
            self._program(channel, data[0])
        elif event.kind == 0xE0:
            self._synth.pitchbend(channel, data[0] | data[1] << 7)

    def _program(self, channel: int, program: int) -> None:
        try:
            self._synth.program_change(channel, program, channel == _DRUM_CHANNEL)
        except RuntimeError:  # the font has no such instrument; the channel keeps its own
            return


def main(midi: str, soundfont: str, target: str, rate: str, gain_db: str) -> int:
    """Write a WAV file of 32-bit floats; return the exit code."""
    try:
        song = read_song(Path(midi).read_bytes())
        with soundfile.SoundFile(target, "w", int(rate), 2, "FLOAT", format="WAV") as file:
            for block in play(song, Path(soundfont), int(rate), float(gain_db)):
                file.write(block)
    except RecipeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
