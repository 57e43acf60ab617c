"""An experiment out of YAML files and `key=value` overrides; a mistake is an error that names its key."""

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
    """A configuration that cannot be: the message names the key, what was given and what is allowed."""


def configs_folder() -> Path:
    """The shipped configurations: in the repository, or inside the installed package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def find_yaml(name: str, folder: Path, what: str) -> Path:
    """A path as given, or the shipped file of that name. ConfigError lists what there is."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ConfigError(f"{what} = {name!r}: there is no such file; allowed: a path to a YAML file, or one of {shipped}")


def load_layer(path: Path) -> DictConfig:
    """A YAML file as one layer of a configuration.

    The config.yaml in the folder of a run names all keys of its time; keys that were added later are filled in with
    their neutral values, so that the layer means what it meant then.

    Raises:
        ConfigError: if the file holds no mapping.
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
    """`key=value` words as one layer; `data=..` is short for `data.root` (a folder), manifests or shards.

    A folder that `data prepare` made is known by the manifest or the index in it.
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
        # Without it what was divided officially would be divided anew, and the music for the test trained on.
        return [f"data.manifests=[{manifest}]", f"data.root={value}"]
    return [f"data.root={value}"]


def keys_layer(changes: Mapping[str, Any]) -> DictConfig:
    """Dotted keys to values as one layer; `model: {kind: ..}` replaces the whole section."""
    layer = OmegaConf.create({})
    for key, value in changes.items():
        OmegaConf.update(layer, key, value, force_add=True)
    return layer


def compose(*layers: DictConfig, starts: Starts | None = None) -> ExperimentConfig:
    """Schema, then each layer over the ones before it.

    A layer with another `model.kind` replaces the model section, one with another `discriminator.kind` that section:
    the keys of one kind mean nothing to another.
    With `training.start_from` the model is that of the weights; a key that says something else is an error, but for
    `LEARNING_KEYS`. starts: what is known of such weights; they are read otherwise.
    Raises ConfigError, naming the nearest right key for a mistyped one.
    """
    merged = OmegaConf.create({})
    for layer in layers:
        for section in KINDS:
            kind = OmegaConf.select(layer, f"{section}.kind")
            if kind is not None and kind != _kind(merged, section) and section in merged:
                merged.pop(section)
        merged = _merged(merged, layer)
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
    """All values of nested mappings by their dotted keys, behind `prefix`."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _require_possible(section: DictConfig, prefix: str) -> None:
    """Makes the innermost objects first: an object that stands in several places does not know its own place."""
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
        knows_its_place = words.startswith(tuple(f"{name}." for name in SECTIONS))
        raise ConfigError(words if knows_its_place else f"{prefix}{words}") from error


def _merged(*layers: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*layers)
    assert isinstance(merged, DictConfig)
    return merged


def _kind(merged: DictConfig, section: str) -> Any:
    return OmegaConf.select(merged, f"{section}.kind") or next(iter(KINDS[section]))


def _schemas(merged: DictConfig) -> dict[str, Any]:
    """The class of each section; the section's kind chooses among several."""
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
    """Puts what is given into the schema, key by key, so that an error knows its key."""
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
    """A shipped or own YAML with `key=value` overrides; `starts` as in `compose`."""
    path = find_yaml(config, configs_folder(), "config")
    return compose(load_layer(path), overrides_layer(overrides), starts=starts)


def to_plain(config: ExperimentConfig) -> dict[str, Any]:
    """Nested dictionaries and lists, as YAML and JSON take them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved configuration."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))
