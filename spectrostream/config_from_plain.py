"""Configurations out of plain keys and values, as files hold them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

C = TypeVar("C")
# Codecs that a file may hold; `spectrostream.registry` builds them.
KINDS = ("spectrostream", "dac")


def kind_of(plain: Any) -> str:
    """Which codec the keys and values configure, one of `KINDS`. Raises ValueError for another."""
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not a known codec; allowed: {', '.join(KINDS)}")
    return str(kind)


def config_of(schema: type[C], plain: Any) -> C:
    """Inverse of `dataclasses.asdict`: an object of the dataclass `schema`, and of those that its fields hold.

    Raises ValueError for an unknown key, for something else than keys and values, and as `schema` does.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"{schema.__name__} is made of keys and values, not of {plain!r}")
    known = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    unknown = sorted(plain.keys() - known.keys())
    if unknown:
        raise ValueError(f"{schema.__name__} has no {', '.join(unknown)}")
    values = {}
    for name, value in plain.items():
        inner: Any = known[name].default_factory
        is_config = isinstance(inner, type) and dataclasses.is_dataclass(inner)
        values[name] = config_of(inner, value) if is_config else value
    return schema(**values)
