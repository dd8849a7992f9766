"""Operator tables: measured times of single operators, as CSV files that anybody can bring.

A folder holds files of the kinds below, `.csv` or `.csv.gz`, the header line first. The name of a
file ends in its kind, with anything and an underscore before it: `my_gemm.csv`. Times are those of
one GPU of the `tp`; rows of other GPUs are passed over, and so are columns not named here.

    kind                  columns                                       one row
    gemm                  gpu m n k time_ms                             activations m x k by weights
                                                                        k x n
    context_attention     gpu batch_size isl num_heads                  one layer's attention of
                          num_key_value_heads head_dim time_ms          batch_size prompts of isl
                                                                        tokens
    generation_attention  as above, and step                            batch_size decodes, the KV
                                                                        being isl + step tokens long
    custom_allreduce      gpu num_gpus message_size time_ms             message_size bytes, num_gpus
    dense                 gpu model tp layer tokens time_us             operator `layer` of `tokens`
    attention             gpu model tp prefill_chunk kv_prefill         one layer, a chunk after
                          n_decode kv_decode time_us                    kv_prefill cached tokens and
                                                                        decodes of kv_decode each
    per_sequence          gpu model tp layer sequences time_us          lm_head and sampler

The first four give a profile for any dense model of 128-wide (or whatever was measured) heads; the
other three for the models and tp they were measured at. `gpu` is a catalogue name or one of
`GPU_NAMES`, `model` the Hugging Face name of a catalogue model. Where a table has the columns
of `KEPT`, only rows with the values named there count (16-bit types, no sliding window, CUDA
graphs). Repeated rows count as their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sim.types import BadInput

Floats = NDArray[np.float64]

GPU_NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "RTX4090": "rtx-4090",
    "RTXPRO6000": "rtx-pro-6000",
}
"""What the tables at hand call a GPU -> its name in the catalogue."""

KEPT: Mapping[str, tuple[str, ...]] = {
    "gemm_dtype": ("bfloat16", "float16"),
    "attn_dtype": ("bfloat16", "float16"),
    "kv_cache_dtype": ("bfloat16", "float16"),
    "allreduce_dtype": ("bfloat16", "float16"),
    "window_size": ("0",),
    "backend": ("vllm_graph",),
}
"""Columns that a table may have -> values whose rows count."""

_SHAPE = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
_LAYOUT = ("gpu", "model", "tp")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("gpu", "m", "n", "k", "time_ms"),
    "context_attention": ("gpu", *_SHAPE, "time_ms"),
    "generation_attention": ("gpu", *_SHAPE, "step", "time_ms"),
    "custom_allreduce": ("gpu", "num_gpus", "message_size", "time_ms"),
    "dense": (*_LAYOUT, "layer", "tokens", "time_us"),
    "attention": (
        *_LAYOUT, "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us",
    ),
    "per_sequence": (*_LAYOUT, "layer", "sequences", "time_us"),
}  # fmt: skip
"""Kind of table -> the columns it must have."""

TEXT = ("gpu", "model", "layer")
MAY_BE_ZERO = ("step", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
FIRST_LINE = 2
"""Line of a file's first row; the header is line 1."""


@dataclass(frozen=True)
class Table:
    """The rows of one kind for one GPU.

    Attributes:
        files: where they come from.
        rows: the columns of `COLUMNS`, numbers as floats, times in milliseconds as `ms`; `at` says
            file and line.
    """

    files: tuple[Path, ...]
    rows: pd.DataFrame

    def numbers(self, column: str) -> Floats:
        """Return a column."""
        return self.rows[column].to_numpy(dtype=np.float64)


def read_tables(folder: Path, gpu: str) -> dict[str, Table]:
    """Read every table of a folder that has rows of a GPU.

    Args:
        folder: where the files are.
        gpu: catalogue name.

    Raises:
        BadInput: there is none, or a file has a missing column or a bad value (file and line).
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no folder of operator tables")
    found: dict[str, list[tuple[Path, pd.DataFrame]]] = {}
    seen: set[str] = set()
    for path in sorted(folder.iterdir()):
        kind = kind_of(path)
        if kind is None:
            continue
        rows = _read(path, kind)
        seen |= set(rows["gpu"])
        rows = rows[rows["gpu"] == gpu]
        if len(rows):
            found.setdefault(kind, []).append((path, rows))
    if not found:
        valid = ", ".join(sorted(seen)) or "none"
        raise BadInput(f"{folder}: no operator tables of {gpu}; GPUs with tables here: {valid}")
    return {
        kind: Table(tuple(path for path, _ in parts), pd.concat([rows for _, rows in parts]))
        for kind, parts in found.items()
    }


def kind_of(path: Path) -> str | None:
    """Return the kind of table a file's name says, None for other files."""
    name = path.name.removesuffix(".gz")
    if not name.endswith(".csv"):
        return None
    stem = f"_{name.removesuffix('.csv')}"
    kinds = [kind for kind in COLUMNS if stem.endswith(f"_{kind}")]
    return max(kinds, key=len, default=None)


def catalogue_model(name: str) -> str:
    """Return how the catalogue would spell a Hugging Face name: `llama-2-7b`."""
    return name.rpartition("/")[2].lower().removesuffix("-hf")


