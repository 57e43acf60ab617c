"""Configuration keys that were added later: they change no hash, and old files stay readable.

A key is added with a neutral value: the one that reproduces the behaviour from before the key existed. It never
changes, even if the default does. A section that is added later has only such keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_NEUTRAL = "neutral"


def added(default: Any, *, neutral: Any) -> Any:
    """A field of a configuration class that earlier versions did not have.

    Args:
        default: the value in new configurations that do not name the key.
        neutral: the value in configurations that were written before the key existed. Hashes leave the key out where it
            has this value.
    """
    return dataclasses.field(default=default, metadata={_NEUTRAL: neutral})


def identity_of(config: Any) -> dict[str, Any]:
    """The part of a configuration that is hashed: `dataclasses.asdict` without added keys at their neutral values.

    A section with no keys left is left out too.
    """
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            plain |= {field.name: inner} if (inner := identity_of(value)) else {}
        elif _NEUTRAL not in field.metadata or value != field.metadata[_NEUTRAL]:
            plain[field.name] = value
    return plain


def neutral_values(schema: type) -> dict[str, Any]:
    """The neutral values of all added keys of a configuration class, nested as its sections are."""
    fields = dataclasses.fields(schema)
    plain = {field.name: field.metadata[_NEUTRAL] for field in fields if _NEUTRAL in field.metadata}
    nested = {name: neutral_values(section) for name, section in sections_of(schema).items()}
    return plain | {name: values for name, values in nested.items() if values}


def sections_of(schema: type) -> dict[str, type]:
    """The fields of a configuration class that hold another configuration: name to class."""
    factories: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(schema)}
    return {name: one for name, one in factories.items() if isinstance(one, type) and dataclasses.is_dataclass(one)}
