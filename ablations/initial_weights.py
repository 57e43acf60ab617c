"""Trained weights that a training starts from: found, named by a fingerprint, remembered, put into a codec."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.provenance import read_json, write_json
from ablations.run_folder import NAMES, RunFolder
from spectrostream.errors import UserError, WeightsError
from spectrostream.interface import CodecConfig, TrainableCodec
from spectrostream.registry import CODECS, config_from_plain
from spectrostream.weights import codec_fingerprint, load_codec

# How a codec learns may differ from how the weights learnt; everything else is what they are.
LEARNING_KEYS = (
    "model.quantizer.bypass_probability",
    "model.quantizer.decay",
    "model.quantizer.initial_vectors",
    "model.quantizer.kmeans_iterations",
    "model.quantizer.revival_threshold",
    "model.quantizer_dropout",
)
# Buffers of the codebooks' learning; they begin anew.
_LEARNING_STATE = "quantizer.learning."


class StartError(UserError):
    """`training.start_from` names weights that cannot be had, or other ones than before."""


@dataclass(frozen=True)
class Start:
    """Weights by their source as typed, their fingerprint (16 hexadecimal digits) and their configuration."""

    source: str
    fingerprint: str
    model: CodecConfig

    def plain_model(self) -> dict[str, Any]:
        """The configuration as YAML and JSON take it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.model)))
        return plain


class Starts:
    """The starts that the runs in a folder name; what the folder remembers of them holds when the weights are gone."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: of a run or a study; None remembers nothing beyond this object."""
        self._folder = folder
        record = read_json(RunFolder(folder).start) if folder else None
        self._known = {
            source: Start(source, one["fingerprint"], config_from_plain(one["model"]))
            for source, one in (record or {}).items()
        }

    def find(self, source: str, kind: str = "spectrostream") -> Start:
        """What `source` names: as remembered, or read now. Raises StartError."""
        if source not in self._known:
            codec = read_weights(source, kind)
            self._known[source] = Start(source, codec_fingerprint(codec).hex(), codec.config)
        return self._known[source]

    def fingerprint(self, source: str | None, kind: str = "spectrostream") -> str:
        """Of the weights at `source`; empty where a run starts from none."""
        return self.find(source, kind).fingerprint if source else ""

    def remember(self) -> None:
        """Writes what was found into the folder."""
        if self._folder and self._known:
            facts = {
                one.source: {"fingerprint": one.fingerprint, "model": one.plain_model()} for one in self._known.values()
            }
            write_json(facts, RunFolder(self._folder).start)


def read_weights(source: str, kind: str) -> TrainableCodec:
    """The trained codec at `source`.

    It is found as `CODECS` says for its kind, or else in a file of ours or in the folder of a run. Raises StartError.
    """
    find = CODECS[kind].find_trained
    try:
        codec = find(source) if find else _read_own(source, kind)
    except WeightsError as error:
        raise StartError(f"training.start_from = {source!r}: {error}") from error
    if codec.config.kind != kind:
        raise StartError(
            f"training.start_from = {source!r} holds a codec of kind {codec.config.kind!r}, and the model is of kind "
            f"{kind!r}; type model.kind={codec.config.kind}, or start from other weights"
        )
    return codec


def _read_own(source: str, kind: str) -> TrainableCodec:
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsError(
            f"there is no such file or folder; a {kind.upper()} starts from a {NAMES.weights} or the folder of a run"
        )
    return load_codec(RunFolder(path).weights if path.is_dir() else path)


def put_start_into(codec: TrainableCodec, source: str, fingerprint: str) -> None:
    """Gives `codec` the weights at `source`; the codebooks go on learning from where they are.

    fingerprint: what the weights must have; empty for any. Raises StartError.
    """
    weights = read_weights(source, codec.config.kind)
    found = codec_fingerprint(weights).hex()
    if fingerprint and found != fingerprint:
        raise StartError(
            f"training.start_from = {source!r} holds other weights than when this run was begun (fingerprint {found}, "
            f"then {fingerprint}); put those back, or choose another folder with out=FOLDER"
        )
    state = {name: value for name, value in weights.state_dict().items() if not name.startswith(_LEARNING_STATE)}
    codec.load_state_dict(state, strict=False)
    codec.adopt_codebooks()
