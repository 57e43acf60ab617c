"""The one place that imports torchaudio.

The Linux wheel of torchaudio is linked to CUDA, so on a CPU build of torch its compiled part cannot load
(`libc10_cuda.so` is missing) and `import torchaudio` raises. Everything used here (`resample`, `melscale_fbanks`) is
pure torch. Where torch itself has no CUDA library, the module that loads the compiled part is therefore replaced,
before the import, by one that says "not available", which torchaudio understands. On a CUDA build nothing is touched.

Nothing else here imports torchaudio; it is the only way to `resample` and mel filters.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch

_EXTENSION = "torchaudio._extension"


def _torch_has_cuda_library() -> bool:
    library = Path(torch.__file__).parent / "lib"
    return any(library.glob("*c10_cuda*"))


def _extension_without_compiled_part() -> types.ModuleType:
    extension = types.ModuleType(_EXTENSION)
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    extension._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    extension.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    return extension


if not _torch_has_cuda_library():
    sys.modules.setdefault(_EXTENSION, _extension_without_compiled_part())

from torchaudio.functional import melscale_fbanks, resample  # noqa: E402
from torchaudio.transforms import Resample  # noqa: E402

__all__ = ["Resample", "melscale_fbanks", "resample"]
