"""The parts of a chart, as plotly takes them.

Colours come from the page (`meta.hue` is the number of one), so that they follow its theme. Legends
are the page's, too: nothing covers data.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.report.html.page import Style

Figures = Mapping[str, Any]
Trace = dict[str, Any]

WIDE = 20.0
"""Values that are further apart get a logarithmic axis."""
DECADES = 2.1
"""Length of a logarithmic axis from which only powers of ten are labelled."""
DIGITS = 5
"""Significant digits of coordinates: finer than a pixel."""
HEIGHT = 330
SYMBOL_SIZE = 8
REACH = 1.5
"""Times the largest value: what an axis shows of intervals."""


@dataclass(frozen=True)
class Point:
    """What was found at one place of an axis.

    Attributes:
        x: the place.
        figures: as in `summary.json`.
        classes: class -> its figures.
        hover: what else to say of it.
    """

    x: float
    figures: Figures
    classes: Mapping[str, Figures] = field(default_factory=dict)
    hover: str = ""


@dataclass(frozen=True)
class Line:
    """The points of one series.

    Attributes:
        label: what it is called.
        style: of its line and markers.
        points: from left to right.
        joined: whether a line joins them.
    """

    label: str
    style: Style
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: with its unit.
        low: where it starts; None: as the data say (and it may get logarithmic).
        high: where it ends.
        log: logarithmic.
    """

    title: str
    low: float | None = None
    high: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Mark:
    """A dotted line across a chart.

    Attributes:
        value: where.
        text: what it is.
        vertical: else horizontal.
    """

    value: float
    text: str
    vertical: bool = False


def figure(traces: list[Trace], x: Axis, y: Axis, marks: Sequence[Mark] = ()) -> dict[str, Any]:
    """Return a figure as plotly takes it."""
    layout: dict[str, Any] = {
        "height": HEIGHT,
        "margin": {"l": 48, "r": 16, "t": 26, "b": 48},
        "xaxis": _axis(x),
        "yaxis": _axis(y),
        "hovermode": "closest",
        "showlegend": False,
        "shapes": [_line_of(mark) for mark in marks],
    }
    return {"data": traces, "layout": layout}


def marked(marks: Sequence[Mark]) -> str:
    """Return what dotted lines are; "" without any."""
    return "dotted: " + ", ".join(mark.text for mark in marks) if marks else ""


def plain_text(text: str) -> str:
    """Return text that plotly shows as it is: it reads some HTML."""
    return html.escape(text, quote=False)


def number_of(value: Any) -> float | None:
    """Return a figure, or None where it is undefined."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None
    return float(value)


def rounded(values: Any) -> list[float]:
    """Return coordinates with the digits that a chart can show."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def named(label: str, look: Style) -> Trace:
    """Return the start of a trace: what it is called, its colour, its entry in the legend."""
    name = plain_text(short(label))
    return {"type": "scatter", "name": name, "meta": {"hue": look.hue, "series": label}}


def series(line: Line, xs: Sequence[float], ys: Sequence[float], of: Sequence[Point]) -> Trace:
    """Return a line with markers; those of points that are not stable are open."""
    steady = [p.figures.get("saturation", "stable") == "stable" for p in of]
    symbols = [line.style.symbol + ("" if is_steady else "-open") for is_steady in steady]
    texts = [plain_text(_said(p)) for p in of]
    return {
        **named(line.label, line.style),
        "mode": "lines+markers" if line.joined else "markers",
        "x": rounded(xs),
        "y": rounded(ys),
        "text": texts,
        "line": {"dash": line.style.dash, "width": 2},
        "marker": {"symbol": symbols or line.style.symbol, "size": SYMBOL_SIZE},
        "hovertemplate": "%{y:.4g} at %{x:.4g}" + ("<br>%{text}" if any(texts) else ""),
    }


def _said(point: Point) -> str:
    verdict = str(point.figures.get("saturation", "stable"))
    return ", ".join(part for part in (point.hover, verdict) if part and part != "stable")


def short(label: str, most: int = 28) -> str:
    """Return a label that fits into a chart."""
    return label if len(label) <= most else label[: most - 1] + "…"


def half_of(figures: Figures, key: str) -> float:
    """Return half the width of a figure's interval; 0 if it has none."""
    low, high = (number_of(figures.get(key + suffix)) for suffix in ("_ci_low", "_ci_high"))
    return 0.0 if low is None or high is None else (high - low) / 2


def error_of(
    halves: Sequence[float], values: Sequence[float], most: float | None = None
) -> dict[str, Any]:
    """Return intervals; a figure is above 0 (and its axis may be logarithmic) and below `most`."""
    down = [min(half, value * 0.999) for half, value in zip(halves, values, strict=True)]
    up = list(halves)
    if most is not None:
        up = [min(half, most - value) for half, value in zip(halves, values, strict=True)]
    return {"array": rounded(up), "arrayminus": rounded(down)}


def ends_of(trace: Trace, along: str) -> list[float]:
    """Return values of a trace and where their intervals end, wide ones cut off."""
    values = trace[along]
    widest = REACH * max(values)
    ups = trace[f"error_{along}"]["array"]
    return [*values, *(min(v + up, widest) for v, up in zip(values, ups, strict=True))]


def spanned(axis: Axis, values: Sequence[float]) -> Axis:
    """Return an axis that holds the values, logarithmic if they are far apart."""
    if axis.high is not None:
        return axis
    positive = [value for value in values if value > 0]
    top = max(positive, default=1.0)
    if axis.low is None and len(positive) == len(values) > 0 and top > WIDE * min(positive):
        return Axis(f"{axis.title}, logarithmic", min(positive) / 1.4, top * 1.4, log=True)
    return Axis(axis.title, 0.0, top * 1.06)


def _axis(axis: Axis) -> dict[str, Any]:
    drawn: dict[str, Any] = {
        "title": {"text": plain_text(axis.title), "standoff": 8},
        "type": "log" if axis.log else "linear",
        "automargin": True,
        "exponentformat": "none",
        "separatethousands": True,
    }
    if axis.low is None or axis.high is None:
        return drawn
    if not axis.log:
        return drawn | {"range": [axis.low, axis.high]}
    low, high = math.log10(axis.low), math.log10(axis.high)
    ticks = (1, 2, 5) if high - low < DECADES else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    shown = [float(f"{tick}e{power}") for power in powers for tick in ticks]
    return drawn | {
        "range": rounded([low, high]),
        "tickvals": shown,
        "ticktext": [f"{value:,.0f}" if value >= 1 else f"{value:g}" for value in shown],
    }


def _line_of(mark: Mark) -> dict[str, Any]:
    along, across = ("y", "x") if mark.vertical else ("x", "y")
    ends = {f"{along}0": 0, f"{along}1": 1, f"{along}ref": "paper"}
    place = {f"{across}0": mark.value, f"{across}1": mark.value, f"{across}ref": across}
    return {
        "type": "line",
        "layer": "below",
        "line": {"dash": "dot", "width": 1.5},
        **ends,
        **place,
    }
