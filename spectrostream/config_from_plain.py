"""Configurations from plain keys and values, as files hold them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from spectrostream.added_keys import neutral_values, sections_of

C = TypeVar("C")


def kind_of(plain: Any) -> Any:
    """Return the kind of codec that the keys and values name; None if they name none."""
    return plain.get("kind") if isinstance(plain, dict) else None


def config_of(schema: type[C], plain: Any) -> C:
    """Build a configuration from a dictionary: the inverse of `dataclasses.asdict` and of `identity_of`.

    A missing key gets its neutral value if it is an added key, otherwise its default.

    Args:
        schema: The dataclass; its sections are dataclasses too.
        plain: The keys and values.

    Raises:
        ValueError: A key is unknown, `plain` is not a dictionary, or `schema` does not allow a value.
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
