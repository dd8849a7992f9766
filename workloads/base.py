"""What every file of this package needs: the config base, limits, one-line errors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sim.types import BadInput

__all__ = [
    "MAX_TOKENS",
    "BadInput",
    "Config",
    "Draw",
    "Field",
    "Floats",
    "Ints",
    "Limits",
    "bad",
    "unknown",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Draw: TypeAlias = Callable[[np.random.Generator, int], tuple[Ints, Ints]]
"""A source of lengths: (generator, n) -> input and output tokens, shape (n,), each >= 1.

This is what an entry point of the group `bucketsim.workloads` names.
"""

MAX_TOKENS = 2**31 - 1
"""Longest prompt or output a trace may state: beyond it the number is a mistake, not a length."""


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(Config):
    """How much of a file is read before it is refused."""

    max_rows: int = Field(10_000_000, gt=0, description="rows of a trace file")
    max_bytes: int = Field(2 * 2**30, gt=0, description="bytes of a file after decompression")


def bad(where: str | Path, message: str, row: int | None = None) -> BadInput:
    """Return the error for `where` (a file or a config key), as one printable line."""
    place = f"{where}: " if row is None else f"{where}: row {row}: "
    line = " ".join((place + message).split())
    return BadInput("".join(char if char.isprintable() else "?" for char in line))


def unknown(key: str | Path, what: str, value: str, valid: Iterable[str]) -> BadInput:
    """Return the error for a name that does not exist, with the nearest and all valid names."""
    names = sorted(valid)
    near = difflib.get_close_matches(value, names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return bad(key, f"unknown {what} {value!r}; {hint}valid: {', '.join(names)}")
