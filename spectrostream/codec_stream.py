"""Encoding and decoding in chunks: the same result as for a whole signal, with bounded memory and bounded delay."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from spectrostream.frontends import SAMPLES_PER_TOKEN, FrontEnd
from spectrostream.quantizer import ResidualVectorQuantizer
from spectrostream.streaming import StreamState


class StreamableCodec(Protocol):
    """What a stream needs of its codec; `spectrostream.codec.SpectroStream` documents it."""

    frames_per_token: int
    quantizer: ResidualVectorQuantizer

    @property
    def frontend(self) -> FrontEnd:
        """The front-end."""

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which takes features and a `StreamState`."""

    @property
    def decoder(self) -> nn.Module:
        """The decoder, which takes embeddings and a `StreamState`."""

    @property
    def channels(self) -> int:
        """Audio channels."""

    def with_all_channels(self, audio: Tensor) -> Tensor:
        """See `SpectroStream.with_all_channels`."""

    def analysis(self, audio: Tensor) -> Tensor:
        """See `SpectroStream.analysis`."""

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """See `SpectroStream.synthesis`."""

    def require_codes(self, codes: Tensor) -> None:
        """See `SpectroStream.require_codes`."""

    def require_length(self, frames: int, length: int) -> None:
        """See `SpectroStream.require_length`."""


def require_batch(given: int, batch_size: int) -> None:
    """Check the batch size of a chunk.

    Raises:
        ValueError: It differs from that of the stream.
    """
    if given != batch_size:
        raise ValueError(f"a chunk with batch size {given} was given; allowed: {batch_size}, as the stream has")


class EncoderStream:
    """An encoder for audio in chunks of any length; the concatenated codes are those of the whole signal.

    A token is returned when its own 1920 samples and the front-end's look-ahead have arrived. A batch holds independent
    streams that start and end together.

    Args:
        codec: The codec.
        levels: See `SpectroStream.encode`.

    Attributes:
        samples: Samples that have arrived.
    """

    def __init__(self, codec: StreamableCodec, levels: int | Tensor) -> None:
        self._codec = codec
        self._levels = levels
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next chunk starts a new signal."""
        self._state = StreamState()
        self._pending: Tensor | None = None
        # Computed once per signal, because short chunks would spend much of their time on it.
        self._squared_norms: Tensor | None = None
        self.samples = 0

    @torch.no_grad()
    def push(self, audio: Tensor) -> Tensor:
        """Encode the next chunk.

        Args:
            audio: `[batch, channels, samples]`.

        Returns:
            The codes that the chunk completes, `[batch, levels, frames]`.

        Raises:
            ValueError: `SpectroStream.encode` does not accept the audio, or its batch size differs from before.
        """
        audio = self._codec.with_all_channels(audio)
        if isinstance(self._levels, Tensor) and len(self._levels) != len(audio):
            raise ValueError(f"levels are given for {len(self._levels)} examples; the audio has {len(audio)}")
        pending = audio
        if self._pending is not None:
            require_batch(len(audio), len(self._pending))
            pending = torch.cat((self._pending, audio), dim=-1)
        self.samples += audio.shape[-1]
        look_ahead = self._codec.frontend.look_ahead
        tokens = max(pending.shape[-1] - look_ahead, 0) // SAMPLES_PER_TOKEN
        # A copy, so that the last samples do not keep the whole chunk in memory.
        self._pending = pending[..., tokens * SAMPLES_PER_TOKEN :].clone()
        if tokens == 0:
            return self._no_codes(len(audio))
        frames = tokens * self._codec.frames_per_token
        features = self._codec.analysis(pending[..., : tokens * SAMPLES_PER_TOKEN + look_ahead])
        return self._codes(features[:, :, :frames])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Return the codes of the remaining samples, `[batch, levels, 0..2]`, and reset the stream.

        Raises:
            ValueError: No audio has arrived.
        """
        pending = self._pending
        if pending is None:
            raise ValueError("nothing was encoded: push at least one chunk of audio before finish")
        codes = self._codes(self._codec.analysis(pending)) if pending.shape[-1] else self._no_codes(len(pending))
        self.reset()
        return codes

    def _codes(self, features: Tensor) -> Tensor:
        if self._squared_norms is None:
            self._squared_norms = self._codec.quantizer.squared_norms()
        embeddings = self._codec.encoder(features, self._state)
        return self._codec.quantizer.encode(embeddings, self._levels, self._squared_norms)

    def _no_codes(self, batch: int) -> Tensor:
        levels = self._levels if isinstance(self._levels, int) else int(self._levels.max())
        return torch.zeros(batch, levels, 0, dtype=torch.int64, device=self._codec.quantizer.codebooks.device)


