"""YAML files of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_shipped(path: Path) -> Any:
    """Return what a YAML file of this package says, read by the C parser where there is one.

    Ten times as fast as the one in Python. Not for files of users: nested thousands deep they
    would end the process rather than raise an error.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # a safe loader
