"""The trained weights that a training starts from: finds, identifies, records and loads them."""

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

# The keys that may differ from the configuration of the weights: they change how a codec learns, not its layers.
LEARNING_KEYS = (
    "model.quantizer.bypass_probability",
    "model.quantizer.decay",
    "model.quantizer.initial_vectors",
    "model.quantizer.kmeans_iterations",
    "model.quantizer.revival_threshold",
    "model.quantizer_dropout",
)
# Buffers of the codebooks' learning; a new training does not take them over.
_LEARNING_STATE = "quantizer.learning."


class StartError(UserError):
    """`training.start_from` names weights that cannot be read, or that changed since the run began."""


@dataclass(frozen=True)
class Start:
    """Trained weights that a run starts from."""

    source: str
    """The value of `training.start_from`."""
    fingerprint: str
    """16 hexadecimal digits."""
    model: CodecConfig
    """The configuration of the weights."""

    def plain_model(self) -> dict[str, Any]:
        """Return `model` as nested dictionaries and lists, for YAML and JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self.model)))
        return plain


class Starts:
    """The weights that the runs in a folder start from.

    The folder records them, so that a run can resume when the weights were removed.

    Args:
        folder: The folder of a run or a study; None records nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        record = read_json(RunFolder(folder).start) if folder else None
        self._known = {
            source: Start(source, one["fingerprint"], config_from_plain(one["model"]))
            for source, one in (record or {}).items()
        }

    def find(self, source: str, kind: str = "spectrostream") -> Start:
        """Return the recorded start of `source`, or read it.

        Raises:
            StartError: There are no such weights of this kind.
        """
        if source not in self._known:
            codec = read_weights(source, kind)
            self._known[source] = Start(source, codec_fingerprint(codec).hex(), codec.config)
        return self._known[source]

    def fingerprint(self, source: str | None, kind: str = "spectrostream") -> str:
        """Return the fingerprint of the weights at `source`; empty for a run that starts from none."""
        return self.find(source, kind).fingerprint if source else ""

    def remember(self) -> None:
        """Write all starts that were found into the folder."""
        if self._folder and self._known:
            facts = {
                one.source: {"fingerprint": one.fingerprint, "model": one.plain_model()} for one in self._known.values()
            }
            write_json(facts, RunFolder(self._folder).start)


def read_weights(source: str, kind: str) -> TrainableCodec:
    """Read a trained codec.

    Args:
        source: What `CODECS` can find for this kind; otherwise a weights file or the folder of a run.
        kind: A key of `CODECS`.

    Raises:
        StartError: There are no such weights, or they are of another kind.
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
    """Load the weights at `source` into `codec`; its codebooks continue to learn from these vectors.

    Args:
        fingerprint: The fingerprint that the weights must have; empty allows any.

    Raises:
        StartError: The weights cannot be read, or have another fingerprint.
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
