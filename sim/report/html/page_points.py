"""Charts of figures against a rate or another number: of a sweep, of a capacity search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.report.html.charts import against, frontier, of_class
from sim.report.html.page import Chart, Section, Style
from sim.report.html.plotting import WIDE, Axis, Line, Mark

Content = Mapping[str, Any]

OPEN = "Open markers: overloaded or backlogged; their latencies depend on the length of the run."
MOST_CLASSES = 12
"""Charts of classes, or rows of one."""
FIGURES = (
    ("p99_ttft_ms", "TTFT, 99th percentile", "ms", "ttft_ms"),
    ("mean_ttft_ms", "TTFT, mean", "ms", None),
    ("p99_tpot_ms", "TPOT, 99th percentile", "ms", "tpot_ms"),
    ("mean_e2el_ms", "E2E, mean", "ms", None),
)
"""Key, title, unit, bound of the SLO that it is held against."""


def rate_axis(title: str, lines: Sequence[Line]) -> Axis:
    """Return the axis that holds the places of all points."""
    xs = [point.x for line in lines for point in line.points]
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    if low > 0 and high > WIDE * low:
        return Axis(f"{title}, logarithmic", low / 1.15, high * 1.15, log=True)
    pad = (high - low) * 0.04
    return Axis(title, 0.0 if 0 <= low < high / 2 else low - pad, high + pad)


def point_charts(
    lines: Sequence[Line],
    x: Axis,
    per: str,
    config: Content,
    target: Mark | None,
    suffix: str,
) -> list[Chart]:
    """Return latencies, attainment, goodput and the trade of speed for throughput.

    Args:
        lines: of what was found.
        x: axis of the places.
        per: what rates are per, besides seconds, in words.
        config: with the SLO.
        target: of the attainment.
        suffix: of the key of the goodput.
    """
    slo = config.get("slo") or {}
    charts = []
    for key, title, unit, bound in FIGURES:
        value = slo.get(bound) if bound else None
        scaled = None if value is None else float(value) * float(slo.get("scale", 1))
        marks = [] if scaled is None else [Mark(scaled, f"SLO {scaled:g} {unit}")]
        charts.append(against(title, lines, key, x, Axis(unit), marks))
    share = Axis("% within the SLO", 0, 103)
    marks = [] if target is None else [target]
    charts.append(against("SLO attainment", lines, "slo_attainment", x, share, marks, 100))
    goodput = Axis(f"requests/s{per} within the SLO", 0.0)
    charts.append(against("Goodput", lines, f"request_goodput{suffix}", x, goodput))
    charts.append(frontier(lines, x.title.removesuffix(", logarithmic")))
    return [chart for chart in charts if chart is not None]


def class_sections(
    lines: Sequence[Line], x: Axis, where: str, target: Mark | None
) -> Iterator[Section]:
    """Yield the attainments of classes, a chart for each, if there are several.

    Args:
        lines: of what was found.
        x: axis of the places.
        where: end of the heading.
        target: of the attainment.
    """
    names = dict.fromkeys(n for line in lines for point in line.points for n in point.classes)
    if len(names) < 2:
        return
    axis = Axis("% within the SLO", 0, 103)
    marks = [] if target is None else [target]
    charts = [
        against(name, of_class(lines, name), "slo_attainment", x, axis, marks, 100)
        for name in list(names)[:MOST_CLASSES]
    ]
    shown = tuple(chart for chart in charts if chart is not None)
    if shown:
        series: tuple[tuple[str, Style], ...] = tuple((line.label, line.style) for line in lines)
        yield Section(f"SLO attainment by class, {where}", shown, series)
