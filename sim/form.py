"""Which form of the core runs: interpreted Python files, or modules compiled from them."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

HEART = "sim.core.instance"
"""The module that stands for all: they are compiled together."""


def core_form() -> str:
    """Return `compiled` or `interpreted`."""
    spec = find_spec(HEART)
    origin = "" if spec is None else spec.origin or ""
    return "compiled" if origin.endswith(tuple(EXTENSION_SUFFIXES)) else "interpreted"


def unusable(folder: Path | None = None) -> str | None:
    """Return one line about compiled modules that this Python cannot load; None: there are none.

    Args:
        folder: where `sim` lies; default: where this module was imported from.
    """
    root = Path(__file__).parent.parent if folder is None else folder
    place = root / HEART.replace(".", "/")
    found = sorted(place.parent.glob(f"{place.name}.*.so"))
    found += sorted(place.parent.glob(f"{place.name}.*.pyd"))
    if not found or any(
        path.name == place.name + end for path in found for end in EXTENSION_SUFFIXES
    ):
        return None
    built = ", ".join(path.name.split(".")[1] for path in found)
    return (
        f"the compiled core in {root} is for {built} and this is {sys.implementation.cache_tag}: "
        "it runs interpreted; `make compiled` or `pip install .` with this Python compiles it"
    )
