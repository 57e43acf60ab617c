"""Configuration keys that were added later: they change no hash, and old files stay readable.

Each added key has a neutral value, which gives the behaviour from before the key existed. The neutral value never
changes, even if the default does. A section that is added later has only such keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

_NEUTRAL = "neutral"


def added(default: Any, *, neutral: Any) -> Any:
    """Declare a field of a configuration class that earlier versions did not have.

    Args:
        default: The value in new configurations that do not name the key.
        neutral: The value in configurations that were written before the key existed. Hashes leave out a key with this
            value.
    """
    return dataclasses.field(default=default, metadata={_NEUTRAL: neutral})


def identity_of(config: Any) -> dict[str, Any]:
    """Return the part of a configuration that is hashed.

    It is `dataclasses.asdict` without added keys at their neutral values, and without sections that are then empty.
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
    """Return the neutral values of all added keys of a configuration class, nested like its sections."""
    fields = dataclasses.fields(schema)
    plain = {field.name: field.metadata[_NEUTRAL] for field in fields if _NEUTRAL in field.metadata}
    nested = {name: neutral_values(section) for name, section in sections_of(schema).items()}
    return plain | {name: values for name, values in nested.items() if values}


def sections_of(schema: type) -> dict[str, type]:
    """Return the fields of a configuration class that hold another configuration: name -> class."""
    factories: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(schema)}
    return {name: one for name, one in factories.items() if isinstance(one, type) and dataclasses.is_dataclass(one)}
