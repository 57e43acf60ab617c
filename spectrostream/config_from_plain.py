"""Configurations out of plain keys and values, as files hold them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from spectrostream.added_keys import neutral_values, sections_of

C = TypeVar("C")


def kind_of(plain: Any) -> Any:
    """The kind of codec that the keys and values name; None if they name none."""
    return plain.get("kind") if isinstance(plain, dict) else None


def config_of(schema: type[C], plain: Any) -> C:
    """Inverse of `dataclasses.asdict` and of `identity_of`: an object of the dataclass `schema` and of its sections.

    A key that is missing because it was added later gets its neutral value, another one its default.

    Raises:
        ValueError: for an unknown key, for something else than keys and values, and as `schema` does.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"{schema.__name__} is made of keys and values, not of {plain!r}")
    unknown = sorted(plain.keys() - {field.name for field in dataclasses.fields(schema)})  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"{schema.__name__} has no {', '.join(unknown)}")
    sections: dict[str, Any] = {
        name: config_of(section, plain.get(name, {})) for name, section in sections_of(schema).items()
    }
    return schema(**neutral_values(schema) | plain | sections)
