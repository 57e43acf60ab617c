"""A study: a question, a base configuration, and the keys that change in each variant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ablations.compose import ConfigError, compose, configs_folder, find_yaml, keys_layer, load_layer, overrides_layer
from ablations.initial_weights import Starts
from ablations.schema import ExperimentConfig
from spectrostream.errors import UserError
from spectrostream.registry import CODECS
from spectrostream.width_matching import COSTS

BASELINE = "baseline"
_WIDTHS = ("model.encoder_width", "model.decoder_width")


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    name: str
    title: str
    role: str
    """"baseline" (the reference), "variant" (a changed baseline) or "peer" (another codec, listed under `peers`)."""
    set: Mapping[str, Any]
    """Dotted configuration keys and their values; they override the study's own `set`."""
    change: str = ""
    """The one change, in words."""
    axis: str = ""
    """The axis of the study that the variant belongs to; "" for none."""
    match: str = ""
    """The cost that the widths keep equal to the baseline's: "macs" or "parameters"; "" for none."""


@dataclass(frozen=True)
class Run:
    """One training of a study: a variant with one seed."""

    name: str
    variant: Variant
    """Its `set` includes the widths that `match` found."""
    config: ExperimentConfig
    seed: int
    compared_at: int
    """Levels of the study's ablation table."""
    start_fingerprint: str = ""
    """Of the weights that the run starts from; "" for none."""


@dataclass(frozen=True)
class Study:
    """A parsed study file."""

    name: str
    title: str
    question: str
    caveat: str
    """What a reader must know; the report begins with it."""
    base: DictConfig
    """The base configuration with the study's `set`."""
    variants: tuple[Variant, ...]
    """The baseline first."""
    seeds: tuple[int, ...]
    axes: Mapping[str, str]
    """Name of the axis -> the configuration key that changes along it."""
    compared_at: int
    """Levels of the ablation table."""

    def runs(self, overrides: Sequence[str] = (), *, starts: Starts | None = None) -> tuple[Run, ...]:
        """Return every run of the study.

        Args:
            overrides: `key=value` words for all runs.
            starts: See `compose`.

        Raises:
            ConfigError: A run is not possible, or an override contradicts its variant.
        """
        shared, starts = overrides_layer(overrides), starts or Starts()
        return tuple(self._run(variant, seed, shared, starts) for variant in self.variants for seed in self.seeds)

    def _run(self, variant: Variant, seed: int, shared: DictConfig, starts: Starts) -> Run:
        try:
            config = self._composed(variant, seed, shared, starts)
            if variant.match:
                variant, config = _matched(variant, config, self._composed(self.variants[0], seed, shared, starts))
            self._require_comparable(config, variant)
        except UserError as error:
            raise ConfigError(f"{self.name}, variant {variant.name}: {error}") from error
        name = variant.name if len(self.seeds) == 1 else f"{variant.name}-seed{seed}"
        fingerprint = starts.fingerprint(config.training.start_from, config.model.kind)
        return Run(name, variant, config, seed, self.compared_at, fingerprint)

    def _composed(self, variant: Variant, seed: int, shared: DictConfig, starts: Starts) -> ExperimentConfig:
        seeded = {"training.seed": seed, "data.seed": seed}
        # A codec of another kind does not have the model's keys.
        if variant.role == "peer" and "model" in shared:
            shared = OmegaConf.masked_copy(shared, [str(key) for key in shared if key != "model"])
        own = keys_layer(variant.set)
        _refuse_undoing(shared, seeded, "the study's seeds set it for every run")
        _refuse_undoing(own, seeded, "the study's seeds set it for every run")
        _refuse_undoing(shared, variant.set, "it is what this variant changes")
        return compose(self.base, keys_layer(seeded), own, shared, starts=starts)

    def _require_comparable(self, config: ExperimentConfig, variant: Variant) -> None:
        if config.model.channels != 2:
            raise ConfigError(f"model.channels = {config.model.channels} is not possible in a study; allowed: 2")
        if variant.role != "peer" and self.compared_at not in config.evaluation.levels:
            raise ConfigError(
                f"evaluation.levels = {list(config.evaluation.levels)} lacks the study's compared_at = "
                f"{self.compared_at}; add it to them"
            )

    def positions(self, runs: Sequence[Run]) -> dict[str, list[tuple[str, float | str]]]:
        """Return axis -> its runs, each with its value of the axis' key; the baseline is on every axis."""
        placed: dict[str, list[tuple[str, float | str]]] = {}
        for axis, key in self.axes.items():
            on_axis = [run for run in runs if run.variant.role == BASELINE or run.variant.axis == axis]
            placed[axis] = [(run.name, _value_at(run.config, key)) for run in on_axis]
        return placed


