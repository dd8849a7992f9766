"""From checked pieces of columns to a `Trace`.

A reader yields `Piece`s with the values as the file has them; `TraceBuilder` checks them (the only
place that does), counts what was dropped, sorts by arrival and hands out the trace.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sim.types import Trace
from workloads.base import MAX_TOKENS, Ints, Limits, bad
from workloads.hashes import Hashes
from workloads.pieces import Column, Piece, Rows
from workloads.streams import over_rows

INTEGERS = {
    "input_len": (1, MAX_TOKENS, None),
    "output_len": (1, MAX_TOKENS, None),
    "priority": (-MAX_TOKENS, MAX_TOKENS, None),
    "prefix_group": (0, 2**53, -1),
    "prefix_len": (0, MAX_TOKENS, 0),
}
"""Field -> smallest and largest value, and what an empty cell means (None: not allowed)."""

NAMES = ("task", "source")


class TraceBuilder:
    """Checks pieces and appends them to columns; `build` returns the trace."""

    def __init__(
        self, path: Path, limits: Limits, ticks_per_s: float, absolute: bool, hashes: Hashes
    ) -> None:
        self._path = path
        self._limits = limits
        self._ticks_per_s = ticks_per_s
        self._absolute = absolute
        self._read = 0
        self._dropped: dict[str, int] = {}
        self._timed: bool | None = None
        self._arrival = np.empty(0)
        self._integers: dict[str, Ints] = {}
        self._codes: dict[str, dict[str, int]] = {}
        self._hashes = hashes

    def add(self, piece: Piece) -> None:
        """Check and append one piece."""
        self._read += len(piece.rows) + sum(piece.dropped.values())
        if self._read > self._limits.max_rows:
            raise over_rows(self._path, self._limits)
        for reason, count in piece.dropped.items():
            if count:
                self._dropped[reason] = self._dropped.get(reason, 0) + count
        if not len(piece.rows):
            return
        self._add_arrival(piece)
        for name, bounds in INTEGERS.items():
            if name in piece.columns:
                self._append(name, self._whole(piece.columns[name], piece.rows, *bounds))
        for name in NAMES:
            if name in piece.columns:
                self._append(name, self._coded(name, piece.columns[name], piece.rows))
        self._hashes.add(self._path, piece, self._integers["input_len"])

    def build(self) -> Trace:
        """Return the trace, sorted by arrival."""
        columns = self._integers
        n = len(columns.get("input_len", ()))
        if n == 0:
            left = f" ({self._read} read, all dropped)" if self._read else ""
            raise bad(self._path, f"no requests{left}")
        notes = {"read": self._read, "dropped": sum(self._dropped.values())}
        notes |= {f"dropped_{reason}": count for reason, count in self._dropped.items()}
        arrival = self._arrival if self._timed else None
        hashes = self._hashes.lists(self._path)
        if arrival is not None and self._absolute:
            arrival -= arrival.min()
        if arrival is not None:
            notes["sorted"] = int(np.count_nonzero(arrival[1:] < arrival[:-1]))
            if notes["sorted"]:
                order = np.argsort(arrival, kind="stable")
                arrival = arrival[order]
                for name, values in columns.items():
                    columns[name] = values[order]
                hashes = None if hashes is None else [hashes[i] for i in order]
        return Trace(
            columns["input_len"],
            columns["output_len"],
            arrival,
            source=columns.get("source"),
            sources=tuple(self._codes.get("source", (self._path.name.split(".")[0],))),
            priority=columns.get("priority"),
            task=columns.get("task"),
            tasks=tuple(self._codes.get("task", ("online",))),
            prefix_group=columns.get("prefix_group"),
            prefix_len=columns.get("prefix_len"),
            block_hashes=None if hashes is None else tuple(hashes),
            hash_block_tokens=self._hashes.block_tokens,
            notes=notes,
        )

    def _append(self, name: str, values: Ints) -> None:
        if name not in self._integers:
            self._integers[name] = np.empty(0, np.int64)
        _extend(self._integers[name], values)

    def _add_arrival(self, piece: Piece) -> None:
        column = piece.columns.get("arrival_s")
        values = None if column is None else self._numbers(column, piece.rows, empty=True)
        missing = np.ones(len(piece.rows), bool) if values is None else np.isnan(values)
        if self._timed is None:
            self._timed = not missing.all()
        if column is None or values is None:
            return
        if (missing == self._timed).any():
            at = int(np.argmax(missing == self._timed))
            state = "is empty" if missing[at] else "has a value"
            raise bad(
                self._path, f"{column.name} {state}, other rows differ: all or none", piece.rows[at]
            )
        if not self._timed:
            return
        wrong = ~np.isfinite(values) if self._absolute else ~((values >= 0) & (values < np.inf))
        self._reject(wrong, column, piece.rows, "expected a finite time, 0 or later")
        _extend(self._arrival, values / self._ticks_per_s)

    def _whole(self, column: Column, rows: Rows, low: int, high: int, empty: int | None) -> Ints:
        values = self._numbers(column, rows, empty=empty is not None)
        if empty is not None:
            values = np.where(np.isnan(values), empty, values) if values.dtype == float else values
            low = min(low, empty)
        wrong = ~((values >= low) & (values <= high))
        if values.dtype == float:
            wrong |= values != np.floor(values)
        expected = f"a whole number from {low} to {high}"
        self._reject(wrong, column, rows, f"expected {expected}")
        whole: Ints = values.astype(np.int64, copy=False)
        return whole

    def _numbers(self, column: Column, rows: Rows, empty: bool) -> Any:
        """Return the values as int64 or float64; an empty cell is NaN where `empty` allows it."""
        values = column.values
        kind = getattr(getattr(values, "dtype", None), "kind", "O")
        if kind in "iu":
            return np.asarray(values).astype(np.int64, copy=False)
        if kind == "f":
            numbers = np.asarray(values, np.float64)
        else:
            numbers = np.array([_number(value) for value in values], np.float64)
            garbled = np.isnan(numbers) & np.array([not _is_empty(value) for value in values])
            self._reject(garbled, column, rows, "expected a number")
        if not empty:
            self._reject(np.isnan(numbers), column, rows, "expected a number")
        return numbers

    def _coded(self, name: str, column: Column, rows: Rows) -> Ints:
        codes = self._codes.setdefault(name, {})
        missing = np.array([_is_empty(value) for value in column.values])
        self._reject(missing, column, rows, "expected a name")
        return np.array([codes.setdefault(str(v), len(codes)) for v in column.values], np.int64)

    def _reject(self, wrong: Any, column: Column, rows: Rows, expected: str) -> None:
        """Raise for the first row marked in `wrong`."""
        if not wrong.any():
            return
        at = int(np.argmax(wrong))
        value = next(iter(column.values[at : at + 1]))
        raise bad(self._path, f"{column.name} is {_shown(value)}; {expected}", rows[at])


def _extend(column: Any, values: Any) -> None:
    """Append in place. The allocator grows large blocks without copying, so the peak stays low."""
    n = len(column)
    column.resize(n + len(values), refcheck=False)
    column[n:] = values


def _shown(value: Any) -> str:
    if _is_empty(value):
        return "empty"
    value = value.item() if isinstance(value, np.generic) else value
    # A column with an empty cell is read as floats: show 5.0 as the file has it.
    is_whole = isinstance(value, float) and value.is_integer()
    return repr(int(value) if is_whole else value)[:40]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
    except OverflowError:
        return math.inf
