"""Entropy coding of indices with one fixed frequency table per level (Duda 2013, arXiv:1311.2540; with words put out as
in Giesen 2014, arXiv:1402.3392).

A range asymmetric numeral system keeps a state x of 16 to 32 bits. An index with frequency f of 2^scale, whose slots
begin at c, turns x into ((x // f) << scale) + c + x % f, which adds log2(2^scale / f) bits to it; the low 16 bits are
put out whenever x would outgrow 32 bits. Decoding undoes these steps in the opposite order, so the encoder begins with
the last index and the decoder with the first.

A table is half a byte per codebook entry: 0 for "hardly ever", k = 1..15 for a weight of 2^(k/2). From these the
frequencies follow in whole numbers, each at least 1, so every table is valid, every index can be coded, and all
machines agree. That a half octave is coarse costs about 0.007 bits per index.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# round(64 * 2^((k - 1) / 2)) for k = 1..15, written out because the format must not depend on anybody's rounding.
_WEIGHTS = np.array([0, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192], dtype=np.int64)
_EQUAL = 1  # the step that all entries of a level without a table have
_LOWEST = 1 << 16  # a state is never below it between two indices
_WORD_BITS = 16
_WORD_MASK = 0xFFFF
_STATE_BITS = 32
_STATE_BYTES = 4
_CODEBOOK_SIZES = tuple(1 << bits for bits in range(1, 17))


class FrequencyTables:
    """How often each entry of each level is expected.

    steps: uint8 `[levels, entries]`, 0..15 (see above); entries is a power of two, 2..65536. A level whose steps are
        all 1 is flat and costs one bit in the file instead of half a byte per entry.
    ValueError for anything else.
    """

    def __init__(self, steps: NDArray[np.uint8]) -> None:
        levels, entries = steps.shape
        if steps.dtype != np.uint8 or steps.max() > 15 or entries not in _CODEBOOK_SIZES:
            raise ValueError(
                f"steps are {steps.dtype} {list(steps.shape)}; expected uint8 0..15, 2^n entries per level (n = 1..16)"
            )
        self.steps = steps
        self.levels = levels
        self.bits_per_index = entries.bit_length() - 1
        self._scale = min(_WORD_BITS, self.bits_per_index + 4)
        slots = 1 << self._scale
        starts = _first_slots(steps, slots)  # [levels, entries + 1]
        self._starts = starts[:, :-1].astype(np.uint32)
        self._frequencies = np.diff(starts, axis=1).astype(np.uint32)

    @classmethod
    def fit(cls, codes: Tensor, bits_per_index: int) -> FrequencyTables:
        """Tables for codes int64 `[levels, frames]`; a level gets one only where it saves more bits than it costs.

        Frames of -1 (lost) are not counted.
        """
        entries = 1 << bits_per_index
        steps = np.full((len(codes), entries), _EQUAL, np.uint8)
        for level, indices in enumerate(codes.cpu().numpy()):
            counts = np.bincount(indices[indices >= 0], minlength=entries)
            if len(counts) > entries:
                raise ValueError(f"codes[{level}] reach {indices.max()}; allowed: 0..{entries - 1}")
            candidate = _steps_of(counts)
            if _ideal_bits(counts, candidate) + 4 * entries < counts.sum() * bits_per_index:
                steps[level] = candidate
        return cls(steps)

    def first(self, levels: int) -> FrequencyTables:
        """The tables of the first levels alone."""
        return FrequencyTables(self.steps[:levels])

    def to_bytes(self) -> bytes:
        """One bit per level (has it a table?), to whole bytes, then two entries per byte, low half first."""
        is_explicit = (self.steps != _EQUAL).any(axis=1)
        pairs = self.steps[is_explicit].reshape(-1, 2)
        return np.packbits(is_explicit, bitorder="little").tobytes() + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()

    @staticmethod
    def flag_bytes(levels: int) -> int:
        """Bytes of the flags that begin `to_bytes`."""
        return -(-levels // 8)

    @staticmethod
    def step_bytes(flags: bytes, levels: int, bits_per_index: int) -> int:
        """Bytes that follow these flags."""
        return int(_explicit_levels(flags, levels).sum()) << (bits_per_index - 1)

    @classmethod
    def from_bytes(cls, flags: bytes, pairs: bytes, levels: int, bits_per_index: int) -> FrequencyTables:
        """The tables from both parts of `to_bytes`; their lengths must be as the two functions above say."""
        is_explicit = _explicit_levels(flags, levels)
        steps = np.full((levels, 1 << bits_per_index), _EQUAL, np.uint8)
        halves = np.frombuffer(pairs, np.uint8)
        both = np.stack([halves & 15, halves >> 4], axis=1)
        steps[is_explicit] = both.reshape(int(is_explicit.sum()), 1 << bits_per_index)
        return cls(steps)

    def encode(self, indices: NDArray[np.int32]) -> bytes:
        """Indices `[frames, levels]` to bytes: the last state u32, then words u16 in the order they are read."""
        levels = np.arange(self.levels)
        frequencies = self._frequencies[levels, indices].reshape(-1)[::-1].tolist()
        starts = self._starts[levels, indices].reshape(-1)[::-1].tolist()
        scale, headroom = self._scale, _STATE_BITS - self._scale
        state = _LOWEST
        words = array("H")
        # Plain integers: numpy would need thousands of states at once to be faster than this.
        for frequency, start in zip(frequencies, starts, strict=True):
            if state >= frequency << headroom:  # it would outgrow its bits
                words.append(state & _WORD_MASK)
                state >>= _WORD_BITS
            quotient, rest = divmod(state, frequency)
            state = (quotient << scale) + start + rest
        return state.to_bytes(_STATE_BYTES, "little") + np.array(words[::-1], "<u2").tobytes()

    def decode(self, payload: bytes, frames: int) -> NDArray[np.int32]:
        """The indices `[frames, levels]` of `encode`; ValueError if these bytes cannot come from it."""
        if len(payload) < _STATE_BYTES or len(payload) % 2:
            raise ValueError(f"{len(payload)} bytes; expected a state of {_STATE_BYTES}, then words of 2")
        state = int.from_bytes(payload[:_STATE_BYTES], "little")
        if state < _LOWEST:
            raise ValueError(f"the state is {state}; expected {_LOWEST} or more")
        words = iter(np.frombuffer(payload, "<u2", offset=_STATE_BYTES).tolist())
        indices: list[int] = []
        try:
            for _ in range(frames):
                state = self._decode_frame(state, words, indices)
        except StopIteration:
            raise ValueError(f"the words end before index {len(indices)}") from None
        left = len(list(words))
        if left or state != _LOWEST:
            raise ValueError(f"the state ends at {state} with {left} words left; expected {_LOWEST} with none")
        return np.array(indices, np.int32).reshape(frames, self.levels)

    def _decode_frame(self, state: int, words: Iterator[int], indices: list[int]) -> int:
        """Append one index per level; the state after them."""
        scale, mask = self._scale, (1 << self._scale) - 1
        for index_of_slot, frequencies, starts in self._decoding_rows:
            slot = state & mask
            index = index_of_slot[slot]
            state = frequencies[index] * (state >> scale) + slot - starts[index]
            if state < _LOWEST:
                state = state << _WORD_BITS | next(words)
            indices.append(index)
        return state

    @cached_property
    def _decoding_rows(self) -> list[tuple[memoryview, memoryview, memoryview]]:
        """For each level: whose slot is it, the entries' frequencies and first slots."""
        entries = np.arange(1 << self.bits_per_index, dtype=np.uint16)
        return [
            (np.repeat(entries, frequencies).data, frequencies.data, starts.data)
            for frequencies, starts in zip(self._frequencies, self._starts, strict=True)
        ]


