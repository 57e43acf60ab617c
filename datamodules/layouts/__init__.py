"""The corpora whose layout is known, by the name that `spectrostream data scan --corpus` takes."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.layouts.contract import Entry, Found, Layout, LayoutError
from datamodules.layouts.folder import folder

__all__ = ["LAYOUTS", "Entry", "Found", "Layout", "LayoutError"]

LAYOUTS: Mapping[str, Layout] = {"folder": folder}
