"""The charts of an HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.report.html.page import Chart, Style
from sim.report.html.plotting import (
    Axis,
    Figures,
    Line,
    Mark,
    Point,
    ends_of,
    error_of,
    figure,
    half_of,
    marked,
    named,
    number_of,
    plain_text,
    rounded,
    series,
    short,
    spanned,
)

MS_PER_S = 1000.0
BAND = 0.62
"""Of a row, for the marks of all series."""


def against(
    title: str,
    lines: Sequence[Line],
    key: str,
    x: Axis,
    y: Axis,
    marks: Sequence[Mark] = (),
    factor: float = 1.0,
) -> Chart | None:
    """Return a figure of every point against its place; None if no point has it.

    Args:
        title: of the chart.
        lines: what to draw.
        key: of the figure.
        x: axis of the places.
        y: axis of the figure; logarithmic if its values are far apart.
        marks: bounds and targets.
        factor: from the figure's unit to that of the axis.
    """
    traces, values = [], []
    for line in lines:
        known = [p for p in line.points if number_of(p.figures.get(key)) is not None]
        if not known:
            continue
        ys = [float(p.figures[key]) * factor for p in known]
        trace = series(line, [p.x for p in known], ys, known)
        halves = [half_of(p.figures, key) * factor for p in known]
        trace["error_y"] = error_of(halves, ys, _most(key, factor))
        values += ends_of(trace, "y")
        traces.append(trace)
    if not traces:
        return None
    drawn = spanned(y, [*values, *(m.value for m in marks if not m.vertical)])
    return Chart(title, figure(traces, x, drawn, marks), marks=marked(marks))


def of_class(lines: Sequence[Line], name: str) -> list[Line]:
    """Return the same lines with the figures of one class."""
    return [
        Line(
            line.label,
            line.style,
            [
                Point(p.x, {**p.classes[name], **_verdict(p)}, {}, p.hover)
                for p in line.points
                if name in p.classes
            ],
            line.joined,
        )
        for line in lines
    ]


def frontier(lines: Sequence[Line], x_title: str) -> Chart | None:
    """Return tokens/s per user against tokens/s per GPU; None if no point has both.

    Args:
        lines: what to draw.
        x_title: what places are, for the pointer's text; "" if they are nothing.
    """
    traces = []
    for line in lines:
        known = [p for p in line.points if _speed(p.figures) and _per_gpu(p.figures) is not None]
        if not known:
            continue
        xs = [_speed(p.figures)[0] for p in known]
        ys = [float(p.figures["output_throughput_per_gpu"]) for p in known]
        said = [
            Point(p.x, p.figures, {}, f"{x_title} {p.x:.4g}{p.hover}" if x_title else "")
            for p in known
        ]
        trace = series(line, xs, ys, said)
        sides = [_speed(p.figures)[1:] for p in known]
        trace["error_x"] = {
            "array": rounded([high for _, high in sides]),
            "arrayminus": rounded([low for low, _ in sides]),
        }
        halves = [half_of(p.figures, "output_throughput_per_gpu") for p in known]
        trace["error_y"] = error_of(halves, ys)
        traces.append(trace)
    if not traces:
        return None
    xs = [x for trace in traces for x in ends_of(trace, "x")]
    ys = [y for trace in traces for y in ends_of(trace, "y")]
    right = spanned(Axis("output tokens/s per user (1 / mean TPOT)", 0.0), xs)
    up = spanned(Axis("output tokens/s per GPU", 0.0), ys)
    note = (
        "Better is up and to the right. Tokens/s per GPU is over the whole run, with the time the "
        "last requests take to finish."
    )
    return Chart("Speed for users against throughput", figure(traces, right, up), note)


def distribution_chart(
    title: str, curves: Sequence[tuple[str, Style, Any, Any]], unit: str, bound: float | None
) -> Chart | None:
    """Return cumulative distributions; None without any value.

    Args:
        title: of the chart.
        curves: label, style, values and shares of each.
        unit: of the values.
        bound: of the SLO.
    """
    traces = []
    for label, look, values, shares in curves:
        positive = [(v, s) for v, s in zip(values, shares, strict=True) if v > 0]
        if not positive:
            continue
        traces.append(
            {
                **named(label, look),
                "mode": "lines",
                "x": rounded([v for v, _ in positive]),
                "y": rounded([s * 100 for _, s in positive]),
                "line": {"dash": look.dash, "width": 2, "shape": "hv"},
                "hovertemplate": "%{y:.4g} % within %{x:.4g} " + unit,
            }
        )
    if not traces:
        return None
    marks = [] if bound is None else [Mark(bound, f"SLO {bound:g} {unit}", vertical=True)]
    xs = [x for trace in traces for x in trace["x"]] + [m.value for m in marks]
    x = Axis(f"{unit}, logarithmic", min(xs) / 1.1, max(xs) * 1.1, log=True)
    drawn = figure(traces, x, Axis("% of requests", 0, 103), marks)
    return Chart(title, drawn, marks=marked(marks))


def over_time(
    title: str, curves: Sequence[tuple[str, Style, Any, Any]], y: Axis, note: str
) -> Chart:
    """Return values over the time of a run.

    Args:
        title: of the chart.
        curves: label, style, seconds and values of each.
        y: axis of the values.
        note: below the chart.
    """
    traces = [
        {
            **named(label, look),
            "mode": "lines",
            "x": rounded(times),
            "y": rounded(values),
            "line": {"dash": look.dash, "width": 1.5, "shape": "hv"},
            "hovertemplate": "%{y:.4g} at %{x:.4g} s",
        }
        for label, look, times, values in curves
    ]
    ys = [value for trace in traces for value in trace["y"]]
    xs = [value for trace in traces for value in trace["x"]]
    x = Axis("seconds since the start", 0, max(xs, default=1.0))
    # A queue of a thousand requests beside one of three is no reason for a logarithm.
    drawn = y if y.high is not None else Axis(y.title, 0, max(max(ys, default=0.0), 1.0) * 1.05)
    return Chart(title, figure(traces, x, drawn), note)


def by_row(
    title: str,
    rows: Sequence[str],
    lines: Sequence[tuple[str, Style, Mapping[str, Figures]]],
    key: str,
    x: Axis,
    factor: float = 1.0,
) -> Chart | None:
    """Return a figure with a row for each name and a mark for each series; None without any.

    Args:
        title: of the chart.
        rows: names, from the top.
        lines: label, style and, by row, figures of each series.
        key: of the figure.
        x: axis of the figure.
        factor: from the figure's unit to that of the axis.
    """
    traces, values = [], []
    for at, (label, look, found) in enumerate(lines):
        known = [n for n in rows if number_of(found.get(n, {}).get(key)) is not None]
        if not known:
            continue
        shift = ((at + 0.5) / len(lines) - 0.5) * BAND
        xs = [float(found[name][key]) * factor for name in known]
        line = Line(label, look, (), joined=False)
        trace = series(line, xs, [rows.index(name) + shift for name in known], ())
        halves = [half_of(found[name], key) * factor for name in known]
        trace["error_x"] = error_of(halves, xs, _most(key, factor))
        values += ends_of(trace, "x")
        trace["text"] = [plain_text(name) for name in known]
        trace["hovertemplate"] = "%{text}<br>%{x:.4g}"
        traces.append(trace)
    if not traces:
        return None
    drawn = figure(traces, spanned(x, values), Axis("", len(rows) - 0.5, -0.5))
    drawn["layout"]["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": [plain_text(short(name)) for name in rows],
        "zeroline": False,
    }
    drawn["layout"]["height"] = 90 + len(rows) * max(34, 15 * len(lines))
    return Chart(title, drawn)


def _most(key: str, factor: float) -> float | None:
    """Return what a figure cannot exceed."""
    return factor if key.startswith("slo_attainment") else None


def _verdict(point: Point) -> Figures:
    return {key: point.figures[key] for key in ("saturation",) if key in point.figures}


def _per_gpu(figures: Figures) -> float | None:
    return number_of(figures.get("output_throughput_per_gpu"))


def _speed(figures: Figures) -> tuple[float, ...]:
    """Return tokens/s per user, and how far its interval reaches down and up; () without."""
    tpot = number_of(figures.get("mean_tpot_ms"))
    if not tpot:
        return ()
    speed, half = MS_PER_S / tpot, half_of(figures, "mean_tpot_ms")
    up = MS_PER_S / (tpot - half) - speed if half < tpot else 0.0
    return speed, speed - MS_PER_S / (tpot + half), up
