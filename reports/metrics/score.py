"""The result of a metric: a number, or the reason why there is none.

ViSQOL's worker processes load this module, so it imports nothing heavy.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Score(NamedTuple):
    """One metric of one segment: a finite `value` with an empty `reason`, or NaN with the reason in words."""

    value: float
    reason: str = ""

    @classmethod
    def missing(cls, reason: str) -> Score:
        """Return a score that could not be computed: NaN with its `reason`, never 0."""
        return cls(math.nan, reason)
