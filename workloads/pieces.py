"""What a reader yields: some rows of a file, the values as the file has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from workloads.base import Ints

Rows: TypeAlias = Sequence[int] | Ints
"""Row numbers."""


@dataclass(frozen=True)
class Column:
    """Values of one field as the file has them.

    Attributes:
        name: what the file calls the column, for error messages.
        values: array, pandas series or list.
    """

    name: str
    values: Any


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        rows: row number of each, for error messages.
        columns: field of `Trace` -> column. `arrival_s` is in the unit of the format.
        dropped: reason -> rows left out of this piece.
    """

    rows: Rows
    columns: Mapping[str, Column]
    dropped: Mapping[str, int] = field(default_factory=dict)