def _explicit_levels(flags: bytes, levels: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(flags, np.uint8), count=levels, bitorder="little").astype(bool)


def _first_slots(steps: NDArray[np.uint8], slots: int) -> NDArray[np.int64]:
    """`[levels, entries + 1]`: one slot for each entry, the others shared out by cumulated weight, rounded down."""
    levels, entries = steps.shape
    cumulated = np.zeros((levels, entries + 1), np.int64)
    np.cumsum(_WEIGHTS[steps], axis=1, out=cumulated[:, 1:])
    total = cumulated[:, -1:]
    # A table of nothing but "hardly ever" means the same as a flat one.
    cumulated = np.where(total == 0, np.arange(entries + 1), cumulated)
    return np.arange(entries + 1) + cumulated * (slots - entries) // np.where(total == 0, entries, total)


def _steps_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The nearest half octave below the most frequent entry's 15; 0 for entries that do not occur."""
    with np.errstate(divide="ignore"):
        octaves = np.log2(counts / max(counts.max(), 1))
    steps = np.clip(np.round(15 + 2 * octaves), 1, 15)
    return np.where(counts == 0, 0, steps).astype(np.uint8)


def _ideal_bits(counts: NDArray[np.int64], steps: NDArray[np.uint8]) -> float:
    """Bits of indices that occur so often, without the lanes' states."""
    slots = 1 << min(_WORD_BITS, (counts.size - 1).bit_length() + 4)
    frequencies = np.diff(_first_slots(steps[None], slots)[0])
    return float(-(counts * np.log2(frequencies / slots)).sum())
