"""The corpora whose layout is known, by their names for `spectrostream data scan --corpus`."""

from __future__ import annotations

from collections.abc import Mapping

from datamodules.layouts.contract import Entry, Found, Layout, LayoutError
from datamodules.layouts.fma import fma
from datamodules.layouts.folder import folder
from datamodules.layouts.jamendo import jamendo
from datamodules.layouts.maestro import maestro
from datamodules.layouts.moisesdb import moisesdb
from datamodules.layouts.musdb18hq import musdb18hq
from datamodules.layouts.slakh import slakh

__all__ = ["LAYOUTS", "Entry", "Found", "Layout", "LayoutError"]

LAYOUTS: Mapping[str, Layout] = {
    "folder": folder,
    "musdb18hq": musdb18hq,
    "fma": fma,
    "jamendo": jamendo,
    "maestro": maestro,
    "moisesdb": moisesdb,
    "slakh": slakh,
}
