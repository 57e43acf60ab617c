"""One experiment as data: schema, YAML, overrides, identity. The only place where the rooms' configurations meet."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from ablations.initial_weights import LEARNING_KEYS, Start, Starts
from datamodules.corpora.manifest import FORMATS, MANIFEST_NAME
from datamodules.data_config import DataConfig
from datamodules.shards.index import INDEX_NAME
from lightning_modules.trainer_config import TrainerConfig
from lightning_modules.training_config import TrainingConfig
from spectrostream.adversarial.discriminators import DISCRIMINATORS, DiscriminatorConfig
from spectrostream.adversarial.objectives import RECIPES
from spectrostream.adversarial.stft_discriminator import MultiScaleSTFTConfig
from spectrostream.codec_config import SpectroStreamConfig
from spectrostream.errors import UserError
from spectrostream.registry import CONFIGS, CodecConfig


class ConfigError(UserError):
    """A configuration that cannot be: the message names the key, what was given and what is allowed."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained codec is judged.

    levels: operating points, numbers of quantizer levels. visqol: False skips the slowest metric.
    segments: held-out excerpts at most, spread evenly over all; None is the whole table of data.evaluation_segments, or
    50 without one. workers: ViSQOL processes. keep_audio: writes every decoded segment for the report's player and
    pictures.
    """

    levels: tuple[int, ...] = (64,)
    visqol: bool = True
    segments: int | None = None
    workers: int = 2
    keep_audio: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if not self.levels or min(self.levels) < 1 or len(set(self.levels)) < len(self.levels):
            given = f"evaluation.levels = {list(self.levels)}"
            raise ValueError(f"{given} is not possible; allowed: one or more different numbers >= 1")
        if self.segments is not None and self.segments < 1:
            raise ValueError(f"evaluation.segments = {self.segments} is not possible; allowed: null, or 1 or more")
        if self.workers < 1:
            raise ValueError(f"evaluation.workers = {self.workers} is not possible; allowed: 1 or more")


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that one run needs; each section stands beside the class it builds."""

    model: CodecConfig
    discriminator: DiscriminatorConfig = field(default_factory=MultiScaleSTFTConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        trained = self.model.quantizer.levels if isinstance(self.model, SpectroStreamConfig) else self.model.levels
        if max(self.evaluation.levels) > trained:
            raise ValueError(
                f"evaluation.levels = {list(self.evaluation.levels)} goes beyond the {trained} levels that the model "
                f"trains; allowed: 1..{trained}"
            )
        # The mel loss reflects half a window at each end.
        longest = max(self.discriminator.shortest_audio, RECIPES[self.training.recipe].shortest_audio)
        if round(self.data.crop_seconds * 48000) < longest:
            raise ValueError(
                f"data.crop_seconds = {self.data.crop_seconds} is shorter than the longest window of the discriminator "
                f"and of the mel loss, {longest} samples; allowed: {math.ceil(longest / 48) / 1000:.3f} or more"
            )


_SECTIONS = {f.name: f for f in dataclasses.fields(ExperimentConfig)}
# The sections whose schema is chosen by their `kind`, and the kinds; the first one is the default.
_KINDS: dict[str, Mapping[str, type]] = {"model": CONFIGS, "discriminator": DISCRIMINATORS}
# Raised with every change of the code that changes what a training computes: finished runs are then run again.
TRAINING_VERSION = 3
# What does not change the result of training: how fast it runs, what is written about it, how it is judged afterwards.
NOT_IN_SIGNATURE = (
    "evaluation",
    "trainer.threads",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.keep_best",
    "trainer.samples_every",
    "trainer.sample_clips",
    "trainer.tensorboard",
    "trainer.validate_every",
    "trainer.wandb",
    "trainer.wandb_project",
    "training.start_from",  # the weights count by their fingerprint, wherever they are
    "data.root",  # the corpus counts by its fingerprint, however its folder is written
    "data.manifests",
    "data.num_workers",
    "data.read_timeout_seconds",
    "data.shards",
    "data.shard_cache",
    "data.shard_cache_gigabytes",
    "data.s3_endpoint",
    "data.evaluation_segments",
    "data.cache_audio",
    "data.validation_crops",
    "data.evaluation_segment_seconds",
)


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
    """A YAML file as one layer of a configuration."""
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors have no common base with OmegaConf's
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path} holds a list; a mapping of sections is needed ({', '.join(_SECTIONS)})")
    return layer


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
        for section in _KINDS:
            kind = OmegaConf.select(layer, f"{section}.kind")
            if kind is not None and kind != _kind(merged, section) and section in merged:
                merged.pop(section)
        merged = _merged(merged, layer)
    schema = _schema({section: _kind(merged, section) for section in _KINDS})
    try:
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key} is not possible: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    start = _start(plain, _kind(merged, "model"), starts or Starts())
    if start:
        _fill(schema, {"model": start.plain_model()}, "")
    _fill(schema, plain, "")
    for name in _SECTIONS:
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
    own, theirs = (_leaves(dataclasses.asdict(one), "model.") for one in (model, start.model))
    different = [key for key in own if own[key] != theirs[key] and key not in LEARNING_KEYS]
    if different:
        given = ", ".join(f"{key} = {own[key]!r} ({theirs[key]!r} there)" for key in different)
        raise ConfigError(
            f"{given} contradicts the weights that training.start_from = {start.source!r} names; leave such keys out, "
            "or type the values of the weights"
        )


def _leaves(plain: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
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
        knows_its_place = words.startswith(tuple(f"{name}." for name in _SECTIONS))
        raise ConfigError(words if knows_its_place else f"{prefix}{words}") from error


def _merged(*layers: DictConfig) -> DictConfig:
    merged = OmegaConf.merge(*layers)
    assert isinstance(merged, DictConfig)
    return merged


def _kind(merged: DictConfig, section: str) -> Any:
    return OmegaConf.select(merged, f"{section}.kind") or next(iter(_KINDS[section]))


def _schema(kinds: Mapping[str, Any]) -> DictConfig:
    sections: dict[str, Any] = {}
    for name, section in _SECTIONS.items():
        if name in kinds:
            sections[name] = OmegaConf.structured(_schema_of_kind(name, kinds[name]))
        else:
            assert section.default_factory is not dataclasses.MISSING
            sections[name] = OmegaConf.structured(section.default_factory)
    return OmegaConf.create(sections)


def _schema_of_kind(section: str, kind: Any) -> type:
    kinds = _KINDS[section]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{section}.kind = {kind!r} is not known; allowed: {', '.join(kinds)}")
    return kinds[kind]


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


def is_in_signature(key: str) -> bool:
    """True if a dotted key counts for the identity of a run."""
    return not any(key == one or key.startswith(f"{one}.") for one in NOT_IN_SIGNATURE)


def signature(config: ExperimentConfig, data_fingerprint: str, start_fingerprint: str = "") -> str:
    """Identity of a training run: a hash of the resolved configuration less `NOT_IN_SIGNATURE`, and of the corpus.

    start_fingerprint: of the weights that it starts from, if it does.
    """
    plain = to_plain(config)
    for key in NOT_IN_SIGNATURE:
        *sections, last = key.split(".")
        node = plain
        for section in sections:
            node = node[section]
        node.pop(last)
    plain["data"]["split"] = config.data.chosen_split  # whether it was typed or not
    plain["data_fingerprint"] = data_fingerprint
    if start_fingerprint:
        plain["start_fingerprint"] = start_fingerprint
    plain["training_version"] = TRAINING_VERSION
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
