"""Entropy coding of indices with one fixed frequency table per level.

The method is range asymmetric numeral systems (Duda 2013, arXiv:1311.2540) with words of 16 bits (Giesen 2014,
arXiv:1402.3392). The coder keeps a state x of 16 to 32 bits. Take an index that has f of 2^scale slots, from slot c on.
Coding it sets x to ((x // f) << scale) + c + x % f, which adds log2(2^scale / f) bits. If x would need more than 32
bits, the coder first writes the low 16. Decoding undoes these steps in the opposite order, so the encoder starts with
the last index and the decoder with the first.

A table has half a byte per codebook entry: 0 means rare, k = 1..15 a weight of 2^(k/2). The frequencies are computed
from these in whole numbers, at least 1 each. So every table is valid, every index can be coded, and all machines agree.
Steps of half an octave cost about 0.007 bits per index.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# round(64 * 2^((k - 1) / 2)) for k = 1..15. The numbers are literal, so that the format depends on no rounding.
_WEIGHTS = np.array([0, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192], dtype=np.int64)
_EQUAL = 1  # the step of all entries of a level without a table
_LOWEST = 1 << 16  # the lowest state between two indices
_WORD_BITS = 16
_WORD_MASK = 0xFFFF
_STATE_BITS = 32
_STATE_BYTES = 4
_CODEBOOK_SIZES = tuple(1 << bits for bits in range(1, 17))


class FrequencyTables:
    """The expected frequency of each entry of each level.

    A level whose steps are all 1 is flat. It costs one bit in the file instead of half a byte per entry.

    Args:
        steps: uint8 `[levels, entries]`, 0..15 (see above); the number of entries is a power of two, 2..65536.

    Raises:
        ValueError: The steps have another type, shape or range.
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
        """Fit tables to codes. A level gets a table only if that saves more bits than it costs.

        Args:
            codes: int64 `[levels, frames]`; lost frames (-1) are not counted.
            bits_per_index: log2 of the codebook size.

        Raises:
            ValueError: A code is too large for `bits_per_index`.
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
        """Return the tables of the first `levels` levels."""
        return FrequencyTables(self.steps[:levels])

    def to_bytes(self) -> bytes:
        """Return the tables as they are written.

        First one bit per level, filled to whole bytes: 1 if the level has a table. Then the tables, two entries per
        byte, the first in the low half.
        """
        is_explicit = (self.steps != _EQUAL).any(axis=1)
        pairs = self.steps[is_explicit].reshape(-1, 2)
        return np.packbits(is_explicit, bitorder="little").tobytes() + (pairs[:, 0] | pairs[:, 1] << 4).tobytes()

    @staticmethod
    def flag_bytes(levels: int) -> int:
        """Return the number of bytes of the flags at the start of `to_bytes`."""
        return -(-levels // 8)

    @staticmethod
    def step_bytes(flags: bytes, levels: int, bits_per_index: int) -> int:
        """Return the number of bytes that follow these flags."""
        return int(_explicit_levels(flags, levels).sum()) << (bits_per_index - 1)

    @classmethod
    def from_bytes(cls, flags: bytes, pairs: bytes, levels: int, bits_per_index: int) -> FrequencyTables:
        """Build the tables from both parts of `to_bytes`; `flag_bytes` and `step_bytes` give their lengths."""
        is_explicit = _explicit_levels(flags, levels)
        steps = np.full((levels, 1 << bits_per_index), _EQUAL, np.uint8)
        halves = np.frombuffer(pairs, np.uint8)
        both = np.stack([halves & 15, halves >> 4], axis=1)
        steps[is_explicit] = both.reshape(int(is_explicit.sum()), 1 << bits_per_index)
        return cls(steps)

    def encode(self, indices: NDArray[np.int32]) -> bytes:
        """Code indices.

        Args:
            indices: `[frames, levels]`.

        Returns:
            The last state as u32, then the words as u16 in the order of reading.
        """
        levels = np.arange(self.levels)
        frequencies = self._frequencies[levels, indices].reshape(-1)[::-1].tolist()
        starts = self._starts[levels, indices].reshape(-1)[::-1].tolist()
        scale, headroom = self._scale, _STATE_BITS - self._scale
        state = _LOWEST
        words = array("H")
        # Plain integers: numpy is faster only with thousands of states at once.
        for frequency, start in zip(frequencies, starts, strict=True):
            if state >= frequency << headroom:  # the next state would need more than 32 bits
                words.append(state & _WORD_MASK)
                state >>= _WORD_BITS
            quotient, rest = divmod(state, frequency)
            state = (quotient << scale) + start + rest
        return state.to_bytes(_STATE_BYTES, "little") + np.array(words[::-1], "<u2").tobytes()

    def decode(self, payload: bytes, frames: int) -> NDArray[np.int32]:
        """Undo `encode`.

        Returns:
            The indices `[frames, levels]`.

        Raises:
            ValueError: `encode` cannot have made these bytes.
        """
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
        """Append one index per level and return the next state."""
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
        """For each level: the entry of each slot, then each entry's frequency and first slot."""
        entries = np.arange(1 << self.bits_per_index, dtype=np.uint16)
        return [
            (np.repeat(entries, frequencies).data, frequencies.data, starts.data)
            for frequencies, starts in zip(self._frequencies, self._starts, strict=True)
        ]


def _explicit_levels(flags: bytes, levels: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(flags, np.uint8), count=levels, bitorder="little").astype(bool)


def _first_slots(steps: NDArray[np.uint8], slots: int) -> NDArray[np.int64]:
    """Return the first slot of each entry, and the end: `[levels, entries + 1]`.

    Each entry gets one slot. The other slots are divided by cumulated weight, rounded down.
    """
    levels, entries = steps.shape
    cumulated = np.zeros((levels, entries + 1), np.int64)
    np.cumsum(_WEIGHTS[steps], axis=1, out=cumulated[:, 1:])
    total = cumulated[:, -1:]
    # A table with only rare entries equals a flat one.
    cumulated = np.where(total == 0, np.arange(entries + 1), cumulated)
    return np.arange(entries + 1) + cumulated * (slots - entries) // np.where(total == 0, entries, total)


def _steps_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Round counts to half octaves: 15 for the most frequent entry, 0 for entries that do not occur."""
    with np.errstate(divide="ignore"):
        octaves = np.log2(counts / max(counts.max(), 1))
    steps = np.clip(np.round(15 + 2 * octaves), 1, 15)
    return np.where(counts == 0, 0, steps).astype(np.uint8)


def _ideal_bits(counts: NDArray[np.int64], steps: NDArray[np.uint8]) -> float:
    """Return the bits of indices with these counts, without the coder's states."""
    slots = 1 << min(_WORD_BITS, (counts.size - 1).bit_length() + 4)
    frequencies = np.diff(_first_slots(steps[None], slots)[0])
    return float(-(counts * np.log2(frequencies / slots)).sum())
