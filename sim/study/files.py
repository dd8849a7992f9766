"""Writing results: aside first, then renamed, so that no file is ever half-written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.types import BadInput
from workloads.write import written_aside

__all__ = [
    "json_text",
    "output_file",
    "output_folder",
    "plain",
    "write_json",
    "write_text",
    "written_aside",
]


def output_folder(path: Path) -> Path:
    """Make a folder for results.

    Raises:
        BadInput: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"folder {path}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise BadInput(f"folder {path}: no permission to write there")
    return path


def output_file(path: Path) -> Path:
    """Make the folder of a file to write.

    Raises:
        BadInput: it is a folder itself, or its folder cannot be made or written to.
    """
    if not path.name or path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")
    output_folder(path.parent)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json_text(data) + "\n")


def json_text(data: Mapping[str, Any]) -> str:
    """Return one JSON object; what is undefined (NaN, infinite) is null."""
    return json.dumps(plain(data), indent=2, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return data as JSON takes it: plain Python, what is undefined (NaN, infinite) null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
