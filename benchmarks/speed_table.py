"""Tables of codec times in Markdown: seconds per second, speed against a reference, share of the peak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MISSING = "–"


@dataclass
class Measured:
    """One codec's times, and the numbers that they are compared with."""

    parameters: int | None
    macs: Mapping[str, float]
    """Operation -> multiply-accumulates of a call."""
    peak: float
    """The machine's operations per second in the codec's precision."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Operation -> the time of each round, in order."""

    def median(self, operation: str) -> float | None:
        """Return the median time of an operation; None if the codec lacks it."""
        times = self.seconds.get(operation)
        return statistics.median(times) if times else None

    def speed(self, operation: str, reference: Measured) -> float | None:
        """Return how many times faster this is than `reference`; None if one of them lacks the operation.

        It is the median of the ratios within a round, so that a slow phase of the machine cancels out.
        """
        pairs = zip(reference.seconds.get(operation, []), self.seconds.get(operation, []), strict=False)
        ratios = [theirs / own for theirs, own in pairs]
        return statistics.median(ratios) if ratios else None

    def share_of_peak(self, operation: str) -> float | None:
        """Return the operations per second over the peak; None if the operations are not counted."""
        median, macs = self.median(operation), self.macs.get(operation)
        return None if median is None or macs is None else 2 * macs / median / self.peak


def throughput_table(rows: Mapping[str, Measured], reference: str, seconds: float) -> str:
    """Return a table of encoding and decoding `seconds` of audio."""
    header = ["codec", "parameters", "GMAC per s", "encode, s per s", "decode, s per s"]
    header += [f"encode, speed against {reference}", "decode, likewise", "encode, share of peak", "decode, likewise"]
    lines = []
    for name, row in rows.items():
        cells = [name, _cell(row.parameters, 1e-6, "{:.2f} M"), _macs(row, seconds)]
        cells += [_cell(row.median(operation), 1 / seconds, "{:.3f}") for operation in ("encode", "decode")]
        cells += [_cell(row.speed(operation, rows[reference]), 1, "{:.2f}x") for operation in ("encode", "decode")]
        cells += [_cell(row.share_of_peak(operation), 100, "{:.0f} %") for operation in ("encode", "decode")]
        lines.append(cells)
    return _markdown(header, lines)


def step_table(rows: Mapping[str, Measured], reference: str, seconds: float) -> str:
    """Return a table of streaming in blocks of 40 ms, and of the quantizer alone; other codecs are left out."""
    operations = ("step encode", "step decode", "quantize")
    header = ["codec", "encode a block, ms", "decode a block, ms", "quantizer, ms per s"]
    header += [f"encode, speed against {reference}", "decode, likewise", "quantizer, likewise"]
    lines = []
    for name, row in rows.items():
        if not any(operation in row.seconds for operation in operations):
            continue
        cells = [name, *(_cell(row.median(operation), 1000, "{:.1f}") for operation in operations[:2])]
        cells.append(_cell(row.median("quantize"), 1000 / seconds, "{:.1f}"))
        cells += [_cell(row.speed(operation, rows[reference]), 1, "{:.2f}x") for operation in operations]
        lines.append(cells)
    return _markdown(header, lines)


def _macs(row: Measured, seconds: float) -> str:
    return _cell(sum(row.macs.values()) if row.macs else None, 1e-9 / seconds, "{:.1f}")


def _cell(value: float | None, scale: float, pattern: str) -> str:
    return MISSING if value is None else pattern.format(value * scale)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"
