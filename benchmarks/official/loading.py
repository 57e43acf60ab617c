"""The official SpectroStream module out of the wheel `magenta-rt`, without the wheel's dependencies.

Imported by its file path, so that the package around it (which needs much more) stays outside.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace


def load_official() -> ModuleType:
    """The module `magenta_rt/jax/spectrostream.py`; its vendored `sequence_layers` becomes importable."""
    package = _package_folder()
    sys.modules.setdefault("recurrentgemma", _recurrentgemma_names())
    sys.path.insert(0, str(package / "_vendor" / "sequence-layers"))
    spec = importlib.util.spec_from_file_location("official_spectrostream", package / "jax" / "spectrostream.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} holds no jax/spectrostream.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _package_folder() -> Path:
    spec = importlib.util.find_spec("magenta_rt")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("magenta-rt is not installed here; type: make interop")
    return Path(spec.submodule_search_locations[0])


def _recurrentgemma_names() -> ModuleType:
    """Sequence layers' recurrent layers name these in annotations; SpectroStream has no such layer."""
    module = ModuleType("recurrentgemma")
    module.__dict__["common"] = SimpleNamespace(ScanType=object)
    module.__dict__["complex_lib"] = SimpleNamespace(RealOrComplex=object, Complex=object)
    return module
