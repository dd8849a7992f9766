"""Simulated against measured, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sim.report.tables import number

TITLES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "e2el": "E2E",
    "throughput": "throughput",
    "slo": "SLO attainment",
}
LATENCIES = ("ttft", "tpot", "e2el")
UNDEFINED = "-"

Content = Mapping[str, Any]


def validation_table(content: Content) -> RenderableType:
    """Return the tables of a validation (`sim.study.fidelity.output.content_of`)."""
    parts: list[RenderableType] = []
    if content["kv_size_guessed"]:
        parts.append(Text(content["kv_size_guessed"]))
    parts += [Text(_heading(content)), _figures(content)]
    if content["bands"]:
        parts += [_bands(content), Text(BAND_NOTE)]
    if content["fitted"]:
        parts.append(Text("\n".join(fit_lines(content["fitted"]))))
    return Group(*parts)


BAND_NOTE = (
    "in flight: other requests in the system at arrival, in the measured run; error: simulated / "
    "measured - 1; MAPE: mean of its absolute value over requests"
)


def fit_lines(fitted: Mapping[str, Any]) -> list[str]:
    """Return what a fit found: the rows, the constants with standard errors."""
    first, last = fitted["rows"]
    lines = [
        f"fitted on rows {first}-{last} ({fitted['used']} requests) of {fitted['run']}: errors on "
        "those rows are of a fit, not of a test"
    ]
    for name, value in fitted["values_ms"].items():
        lines.append(f"  {name} = {value:.4g} ± {fitted['errors_ms'][name]:.2g}")
    lines.append(
        f"  loss {fitted['before']:.3g} -> {fitted['after']:.3g} in {fitted['replays']} replays"
    )
    return lines


def percent(value: float | None, signed: bool = True) -> str:
    """Return a fraction as per cent; undefined: a dash."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    digits = 1 if abs(value) >= 0.0995 else 2
    return f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def error_text(entry: Mapping[str, Any]) -> str:
    """Return an error: of shares in points."""
    if entry["unit"] == "share":
        return f"{100 * entry['error']:+.1f} pt"
    return percent(entry["error"])


def value_text(value: float, unit: str) -> str:
    """Return a measured or simulated value."""
    return f"{100 * value:.1f}" if unit == "share" else number(value)


def _heading(content: Content) -> str:
    text = (
        f"{content['run']}: {content['requests']} requests, {content['model']} on "
        f"{content['gpu']}, profile {content['profile']}; {content['ttft_clock']} clock"
    )
    if content["extrapolated_steps"]:
        text += f"; {content['extrapolated_steps']:,} of {content['steps']:,} steps extrapolated"
    return text


def _figures(content: Content) -> Table:
    table = Table("", "", box=SIMPLE_HEAD)
    for title in ("measured", "simulated", "error", "MAPE"):
        table.add_column(title, justify="right")
    for metric, statistics in content["errors"].items():
        for statistic, entry in statistics.items():
            unit = "%" if entry["unit"] == "share" else entry["unit"]
            table.add_row(
                f"{TITLES[metric]} {escape(statistic)}",
                f"[dim]{unit}[/]",
                value_text(entry["measured"], entry["unit"]),
                value_text(entry["simulated"], entry["unit"]),
                error_text(entry),
                percent(entry["mape"], signed=False) if "mape" in entry else "",
            )
        table.add_section()
    return table


def _bands(content: Content) -> Table:
    table = Table("load at arrival", box=SIMPLE_HEAD)
    table.add_column("n", justify="right")
    for metric in LATENCIES:
        for title in (f"{TITLES[metric]} [dim]ms[/]", "error", "MAPE"):
            table.add_column(title, justify="right")
    for name, metrics in content["bands"].items():
        cells = []
        for metric in LATENCIES:
            entry = metrics.get(metric, {}).get("mean")
            if entry is None:
                cells += [UNDEFINED] * 3
                continue
            cells += [number(entry["measured"]), percent(entry["error"])]
            cells.append(percent(entry["mape"], signed=False))
        table.add_row(escape(name), str(_count(metrics)), *cells)
    return table


def _count(metrics: Mapping[str, Any]) -> int:
    return max((s["n"] for m in metrics.values() for s in m.values()), default=0)