def studies_folder() -> Path:
    """Return the folder of the shipped studies."""
    return Path(__file__).parent / "studies"


def load_study(name: str) -> Study:
    """Read a shipped study by name, or a YAML file.

    Raises:
        ConfigError: There is no such study, a key is missing or unknown, or a value is not possible.
    """
    path = find_yaml(name, studies_folder(), "study")
    plain = _read_study(path)
    _check_keys(plain, path)
    base = compose_base(plain)
    variants = _variants(plain, path)
    study = Study(
        name=path.stem,
        title=str(plain["title"]),
        question=" ".join(str(plain["question"]).split()),
        caveat=" ".join(str(plain.get("caveat") or "").split()),
        base=base,
        variants=variants,
        seeds=tuple(plain.get("seeds") or (0,)),
        axes=plain.get("axes") or {},
        compared_at=plain["compared_at"],
    )
    _check_names([variant.name for variant in variants], path)
    _check_axes(study, path)
    return study


def _read_study(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's own errors have no common base with OmegaConf's
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} is not a study; it needs the keys title, question, base, baseline and variants")
    return {str(key): value for key, value in loaded.items()}


def _variants(plain: Mapping[str, Any], path: Path) -> tuple[Variant, ...]:
    """Return the baseline, then the peers, then the variants."""
    variants = [Variant(name=BASELINE, role=BASELINE, **_entry(plain["baseline"], path, BASELINE))]
    for section, role in (("peers", "peer"), ("variants", "variant")):
        for key, entry in (plain.get(section) or {}).items():
            variants.append(Variant(name=str(key), role=role, **_entry(entry, path, key)))
    return tuple(variants)


def compose_base(plain: Mapping[str, Any]) -> DictConfig:
    """Return the base configuration with the study's changes for every run."""
    layers = [load_layer(find_yaml(str(plain["base"]), configs_folder(), "base"))]
    layers.append(keys_layer(plain.get("set") or {}))
    merged = OmegaConf.merge(*layers)
    assert isinstance(merged, DictConfig)
    return merged


_REQUIRED = ("title", "question", "base", "baseline", "compared_at")
_OPTIONAL = ("caveat", "set", "variants", "peers", "seeds", "axes")
_ENTRY = ("title", "set", "change", "axis", "match")
_SECTIONS = ("set", "variants", "peers", "axes")


