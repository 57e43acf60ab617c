"""Composes an experiment from YAML files and `key=value` overrides; an error names the wrong key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from ablations.initial_weights import LEARNING_KEYS, Start, Starts
from ablations.run_folder import RunFolder
from ablations.schema import KINDS, SECTIONS, ExperimentConfig
from datamodules.corpora.manifest import FORMATS, MANIFEST_NAME
from datamodules.shards.index import INDEX_NAME
from spectrostream.added_keys import neutral_values
from spectrostream.errors import UserError
from spectrostream.interface import CodecConfig


class ConfigError(UserError):
    """An impossible configuration; the message says the key, its value and the allowed values."""


def configs_folder() -> Path:
    """Return the folder of the shipped configurations: in the repository, or inside the installed package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_yaml(name: str, folder: Path, what: str) -> Path:
    """Return the file of a path, or the shipped file of that name.

    Args:
        name: A path, or the name of a YAML file in `folder` without its ending.
        what: The key that the error names.

    Raises:
        ConfigError: There is no such file; the message lists the shipped ones.
    """
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{what} = {name!r}: there is no such file; allowed: a path to a YAML file, or one of {shipped}")


def load_layer(path: Path) -> DictConfig:
    """Read a YAML file as one layer of a configuration.

    The config.yaml of a run lacks the keys that were added later. They get their neutral values, so that the layer
    keeps its meaning.

    Raises:
        ConfigError: The file is not YAML, or holds no mapping.
    """
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors have no common base with OmegaConf's
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path} holds a list; a mapping of sections is needed ({', '.join(SECTIONS)})")
    run = RunFolder(path.parent)
    is_of_a_run = path == run.config and run.facts.is_file()
    return _merged(_neutral_layer(layer), layer) if is_of_a_run else layer


def _neutral_layer(record: DictConfig) -> DictConfig:
    plain = {name: neutral_values(schema) for name, schema in _schemas(record).items()}
    return OmegaConf.create(json.loads(json.dumps(plain)))  # lists, as YAML has them


def overrides_layer(overrides: Sequence[str]) -> DictConfig:
    """Read `key=value` words as one layer.

    `data=..` is short for `data.root`, `data.manifests` or `data.shards`. The manifest or the index in a folder shows
    that `data prepare` made it.

    Raises:
        ConfigError: A word is no override, or its value is not YAML.
    """
    layer = OmegaConf.create({})
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"{word!r} is not an override; type key=value, for instance training.max_steps=1000")
        try:
            layer.merge_with_dotlist(_data_words(value) if key == "data" else [word])
        except Exception as error:  # YAML's own errors have no common base with OmegaConf's
            raise ConfigError(
                f"{word!r} cannot be read as YAML; put double quotes around the value, inside the shell's single ones"
            ) from error
    return layer


def _data_words(value: str) -> list[str]:
    names = value.removeprefix("[").removesuffix("]").split(",")
    if "://" in value or (Path(value) / INDEX_NAME).is_file():
        return [f"data.shards={value}"]
    if all(name.strip().endswith(FORMATS) for name in names):
        return [f"data.manifests=[{','.join(names)}]"]
    manifest = Path(value) / MANIFEST_NAME
    if manifest.is_file():
        # The manifest keeps the official split. With the folder alone, training would use test music.
        return [f"data.manifests=[{manifest}]", f"data.root={value}"]
    return [f"data.root={value}"]


def keys_layer(changes: Mapping[str, Any]) -> DictConfig:
    """Return a layer of dotted keys and their values; `model: {kind: ..}` replaces the whole section."""
    layer = OmegaConf.create({})
    for key, value in changes.items():
        OmegaConf.update(layer, key, value, force_add=True)
    return layer


def compose(*layers: DictConfig, starts: Starts | None = None) -> ExperimentConfig:
    """Compose an experiment from the schema's defaults and the layers; a later layer overrides an earlier one.

    A layer with another `model.kind` or `discriminator.kind` replaces that whole section, because kinds have
    different keys. With `training.start_from` the model section is that of the weights.

    Args:
        layers: The layers, the weakest first.
        starts: The known weights that runs start from; other weights are read.

    Raises:
        ConfigError: A key or value is not possible, or a key other than `LEARNING_KEYS` contradicts the weights. The
            message suggests the nearest key for a mistyped one.
        StartError: The weights of `training.start_from` cannot be read.
    """
    merged = _stacked(layers)
    schema = OmegaConf.create({name: OmegaConf.structured(one) for name, one in _schemas(merged).items()})
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key} is not possible: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    start = _start(plain, _kind(merged, "model"), starts or Starts())
    if start:
        _fill(schema, {"model": start.plain_model()}, "")
    _fill(schema, plain, "")
    for name in SECTIONS:
        _require_possible(schema[name], f"{name}.")
    try:
        sections: Any = OmegaConf.to_object(schema)
        config = ExperimentConfig(**sections)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    if start:
        _require_weights_shape(config.model, start)
    return config


