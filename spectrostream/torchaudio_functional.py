"""The only module that imports torchaudio; all others import `resample` and the mel filters from here.

The Linux wheel of torchaudio is linked to CUDA. With a CPU build of torch its compiled part cannot be loaded
(`libc10_cuda.so` is missing), so `import torchaudio` raises. The functions used here are pure torch and do not need it.
So if torch has no CUDA library, the module that loads the compiled part is replaced before the import. The replacement
says "not available", which torchaudio accepts. With a CUDA build, nothing is replaced.
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
