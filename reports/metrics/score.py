"""What every metric returns: a number, or the reason why there is none.

It imports nothing heavy, because ViSQOL's worker processes load it too.
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
        """A score that could not be computed. It stays missing: it is never 0 and never dropped without its reason."""
        return cls(math.nan, reason)
