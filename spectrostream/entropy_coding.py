"""Entropy coding of indices with one fixed frequency table per level (Duda 2013, arXiv:1311.2540; interleaved as in
Giesen 2014, arXiv:1402.3392).

A range asymmetric numeral system keeps a state x of 16 to 32 bits. An index with frequency f of 2^scale, whose slots
begin at c, turns x into ((x // f) << scale) + c + x % f, which adds log2(2^scale / f) bits to it; the low 16 bits are
put out whenever x would outgrow 32 bits. Decoding undoes these steps in the opposite order, so the encoder begins with
the last index and the decoder with the first. Several states ("lanes") take turns: index n belongs to lane n % lanes.

A table is half a byte per codebook entry: 0 for "hardly ever", k = 1..15 for a weight of 2^(k/2). From these the
frequencies follow in whole numbers, each at least 1, so every table is valid, every index can be coded, and all
machines agree. That a half octave is coarse costs about 0.007 bits per index.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# round(64 * 2^((k - 1) / 2)) for k = 1..15, written out because the format must not depend on anybody's rounding.
_WEIGHTS = np.array(
    [0, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192], dtype=np.int64
)
_EQUAL = 1  # the step that all entries of a level without a table have
_LOWEST = 1 << 16  # a state is never below it between two indices
_WORD_BITS = 16
_STATE_BITS = 32
# A lane costs two bytes, a turn of all lanes about 15 microseconds; so 0.2 % of the bits and 15 ms per chunk.
_INDICES_PER_LANE = 1024


class FrequencyTables:
    """How often each entry of each level is expected.

    steps: uint8 `[levels, entries]`, 0..15 (see above); entries is a power of two. A level whose steps are all 1 is flat
        and costs one bit in the file instead of half a byte per entry.
    """

    def __init__(self, steps: NDArray[np.uint8]) -> None:
        levels, entries = steps.shape
        if steps.dtype != np.uint8 or steps.max() > 15 or entries < 2 or entries & (entries - 1):
            raise ValueError(f"steps are {steps.dtype} {list(steps.shape)}; expected uint8 0..15, 2^n entries per level")
        self.steps = steps
        self.levels = levels
        self.bits_per_index = entries.bit_length() - 1
        self._scale = min(_WORD_BITS, self.bits_per_index + 4)
        slots = 1 << self._scale
        starts = _first_slots(steps, slots)  # [levels, entries + 1]
        frequencies = np.diff(starts, axis=1)
        self._starts = starts[:, :-1].astype(np.uint64).reshape(-1)
        self._frequencies = frequencies.astype(np.uint64).reshape(-1)
        owners = np.tile(np.arange(entries, dtype=np.uint16), levels)
        self._index_of_slot = np.repeat(owners, frequencies.reshape(-1))  # [levels * slots]

    @classmethod
    def fit(cls, codes: Tensor, bits_per_index: int) -> FrequencyTables:
        """Tables for codes int64 `[levels, frames]`; a level gets one only where it saves more bits than it costs.

        Frames of -1 (lost) are not counted.
        """
        entries = 1 << bits_per_index
        steps = np.full((len(codes), entries), _EQUAL, np.uint8)
        for level, indices in enumerate(codes.cpu().numpy()):
            counts = np.bincount(indices[indices >= 0], minlength=entries)
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
        steps[is_explicit] = both.reshape(int(is_explicit.sum()), -1)
        return cls(steps)

    def encode(self, indices: NDArray[np.int32]) -> bytes:
        """Indices `[frames, levels]` to bytes: the lanes' states u32, then words u16 in the order they are read."""
        slots = self._entry_offsets(indices.size) + indices.reshape(-1)
        frequencies, starts = self._frequencies.take(slots), self._starts.take(slots)
        limits = frequencies << (_STATE_BITS - self._scale)  # from here on a state would outgrow its bits
        lanes = _lanes(indices.size)
        states = np.full(lanes, _LOWEST, np.uint64)
        words = []
        for first in reversed(range(0, indices.size, lanes)):
            turn = slice(first, first + lanes)
            frequency = frequencies[turn]
            state = states[: frequency.size]  # the last turn may be short
            is_full = state >= limits[turn]
            if is_full.any():
                words.append(state[is_full].astype(np.uint16))  # the low 16 bits
                state = np.where(is_full, state >> _WORD_BITS, state)
            quotient = state // frequency
            states[: frequency.size] = (quotient << self._scale) + (state - quotient * frequency) + starts[turn]
        ordered = [word.astype("<u2").tobytes() for word in reversed(words)]
        return states.astype("<u4").tobytes() + b"".join(ordered)

    def decode(self, payload: bytes, frames: int) -> NDArray[np.int32]:
        """The indices `[frames, levels]` of `encode`; ValueError if these bytes cannot come from it."""
        count = frames * self.levels
        lanes = _lanes(count)
        if len(payload) < 4 * lanes or len(payload) % 2:
            raise ValueError(f"{len(payload)} bytes; expected {lanes} states of 4 bytes, then words of 2")
        states = np.frombuffer(payload, "<u4", lanes).astype(np.uint64)
        words = np.frombuffer(payload, "<u2", offset=4 * lanes).astype(np.uint64)
        if (states < _LOWEST).any():
            raise ValueError(f"a state is below {_LOWEST}")
        indices = np.empty(count, np.int32)
        used = self._decode_turns(states, words, indices)
        if used != len(words) or (states != _LOWEST).any():
            raise ValueError(f"the states do not end where the encoder began ({used} of {len(words)} words used)")
        return indices.reshape(frames, self.levels)

    def _decode_turns(self, states: NDArray[np.uint64], words: NDArray[np.uint64], indices: NDArray[np.int32]) -> int:
        """Fill `indices`; the number of words used."""
        offsets = self._entry_offsets(indices.size)
        slot_offsets = (offsets >> self.bits_per_index) << self._scale
        used = 0
        for first in range(0, indices.size, len(states)):
            turn = slice(first, first + len(states))
            state = states[: len(offsets[turn])]
            slot = state & ((1 << self._scale) - 1)
            index = self._index_of_slot.take(slot_offsets[turn] + slot.astype(np.int64))
            indices[turn] = index
            entry = offsets[turn] + index
            state = self._frequencies.take(entry) * (state >> self._scale) + slot - self._starts.take(entry)
            is_low = state < _LOWEST
            if is_low.any():
                taken = int(np.count_nonzero(is_low))
                if used + taken > len(words):
                    raise ValueError(f"the words end before index {first + len(states)}")
                state[is_low] = state[is_low] << _WORD_BITS | words[used : used + taken]
                used += taken
            states[: len(state)] = state
        return used

    def _entry_offsets(self, count: int) -> NDArray[np.int64]:
        """Where the table of each of `count` frame-major indices begins."""
        return np.resize(np.arange(self.levels, dtype=np.int64) << self.bits_per_index, count)


def _explicit_levels(flags: bytes, levels: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(flags, np.uint8), count=levels, bitorder="little").astype(bool)


def _lanes(indices: int) -> int:
    return max(1, indices // _INDICES_PER_LANE)


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


def entropy(codes: Tensor) -> Tensor:
    """Empirical entropy of each level of int64 codes `[levels, frames]`, bits per index: float64 `[levels]`."""
    rows = []
    for indices in codes.cpu():
        shares = torch.unique(indices, return_counts=True)[1].double() / indices.numel()
        rows.append(-(shares * shares.log2()).sum())
    return torch.stack(rows)
