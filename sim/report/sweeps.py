"""Tables of a sweep: a row for each point, and the Sobol indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.report.tables import number

Columns = dict[str, Sequence[object]]

FIGURES = (
    ("request_goodput", "goodput /s", 1.0),
    ("slo_attainment", "attained %", 100.0),
    ("output_throughput", "tokens/s", 1.0),
    ("mean_ttft_ms", "TTFT mean ms", 1.0),
    ("p99_ttft_ms", "TTFT p99 ms", 1.0),
    ("p99_tpot_ms", "TPOT p99 ms", 1.0),
)
"""Key, heading, factor."""

ENERGY = ("gpu_energy_j_per_output_token", "J/token", 1.0)
"""Shown as well where the sweep varies something of `power`."""


def point_columns(keys: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the columns of a table of points: values, figures with half intervals, verdict."""
    columns: Columns = {"policy": [s["label"] for s in summaries]}
    for key in keys:
        if key != "policy.name":
            columns[key] = [_value(s["values"].get(key, "")) for s in summaries]
    varies_power = any(key.startswith("power.") for key in keys)
    for key, title, factor in (*FIGURES, ENERGY) if varies_power else FIGURES:
        if any(_number(s.get(key)) == _number(s.get(key)) for s in summaries):
            columns[title] = [_mean(s, key, factor) for s in summaries]
    columns["load"] = [s["saturation"] for s in summaries]
    columns["n"] = [s["n_replications"] for s in summaries]
    return columns


def index_columns(cells: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the columns of a table of Sobol indices."""
    rows = [
        (cell, key, name)
        for cell in cells
        for key in cell["figures"]
        for name in cell["parameters"]
    ]
    columns: Columns = {"policy": [cell["label"] for cell, *_ in rows]}
    for fixed in dict.fromkeys(k for cell in cells for k in cell["fixed"] if k != "policy.name"):
        columns[fixed] = [_value(cell["fixed"].get(fixed, "")) for cell, *_ in rows]
    columns["figure"] = [key for _, key, _ in rows]
    columns["parameter"] = [name for *_, name in rows]
    for kind, title in (("first", "first-order"), ("total", "total")):
        columns[title] = [_index(cell["figures"][key][kind][name]) for cell, key, name in rows]
    return columns


def _index(index: Mapping[str, float]) -> str:
    return f"{index['value']:.2f} [{index['low']:.2f}, {index['high']:.2f}]"


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _mean(summary: Mapping[str, Any], key: str, factor: float) -> str:
    mean = _number(summary.get(key)) * factor
    half = (_number(summary.get(f"{key}_ci_high")) - _number(summary.get(f"{key}_ci_low"))) / 2
    text = number(mean)
    if half != half or not half:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} ± {half * factor:,.{decimals}f}"


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