def _check_keys(plain: Mapping[str, Any], path: Path) -> None:
    missing = [key for key in _REQUIRED if key not in plain]
    unknown = [str(key) for key in plain if key not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        raise ConfigError(
            f"{path}: missing keys: {', '.join(missing) or 'none'}; unknown keys: {', '.join(unknown) or 'none'}; "
            f"a study has {', '.join(_REQUIRED)} and may have {', '.join(_OPTIONAL)}"
        )
    for key in _SECTIONS:
        if not isinstance(plain.get(key) or {}, dict):
            raise ConfigError(f"{path}: {key} = {plain[key]!r} is not possible; allowed: keys with their values")
    seeds, compared_at = plain.get("seeds") or [0], plain["compared_at"]
    whole = isinstance(seeds, list) and all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds = {seeds!r} is not possible; allowed: a list of different whole numbers >= 0")
    if not isinstance(compared_at, int):
        raise ConfigError(
            f"{path}: compared_at = {compared_at!r} is not possible; allowed: a number of quantizer levels"
        )


def _check_names(names: Sequence[str], path: Path) -> None:
    for name in names:
        # The name is part of a folder's name, and "@" marks the baseline's learning checks.
        if names.count(name) > 1 or not re.fullmatch(r"[\w.+-]+", name):
            raise ConfigError(
                f"{path}: the name {name!r} is not possible; allowed: letters, digits and . _ + -, each name once, "
                f"and {BASELINE!r} for the baseline alone"
            )


def _entry(entry: Any, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or "title" not in entry or set(entry) - set(_ENTRY):
        raise ConfigError(
            f"{path}, {name}: a variant has a title and may have {', '.join(_ENTRY[1:])}; given: {entry!r}"
        )
    given = {**entry, "set": entry.get("set") or {}}
    if not isinstance(given["set"], dict):
        raise ConfigError(f"{path}, {name}: set = {given['set']!r} is not possible; allowed: keys with their values")
    _check_match(given, path, name)
    return given


def _check_match(entry: Mapping[str, Any], path: Path, name: str) -> None:
    if "match" not in entry:
        return
    if entry["match"] not in [*COSTS]:
        raise ConfigError(f"{path}, {name}: match = {entry['match']!r} is not known; allowed: {', '.join(COSTS)}")
    if name == BASELINE:
        raise ConfigError(f"{path}, {name}: match is for the others, which are matched to the baseline; leave it out")


def _matched(
    variant: Variant, config: ExperimentConfig, baseline: ExperimentConfig
) -> tuple[Variant, ExperimentConfig]:
    """Return the variant and its configuration with the widths that cost as much as the baseline's."""
    model, reference = config.model, baseline.model
    match_widths = CODECS[model.kind].match_widths
    if match_widths is None or model.kind != reference.kind:
        allowed = " or ".join(repr(kind) for kind, entry in CODECS.items() if entry.match_widths)
        raise ConfigError(
            f"match = {variant.match!r} finds the widths of a SpectroStream for the cost of another; model.kind is "
            f"{model.kind!r} here and {reference.kind!r} in the baseline; allowed for both: {allowed}"
        )
    _refuse_undoing(keys_layer(variant.set), _WIDTHS, f"match = {variant.match!r} finds it")
    found = match_widths(model, reference, variant.match).config
    widths = {key: getattr(found, key.removeprefix("model.")) for key in _WIDTHS}
    return dataclasses.replace(variant, set={**variant.set, **widths}), dataclasses.replace(config, model=found)


def _check_axes(study: Study, path: Path) -> None:
    for variant in study.variants:
        if variant.axis and variant.axis not in study.axes:
            allowed = ", ".join(study.axes) or "none declared"
            raise ConfigError(
                f"{path}, {variant.name}: axis {variant.axis!r} is not among the study's axes ({allowed})"
            )
        moved = [key for key in variant.set if not key.startswith("evaluation.")]
        if variant.axis and moved != [study.axes[variant.axis]]:
            raise ConfigError(
                f"{path}, {variant.name}: a variant on the axis {variant.axis!r} changes {study.axes[variant.axis]} "
                f"and nothing else; given: {', '.join(moved) or 'nothing'}"
            )


def _refuse_undoing(layer: DictConfig, keys: Iterable[str], why: str) -> None:
    for key in keys:
        if not key.startswith("evaluation.") and OmegaConf.select(layer, key) is not None:
            raise ConfigError(f"{key} cannot be set here: {why}; change the study file instead")


def _value_at(config: ExperimentConfig, key: str) -> float | str:
    node: Any = dataclasses.asdict(config)
    for part in key.split("."):
        node = node[part]
    return node