def _read(path: Path, kind: str) -> pd.DataFrame:
    """Read and check one file; rows that do not count (`KEPT`) are left out."""
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: not a CSV table: {reason}") from None
    wanted = COLUMNS[kind]
    for column in wanted:
        if column not in raw.columns:
            raise BadInput(
                f"{path}:1: column '{column}' is missing; a {kind} table has {', '.join(wanted)}"
            )
    for column, values in KEPT.items():
        if column in raw.columns:
            raw = raw[raw[column].isin(values)]
    rows = pd.DataFrame(index=raw.index)
    for column in wanted:
        rows[column] = raw[column] if column in TEXT else _numbers(path, column, raw[column])
    rows["gpu"] = rows["gpu"].replace(GPU_NAMES)
    unit = wanted[-1]
    rows["ms"] = rows[unit] if unit == "time_ms" else rows[unit] / 1e3
    rows["at"] = [f"{path}:{line}" for line in rows.index + FIRST_LINE]
    return rows


def _numbers(path: Path, column: str, texts: pd.Series[str]) -> Floats:
    """Return a column as numbers; `BadInput` names the first that is none or out of bounds."""
    values = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values) | (values < 0)
    if column not in MAY_BE_ZERO:
        wrong |= values == 0
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        bound = ">= 0" if column in MAY_BE_ZERO else "> 0"
        line = int(texts.index[at]) + FIRST_LINE
        text = str(texts.iloc[at])
        raise BadInput(f"{path}:{line}: {column}: {text!r:.40} is not a number {bound}")
    return values


# -- between the measured points ----------------------------------------------------------------


def line(x: ArrayLike, xs: Floats, ys: Floats) -> Floats:
    """Return the piecewise-linear function through (xs, ys) at `x`.

    Constant below the first size; in proportion to the size beyond the last.
    """
    at = np.asarray(x, dtype=np.float64)
    found: Floats = np.interp(at, xs, ys) * np.maximum(at / xs[-1], 1.0)
    return found


class LogGrid:
    """Times over a rectangle of two sizes, straight between neighbours in all three logarithms.

    A power law, the usual course of an operator's time, is then met exactly. Beyond the rectangle
    the cells at the edge go on.

    Args:
        x: sizes of the rows, rising, > 0.
        y: sizes of the columns, rising, > 0.
        ms: times, one row an x; none missing.
    """

    def __init__(self, x: Floats, y: Floats, ms: Floats) -> None:
        self._x = np.log(x)
        self._y = np.log(y)
        self._ms = np.log(ms)

    def at(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Return the times at pairs of sizes, ms."""
        i, u = _cell(self._x, np.log(np.asarray(x, dtype=np.float64)))
        j, v = _cell(self._y, np.log(np.asarray(y, dtype=np.float64)))
        ni = np.minimum(i + 1, len(self._x) - 1)
        nj = np.minimum(j + 1, len(self._y) - 1)
        low = (1 - v) * self._ms[i, j] + v * self._ms[i, nj]
        high = (1 - v) * self._ms[ni, j] + v * self._ms[ni, nj]
        found: Floats = np.exp((1 - u) * low + u * high)
        return found


def _cell(axis: Floats, at: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Return the cell of an axis each value is in, and how far into it."""
    if len(axis) == 1:
        return np.zeros(at.shape, dtype=np.intp), np.zeros(at.shape)
    i = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2)
    return i, (at - axis[i]) / (axis[i + 1] - axis[i])


def between(axis: Floats, at: float, *, logs: bool = True) -> list[tuple[int, float]]:
    """Return the neighbours of a value on an axis and their weights, which sum to 1.

    Linear in the logarithm, or (`logs` false) in the value. Beyond the axis the end cell goes on.
    """
    scale = np.log if logs else np.asarray
    i, u = _cell(np.asarray(scale(axis)), np.asarray(scale(float(at))))
    if len(axis) == 1:
        return [(0, 1.0)]
    return [(int(i), 1.0 - float(u)), (int(i) + 1, float(u))]


def pivot(rows: pd.DataFrame, columns: Sequence[str]) -> tuple[list[Floats], Floats]:
    """Return the values of some columns that occur, and the median times over all of them.

    Where nothing was measured the array holds NaN.
    """
    median = rows.groupby(list(columns))["ms"].median()
    axes = [np.unique(rows[column].to_numpy(dtype=np.float64)) for column in columns]
    keys = [median.index.get_level_values(column) for column in columns]
    ms = np.full([len(axis) for axis in axes], np.nan)
    at = tuple(
        np.searchsorted(axis, key.to_numpy(dtype=np.float64))
        for axis, key in zip(axes, keys, strict=True)
    )
    ms[at] = median.to_numpy(dtype=np.float64)
    return axes, ms


def filled(sizes: Floats, ms: Floats, axis: int) -> Floats:
    """Fill what was not measured, along one axis.

    Between two measured sizes: straight in the logarithms. Beyond the last one (the largest did not
    fit into memory): in proportion to the size. Below the first one: as long as that.
    """
    moved = np.moveaxis(ms, axis, -1).copy()
    flat = moved.reshape(-1, len(sizes))
    logs = np.log(sizes)
    for row in flat:
        known = np.flatnonzero(np.isfinite(row))
        if len(known):
            last = known[-1]
            beyond = np.maximum(sizes / sizes[last], 1.0)
            row[:] = np.exp(np.interp(logs, logs[known], np.log(row[known]))) * beyond
    return np.moveaxis(flat.reshape(moved.shape), -1, axis)