def _stacked(layers: Sequence[DictConfig]) -> DictConfig:
    """Return the merged layers; another kind removes the section of the layers before it."""
    merged = OmegaConf.create({})
    for layer in layers:
        for section in KINDS:
            kind = OmegaConf.select(layer, f"{section}.kind")
            if kind is not None and kind != _kind(merged, section) and section in merged:
                merged.pop(section)
        merged = _merged(merged, layer)
    return merged


def _start(plain: Mapping[Any, Any], kind: str, starts: Starts) -> Start | None:
    training = plain.get("training")
    source = training.get("start_from") if isinstance(training, dict) else None
    return starts.find(source, kind) if isinstance(source, str) else None


def _require_weights_shape(model: CodecConfig, start: Start) -> None:
    own, theirs = (leaves(dataclasses.asdict(one), "model.") for one in (model, start.model))
    different = [key for key in own if own[key] != theirs[key] and key not in LEARNING_KEYS]
    if different:
        given = ", ".join(f"{key} = {own[key]!r} ({theirs[key]!r} there)" for key in different)
        raise ConfigError(
            f"{given} contradicts the weights that training.start_from = {start.source!r} names; leave such keys out, "
            "or type the values of the weights"
        )


def leaves(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Return all values of nested mappings by their dotted keys; each key begins with `prefix`."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _require_possible(section: DictConfig, prefix: str) -> None:
    """Build the innermost objects first, so that an error can name the full key of an object used in several places."""
    for key in map(str, section):
        inner = section._get_node(key)
        if isinstance(inner, DictConfig):
            _require_possible(inner, f"{prefix}{key}.")
    try:
        OmegaConf.to_object(section)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    except (ValueError, TypeError) as error:
        words = str(error).splitlines()[0]
        names_its_key = words.startswith(tuple(f"{name}." for name in SECTIONS))
        raise ConfigError(words if names_its_key else f"{prefix}{words}") from error


def _merged(*layers: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*layers)
    assert isinstance(merged, DictConfig)
    return merged


def _kind(merged: DictConfig, section: str) -> Any:
    return OmegaConf.select(merged, f"{section}.kind") or next(iter(KINDS[section]))


def _schemas(merged: DictConfig) -> dict[str, Any]:
    """Return the class of each section, by its kind where there are several."""
    return {
        name: _schema_of_kind(name, _kind(merged, name)) if name in KINDS else section.default_factory
        for name, section in SECTIONS.items()
    }


def _schema_of_kind(section: str, kind: Any) -> type:
    kinds = KINDS[section]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{section}.kind = {kind!r} is not known; allowed: {', '.join(kinds)}")
    return kinds[kind].config


def _fill(schema: DictConfig, given: Mapping[Any, Any], prefix: str) -> None:
    """Put the given values into the schema, key by key, so that an error can name the key."""
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in schema:
            near = difflib.get_close_matches(str(key), [str(k) for k in schema], n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"allowed here: {', '.join(str(k) for k in schema)}"
            raise ConfigError(f"{name} is not a key of the configuration; {hint}")
        node = schema._get_node(key)
        if not isinstance(node, DictConfig):
            _set(schema, key, value, name)
        elif isinstance(value, dict):
            _fill(node, value, f"{name}.")
        else:
            raise ConfigError(f"{name} is a section and takes no value; allowed: its keys {', '.join(map(str, node))}")


def _set(schema: DictConfig, key: Any, value: Any, name: str) -> None:
    try:
        with read_write(schema):  # a frozen dataclass makes a read-only node
            OmegaConf.update(schema, str(key), value)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        hint = typing.get_type_hints(OmegaConf.get_type(schema))[key]
        raise ConfigError(f"{name} = {value!r} is not possible; allowed: {_in_words(hint)}") from error


def _in_words(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint in words:
        return words[hint]
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is not tuple:
        return " or ".join(map(_in_words, inner))
    if inner[-1] is Ellipsis:
        return f"a list, each {_in_words(inner[0])}"
    return f"a list of {len(inner)}, each {_in_words(inner[0])}"


def load_experiment(config: str, overrides: Sequence[str] = (), *, starts: Starts | None = None) -> ExperimentConfig:
    """Load a shipped configuration or a YAML file with `key=value` overrides; for `starts` and errors see `compose`."""
    path = find_yaml(config, configs_folder(), "config")
    return compose(load_layer(path), overrides_layer(overrides), starts=starts)


def to_plain(config: ExperimentConfig) -> dict[str, Any]:
    """Return the configuration as nested dictionaries and lists, for YAML and JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: ExperimentConfig) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))