class DecoderStream:
    """A decoder for codes in chunks of any length; the concatenated audio is that of the whole signal.

    The decoder looks one token ahead, so the first token gives no audio yet.

    Attributes:
        frames: Frames of codes that have arrived.
    """

    def __init__(self, codec: StreamableCodec) -> None:
        self._codec = codec
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next chunk starts a new signal."""
        self._state = StreamState()
        self._batch: int | None = None
        self.frames = 0

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """Decode the next chunk.

        Args:
            codes: `[batch, levels, frames]`; the number of levels may change from chunk to chunk.

        Returns:
            The audio that the chunk completes, `[batch, channels, samples]`.

        Raises:
            ValueError: `SpectroStream.decode` does not accept the codes, or their batch size differs from before.
        """
        self._codec.require_codes(codes)
        if self._batch is not None:
            require_batch(len(codes), self._batch)
        return self._audio(self._codec.quantizer.decode(codes))

    @torch.no_grad()
    def finish(self, length: int | None = None) -> Tensor:
        """Return the audio of the last token, and reset the stream.

        Args:
            length: Samples of the whole signal, 1920 * (frames - 1) + 1 .. 1920 * frames (default: the highest).

        Raises:
            ValueError: No codes have arrived, or the length does not fit them.
        """
        if self._batch is None:
            raise ValueError("nothing was decoded: push at least one token before finish")
        length = SAMPLES_PER_TOKEN * self.frames if length is None else length
        self._codec.require_length(self.frames, length)
        returned = SAMPLES_PER_TOKEN * (self.frames - 1)
        zero = self._codec.quantizer.decode(torch.zeros(self._batch, 0, 1, dtype=torch.int64))
        audio = self._audio(zero)[..., : length - returned]
        self.reset()
        return audio

    def _audio(self, embeddings: Tensor) -> Tensor:
        batch, _, tokens = embeddings.shape
        is_first = self._batch is None
        if tokens == 0:
            return embeddings.new_zeros(batch, self._codec.channels, 0)
        self._batch = batch
        self.frames += tokens
        features = self._codec.decoder(embeddings, self._state)
        if is_first:
            features = features[:, :, self._codec.frames_per_token :]
        if features.shape[2] == 0:
            return embeddings.new_zeros(batch, self._codec.channels, 0)
        return self._codec.synthesis(features, self._state)


class CodecStream:
    """An encoder and a decoder for one stream, or for a batch of streams in lockstep.

        with codec.streaming(kbps=8.0) as stream:
            for block in blocks:              # [batch, channels, samples], for instance 1920 samples
                codes = stream.encode(block)  # [batch, levels, 0 or more frames]
                audio = stream.decode(codes)  # [batch, channels, 0 or more samples]
            last = stream.decode(stream.finish_encoding())
            end = stream.finish_decoding(length=samples)

    With blocks of 1920 samples, the audio is `codec.latency_samples` late. A `with` block starts and ends with an empty
    state.

    Args:
        codec: The codec.
        levels: See `SpectroStream.encode`.
        batch_size: Number of streams.

    Raises:
        ValueError: The batch size is below 1.
    """

    def __init__(self, codec: StreamableCodec, levels: int | Tensor, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} is not possible; allowed: 1 or more")
        self.batch_size = batch_size
        self._encoder = EncoderStream(codec, levels)
        self._decoder = DecoderStream(codec)

    def __enter__(self) -> CodecStream:
        self.reset()
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next chunks start a new signal."""
        self._encoder.reset()
        self._decoder.reset()

    def encode(self, audio: Tensor) -> Tensor:
        """See `EncoderStream.push`."""
        require_batch(len(audio), self.batch_size)
        return self._encoder.push(audio)

    def decode(self, codes: Tensor) -> Tensor:
        """See `DecoderStream.push`."""
        require_batch(len(codes), self.batch_size)
        return self._decoder.push(codes)

    def finish_encoding(self) -> Tensor:
        """See `EncoderStream.finish`."""
        return self._encoder.finish()

    def finish_decoding(self, length: int | None = None) -> Tensor:
        """See `DecoderStream.finish`."""
        return self._decoder.finish(length)

    def through(self, audio: Tensor) -> Tensor:
        """Encode and decode the next chunk; return the audio that it completes, `[batch, channels, samples]`."""
        return self.decode(self.encode(audio))

    def finish(self) -> Tensor:
        """Return the rest of the audio that `through` has not returned, to the exact length, and reset both streams."""
        length = self._encoder.samples
        codes = self._encoder.finish()
        rest = self._decoder.push(codes)
        return torch.cat((rest, self._decoder.finish(length)), dim=-1)
