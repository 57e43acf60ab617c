"""Times of codecs that took turns, as Markdown: seconds per second, speed against a reference, share of the peak."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MISSING = "–"


@dataclass
class Measured:
    """One codec's times and what they are held against.

    seconds: operation -> one time per round, in the rounds' order. macs: operation -> multiply-accumulates of a call.
    peak: operations per second of the precision that it computes in.
    """

    parameters: int | None
    macs: Mapping[str, float]
    peak: float
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, operation: str) -> float | None:
        """Of the rounds; None if the codec has no such operation."""
        times = self.seconds.get(operation)
        return statistics.median(times) if times else None

    def speed(self, operation: str, reference: Measured) -> float | None:
        """How many times faster than `reference`: the median of the rounds' ratios, so that a slow spell cancels."""
        pairs = zip(reference.seconds.get(operation, []), self.seconds.get(operation, []), strict=False)
        ratios = [theirs / own for theirs, own in pairs]
        return statistics.median(ratios) if ratios else None

    def share_of_peak(self, operation: str) -> float | None:
        """Operations per second over the peak; None where they could not be counted."""
        median, macs = self.median(operation), self.macs.get(operation)
        return None if median is None or macs is None else 2 * macs / median / self.peak


def throughput_table(rows: Mapping[str, Measured], reference: str, seconds: float) -> str:
    """Encoding and decoding of `seconds` of audio."""
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
    """Streaming in blocks of one token (40 ms), and the quantizer alone; codecs that have neither are left out."""
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
