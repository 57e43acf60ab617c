"""Encoding and decoding piece by piece: what a whole signal gives, in bounded memory and with bounded delay."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from spectrostream.frontends import SAMPLES_PER_TOKEN, FrontEnd
from spectrostream.quantizer import ResidualVectorQuantizer
from spectrostream.streaming import StreamState


class StreamableCodec(Protocol):
    """What a stream asks of its codec; `spectrostream.codec.SpectroStream` says what each of them is."""

    frames_per_token: int
    quantizer: ResidualVectorQuantizer

    @property
    def frontend(self) -> FrontEnd:
        """Its look-ahead."""

    @property
    def encoder(self) -> nn.Module:
        """Features and a `StreamState` to embeddings."""

    @property
    def decoder(self) -> nn.Module:
        """Embeddings and a `StreamState` to features."""

    @property
    def channels(self) -> int:
        """Audio channels."""

    def with_all_channels(self, audio: Tensor) -> Tensor:
        """Audio of the codec's channels, or ValueError."""

    def analysis(self, audio: Tensor) -> Tensor:
        """Audio to features."""

    def synthesis(self, features: Tensor, state: StreamState | None = None) -> Tensor:
        """Features to audio."""

    def require_codes(self, codes: Tensor) -> None:
        """ValueError unless they are this codec's codes."""

    def require_length(self, frames: int, length: int) -> None:
        """ValueError unless so many frames of codes stand for so many samples."""


def require_batch(given: int, streams: int) -> None:
    """Raises ValueError if a piece of so many streams cannot continue a batch of `streams`."""
    if given != streams:
        raise ValueError(f"a piece of {given} streams was given; allowed: pieces of the batch size {streams}")


class EncoderStream:
    """Audio in pieces of any length to codes; the pieces' codes side by side are those of the whole signal.

    A token comes out once its own 1920 samples and the front-end's look-ahead are there. A batch holds independent
    streams that start and end together.

    levels: as `SpectroStream.encode`'s.
    """

    def __init__(self, codec: StreamableCodec, levels: int | Tensor) -> None:
        self._codec = codec
        self._levels = levels
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next piece starts a new signal."""
        self._state = StreamState()
        self._pending: Tensor | None = None
        # Of the codebooks as they are when the signal starts: looked up for every token, and as large as they are.
        self._squared_norms: Tensor | None = None
        self.samples = 0

    @torch.no_grad()
    def push(self, audio: Tensor) -> Tensor:
        """The next piece `[batch, channels, samples]` to the codes that it completes, `[batch, levels, frames]`.

        Raises ValueError for another shape than `SpectroStream.encode` takes, or another batch than before.
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
        # A copy, so that a long piece is not held by its last samples.
        self._pending = pending[..., tokens * SAMPLES_PER_TOKEN :].clone()
        if tokens == 0:
            return self._no_codes(len(audio))
        frames = tokens * self._codec.frames_per_token
        features = self._codec.analysis(pending[..., : tokens * SAMPLES_PER_TOKEN + look_ahead])
        return self._codes(features[:, :, :frames])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The codes of what is left, `[batch, levels, 0..2]`; then as after `reset`."""
        pending = self._pending
        if pending is None:
            raise ValueError("nothing was encoded: push at least one piece of audio before finish")
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
    """Codes in pieces of any length to audio; the pieces side by side are the decoded whole.

    The decoder looks one token ahead, so the first token gives no audio yet.
    """

    def __init__(self, codec: StreamableCodec) -> None:
        self._codec = codec
        self.reset()

    def reset(self) -> None:
        """Forgets everything: the next piece starts a new signal."""
        self._state = StreamState()
        self._batch: int | None = None
        self.frames = 0

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """The next codes `[batch, levels, frames]` to the audio that they complete, `[batch, channels, samples]`.

        Their levels may change from piece to piece. Raises ValueError for codes that `SpectroStream.decode` refuses,
        or another batch than before.
        """
        self._codec.require_codes(codes)
        if self._batch is not None:
            require_batch(len(codes), self._batch)
        return self._audio(self._codec.quantizer.decode(codes))

    @torch.no_grad()
    def finish(self, length: int | None = None) -> Tensor:
        """The audio of the last token; then as after `reset`.

        length: samples of the whole signal, 1920 * (tokens - 1) + 1 .. 1920 * tokens (default: the highest).
        """
        if self._batch is None:
            raise ValueError("nothing was decoded: push at least one token before finish")
        length = SAMPLES_PER_TOKEN * self.frames if length is None else length
        self._codec.require_length(self.frames, length)
        given_out = SAMPLES_PER_TOKEN * (self.frames - 1)
        zero = self._codec.quantizer.decode(torch.zeros(self._batch, 0, 1, dtype=torch.int64))
        audio = self._audio(zero)[..., : length - given_out]
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
    """Both directions of one stream (or of a batch in lockstep), and the way through both.

        with codec.streaming(kbps=8.0) as stream:
            for block in blocks:              # [batch, channels, samples], for instance 1920 samples
                codes = stream.encode(block)  # [batch, levels, 0 or more frames]
                audio = stream.decode(codes)  # [batch, channels, 0 or more samples]
            last = stream.decode(stream.finish_encoding())
            end = stream.finish_decoding(length=samples)

    In blocks of 1920 samples the audio lags `codec.latency_samples` behind. A `with` block starts and ends with an
    empty state.
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
        """Both directions start anew."""
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
        """The next piece, encoded and decoded: what it completes, `[batch, channels, samples]`."""
        return self.decode(self.encode(audio))

    def finish(self) -> Tensor:
        """The rest of what went `through`, to the exact length."""
        length = self._encoder.samples
        codes = self._encoder.finish()
        rest = self._decoder.push(codes)
        return torch.cat((rest, self._decoder.finish(length)), dim=-1)
