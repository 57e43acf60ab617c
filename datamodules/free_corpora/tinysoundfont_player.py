"""Plays a MIDI file: `python -m datamodules.free_corpora.tinysoundfont_player MIDI SOUNDFONT OUT.wav RATE GAIN_DB`.

A process of its own, as fluidsynth is one, so that a soundfont which makes the synthesizer crash ends one piece only.
TinySoundFont reads sf2 and sf3 (Vorbis) fonts; it has no reverb and no chorus. Its own sequencer is not used: it rounds
every step up to a whole sample, so that a song slows down, and passes over events whose time it just missed.
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
# As long as what rings on after the last event is above this, and no longer than so many seconds.
_QUIET = 2.0**-15
_LONGEST_TAIL_SECONDS = 20.0
_BLOCK_SAMPLES = 24000


def play(song: Song, soundfont: Path, rate: int, gain_db: float) -> Iterator[np.ndarray]:
    """Blocks `[samples, 2]` float32 at `rate` Hz, not clipped; every event at its sample, and the tail.

    Raises RecipeError: not a soundfont.
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
        # For playing aloud the package wants another one that needs a compiler; nothing is played aloud here.
        import tinysoundfont

        self._synth = tinysoundfont.Synth(gain=gain_db, samplerate=rate)
        try:
            # Bytes, because it takes names as text only, and a name on a POSIX disk need not be UTF-8.
            self._synth.sfload(soundfont.read_bytes(), max_voices=_MAX_VOICES)
        except OSError as error:
            raise RecipeError(f"the soundfont cannot be read: {error.strerror}") from error
        except Exception as error:  # the bindings raise what C++ throws
            raise RecipeError(f"the soundfont cannot be used: {error}") from error
        for channel in range(16):
            self._program(channel, 0)

    def blocks(self, samples: int) -> Iterator[np.ndarray]:
        """The next samples."""
        for start in range(0, samples, _BLOCK_SAMPLES):
            buffer = self._synth.generate_simple(min(_BLOCK_SAMPLES, samples - start))
            yield np.frombuffer(buffer, dtype=np.float32).reshape(-1, 2)

    def send(self, event: ChannelEvent) -> None:
        """From now on. Pressure on keys has no meaning to this synthesizer."""
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
        except RuntimeError:  # the font has no such instrument; the channel keeps the one it has
            return


def main(midi: str, soundfont: str, target: str, rate: str, gain_db: str) -> int:
    """Writes a WAV file of 32-bit floats; returns the exit code."""
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
