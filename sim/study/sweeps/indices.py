"""Sobol indices: which of the swept parameters a figure depends on.

For a figure y of independent, uniformly drawn parameters, the *first-order* index of a parameter is
the share of the variance of y that it explains alone, the *total* index the share that would be
left if all others were known: their difference is interaction. With A and B two samples, and AB_i
the sample A with column i from B (Saltelli et al. 2010, doi:10.1016/j.cpc.2009.09.018, table 2):

    first_i = mean(y_B * (y_ABi - y_A)) / var(y)      total_i = mean((y_A - y_ABi)^2) / (2 var(y))

y is centred first, which leaves the first unbiased and lowers its spread. Intervals are percentiles
of a bootstrap over the rows of the design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.files import write_json
from sim.study.statistics.stats import CONFIDENCE
from sim.study.sweeps.results import SweepResults, point_summaries
from sim.types import SimulationError

FILE = "indices.json"
FIGURES = (
    "request_goodput",
    "slo_attainment",
    "output_throughput",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_tpot_ms",
    "p99_tpot_ms",
)
"""Those that get indices, where they are defined and vary."""

RESAMPLES = 1000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Index:
    """An index and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Indices:
    """Of one figure: parameter -> first-order and total index."""

    first: Mapping[str, Index]
    total: Mapping[str, Index]


def sobol_indices(y: Floats, parameters: Sequence[str], n: int) -> Indices | None:
    """Return the indices of a figure; None if it does not vary.

    Args:
        y: the figure at the points of a Saltelli design (`design_points.saltelli_design`).
        parameters: its columns.
        n: points of a base sample.
    """
    centred = y - y[: 2 * n].mean()
    blocks = centred.reshape(len(parameters) + 2, n)
    if not blocks[:2].var() > np.finfo(float).eps * max(float(np.abs(y).max()) ** 2, 1.0):
        return None
    point = _estimate(blocks)
    rows = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    spread = np.stack([_estimate(blocks[:, picked]) for picked in rows])
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.nanpercentile(spread, [tail, 100 - tail], axis=0)
    first, total = (
        {
            name: Index(float(point[kind, i]), float(low[kind, i]), float(high[kind, i]))
            for i, name in enumerate(parameters)
        }
        for kind in (0, 1)
    )
    return Indices(first, total)


def _estimate(blocks: Floats) -> Floats:
    """Return first-order and total indices, shape (2, parameters)."""
    a, b, mixed = blocks[0], blocks[1], blocks[2:]
    variance = blocks[:2].var() or np.nan
    first = (b * (mixed - a)).mean(axis=1) / variance
    total = ((a - mixed) ** 2).mean(axis=1) / (2 * variance)
    return np.stack([first, total])


def sweep_indices(found: SweepResults) -> list[dict[str, Any]]:
    """Return the indices of every policy and grid point with ranges.

    Returns:
        For each: `label`, `fixed` (its grid values), `n`, `parameters` and `figures`: key ->
        `first` and `total` -> parameter -> `value low high`.

    Raises:
        SimulationError: tasks are missing.
    """
    missing = len(found.tasks) - len(found.rows)
    if missing:
        raise SimulationError(
            f"Sobol indices need every task, {missing} of {len(found.tasks)} have no result; "
            "go on with --resume"
        )
    cells: dict[int, list[int]] = {}
    for at, point in enumerate(found.points):
        if point["varied"]:
            cells.setdefault(point["cell"], []).append(at)
    summaries = point_summaries(found)
    return [_cell(found, summaries, members) for members in cells.values()]


def write_indices(found: SweepResults) -> list[dict[str, Any]]:
    """Compute the indices, write `indices.json` to the sweep's folder, and return them."""
    cells = sweep_indices(found)
    write_json(found.folder / FILE, {"cells": cells})
    return cells


def _cell(
    found: SweepResults, summaries: Sequence[Mapping[str, Any]], members: Sequence[int]
) -> dict[str, Any]:
    point = found.points[members[0]]
    parameters = list(point["varied"])
    n = int(found.manifest["n"])
    figures: dict[str, Any] = {}
    for key in FIGURES:
        values = [summaries[at].get(key) for at in members]
        y = np.array([np.nan if v is None else v for v in values], np.float64)
        indices = sobol_indices(y, parameters, n) if np.isfinite(y).all() else None
        if indices is not None:
            figures[key] = {"first": _plain(indices.first), "total": _plain(indices.total)}
    fixed = {k: v for k, v in point["values"].items() if k not in parameters}
    return {
        "label": point["label"],
        "fixed": fixed,
        "n": n,
        "parameters": parameters,
        "figures": figures,
    }


def widest_half(cells: Sequence[Mapping[str, Any]]) -> float:
    """Return half the width of the widest interval of all indices; 0 if there are none."""
    return max(
        (
            (index["high"] - index["low"]) / 2
            for cell in cells
            for figure in cell["figures"].values()
            for kind in figure.values()
            for index in kind.values()
        ),
        default=0.0,
    )


def _plain(indices: Mapping[str, Index]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": index.value, "low": index.low, "high": index.high}
        for name, index in indices.items()
    }
