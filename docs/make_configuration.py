"""Writes `docs/configuration.md`: every configuration key, from the fields and the text beneath them.

    python docs/make_configuration.py

The text beneath a field describes it in a sentence or two; the sentence that starts with "Allowed:" becomes a column.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ablations.schema import KINDS, ExperimentConfig

PAGE = Path(__file__).parent / "configuration.md"
TYPES = {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "None": "null"}
INTRODUCTION = """\
# Configuration keys

Every key of `spectrostream train`, in a YAML file as in `configs/` or typed as `key=value`:

```bash
spectrostream train config=small data=/music out=runs/small training.max_steps=200000 trainer.devices=2
```

A list is typed in quotes: `"evaluation.levels=[16,32]"`. A mistyped key is an error that names the nearest right one.
`data=PLACE` is short for `data.root`, `data.manifests` or `data.shards`, whichever fits. The sections `model` and
`discriminator` have different keys for each `kind`; the first kind below is the default.

`python docs/make_configuration.py` writes this page from the fields of the configuration classes.
"""


class Key(NamedTuple):
    """One configuration key as the page shows it; `source` is the name of the field's class and the field."""

    name: str
    type: str
    default: str
    allowed: str
    description: str
    source: str


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for section, schemas in sections():
        for kind, schema in schemas.items():
            title = f"`{section}`" + (f", kind `{kind}`" if kind else "")
            parts += [f"\n## {title}\n", _table(schema, section)]
    return "\n".join(parts) + "\n"


def sections() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each section with its schemas by kind; a section without kinds has one schema, under the empty name."""
    for section in dataclasses.fields(ExperimentConfig):
        kinds = {kind: entry.config for kind, entry in KINDS.get(section.name, {}).items()}
        yield section.name, kinds or {"": section.default_factory}


def keys(schema: Any, prefix: str) -> Iterator[Key]:
    """The keys of a dataclass and of the dataclasses in its fields, in the order of the fields."""
    texts = field_texts(schema)
    for field in dataclasses.fields(schema):
        name = f"{prefix}.{field.name}"
        inner = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from keys(inner, name)
            continue
        description, allowed = _split(texts.get(field.name, ""))
        type_name = _type_name(str(field.type))
        allowed = allowed or (TYPES["bool"] if type_name == TYPES["bool"] else "")
        yield Key(name, type_name, _default(field), allowed, description, f"{schema.__name__}.{field.name}")


def field_texts(schema: type) -> dict[str, str]:
    """The string beneath each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _table(schema: Any, prefix: str) -> str:
    summary = inspect.cleandoc(schema.__doc__).partition("\n\n")[0].replace("\n", " ")
    head = "| key | type | default | allowed | meaning |\n|---|---|---|---|---|"
    lines = [
        f"| `{key.name}` | {key.type} | `{key.default}` | {_cell(key.allowed)} | {_cell(key.description)} |"
        for key in keys(schema, prefix)
    ]
    return "\n".join([f"{summary}\n", head, *lines])


def _split(text: str) -> tuple[str, str]:
    """The text without its "Allowed:" sentence, and what that sentence says."""
    match = re.search(r"Allowed: (.*?)\.(?= |$)", text)
    if match is None:
        return text, ""
    return f"{text[: match.start()]}{text[match.end() :]}".replace("  ", " ").strip(), match.group(1)


def _type_name(annotation: str) -> str:
    """`tuple[int, ...]` as "list of integers", `str | None` as "text or null"."""
    if annotation.startswith("tuple["):
        member = _type_name(annotation.removeprefix("tuple[").removesuffix("]").split(", ")[0])
        return f"list of {member.replace('list', 'lists') if member.startswith('list') else f'{member}s'}"
    return " or ".join(TYPES.get(part, part) for part in annotation.split(" | "))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
