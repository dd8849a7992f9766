"""Pictures: a fit, predicted against measured, and a replay, real against simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator

from calibrate.diff import METRICS, REAL, SIMULATED, latencies_ms
from sim.costs.profile import PhaseError
from sim.report.figures import COLOURS, STYLE
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BAND = 0.10
"""Half-width of the shaded band around "predicted = measured"."""

SHADE = "#eee8da"

TICKS = ((8.0, (1, 1.5, 2, 3, 4, 5, 7)), (300.0, (1, 2, 5)), (np.inf, (1,)))
"""Labels of a decade where the ends of an axis are less than a ratio apart."""

SIDES: dict[str, Any] = {REAL: "-", SIMULATED: (0, (4, 1.5))}
"""How the lines of the two sides are dashed."""

TITLES = {"prefill": "Prefill steps", "decode": "Decode steps", "mixed": "Mixed steps"}


@dataclass(frozen=True)
class Mark:
    """One point: what was measured and what the profile says.

    Attributes:
        kind: prefill, decode or mixed.
        measured_ms: time of the step.
        predicted_ms: price of the step.
        held_out: the prediction is that of a fit that did not see the point.
    """

    kind: str
    measured_ms: float
    predicted_ms: float
    held_out: bool

    @property
    def error_percent(self) -> float:
        """100 * (predicted / measured - 1)."""
        return 100.0 * (self.predicted_ms / self.measured_ms - 1.0)


def draw_fit(
    marks: Sequence[Mark], errors: Mapping[str, PhaseError], title: str, path: Path
) -> None:
    """Draw predicted against measured times, logarithmic, and the relative error below.

    Args:
        marks: the points; kinds without any get no panel.
        errors: held-out error by kind, written into the panels.
        title: name of the profile.
        path: PNG to write.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    kinds = [kind for kind in TITLES if any(mark.kind == kind for mark in marks)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(kinds) + 0.4, 5.4), dpi=150, layout="constrained")
        panels = figure.subplots(2, len(kinds), squeeze=False, sharex="col", height_ratios=(2.2, 1))
        for (above, below), kind in zip(panels.T, kinds, strict=True):
            group = [mark for mark in marks if mark.kind == kind]
            _times(above, group, errors.get(kind))
            _errors(below, group)
            above.set_title(TITLES[kind])
        panels[0, 0].set_ylabel("predicted, ms a step")
        panels[1, 0].set_ylabel("error of prediction, %")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#444444")
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})


def draw_replay(table: pd.DataFrame, title: str, path: Path) -> None:
    """Draw the distributions of TTFT, TPOT and E2E, real and simulated, a row per policy.

    Args:
        table: the requests of both sides (`calibrate.diff.latencies_ms`, policy, load, side).
        title: model and device.
        path: PNG to write.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    policies = list(dict.fromkeys(table["policy"]))
    with mpl.rc_context(STYLE):
        size = (9.0, 2.3 * len(policies) + 0.9)
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        panels = figure.subplots(len(policies), len(METRICS), squeeze=False, sharey=True)
        for row, policy in zip(panels, policies, strict=True):
            for axes, metric in zip(row, METRICS, strict=True):
                _distributions(axes, table[table["policy"] == policy], metric)
            row[0].set(ylabel=f"{policy}\nshare of requests", ylim=(0, 1.01))
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#444444")
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})


def _distributions(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Draw one latency of one policy, a colour a load."""
    from matplotlib import colormaps

    loads = sorted(set(table["load"]))
    darker = colormaps["Blues"](np.linspace(0.45, 1.0, len(loads)))  # told apart in grey, too
    for load, colour in zip(loads, darker, strict=True):
        for side, dash in SIDES.items():
            chosen = table[(table["load"] == load) & (table["side"] == side)]
            values = np.sort(latencies_ms(chosen)[metric].dropna())
            share = np.arange(1, len(values) + 1) / len(values)
            label = f"{side}, {load:.0%}"
            axes.plot(values, share, linestyle=dash, color=colour, label=label, linewidth=1.4)
    axes.set_xlabel(f"{METRICS[metric]}, ms")
    if metric == "ttft":
        axes.set_xscale("log")
        _label(axes.xaxis, *axes.get_xlim())


def _times(axes: Axes, marks: Sequence[Mark], error: PhaseError | None) -> None:
    """Draw predicted against measured times."""
    times = [ms for mark in marks for ms in (mark.measured_ms, mark.predicted_ms)]
    ends = np.array([min(times) / 1.3, max(times) * 1.3])
    axes.fill_between(
        ends, ends * (1 - BAND), ends * (1 + BAND), color=SHADE, label="within 10 %", zorder=0
    )
    axes.plot(ends, ends, color="#8a8a8a", linewidth=0.8, label="predicted = measured", zorder=1)
    for group, look in _groups(marks):
        measured = [mark.measured_ms for mark in group]
        axes.plot(measured, [mark.predicted_ms for mark in group], **look)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        _label(axis, *ends.tolist())
    if error is not None:
        axes.annotate(
            f"held out: {error.points} points\nmedian {error.median_abs_frac:.1%}, "
            f"p95 {error.p95_abs_frac:.1%}\nbias {error.bias_frac:+.1%}",
            (0.04, 0.97),
            xycoords="axes fraction",
            va="top",
            fontsize=8,
        )


def _errors(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draw the relative error of the same points."""
    errors = [mark.error_percent for mark in marks]
    axes.axhspan(-100 * BAND, 100 * BAND, color=SHADE, zorder=0)
    axes.axhline(0, color="#8a8a8a", linewidth=0.8, zorder=1)
    for group, look in _groups(marks):
        axes.plot([m.measured_ms for m in group], [m.error_percent for m in group], **look)
    end = 1.08 * max(100 * BAND, *map(abs, errors))
    axes.set(xlabel="measured, ms a step", ylim=(-end, end))


def _groups(marks: Sequence[Mark]) -> list[tuple[list[Mark], dict[str, Any]]]:
    """Return fitted and held-out points, each with how they look."""
    fitted = [mark for mark in marks if not mark.held_out]
    aside = [mark for mark in marks if mark.held_out]
    plain: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0.8, "clip_on": False}
    circle = {"marker": "o", "color": COLOURS[0], "markersize": 3.4, "markerfacecolor": "none"}
    diamond = {"marker": "D", "color": COLOURS[1], "markersize": 3.8}
    looks = [
        (fitted, plain | circle | {"label": "fitted"}),
        (aside, plain | diamond | {"label": "held out"}),
    ]
    return [(group, look) for group, look in looks if group]  # no points would have no extent


def _label(axis: Axis, low: float, high: float) -> None:
    """Give a logarithmic axis plain numbers."""
    axis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float) -> list[float]:
    """Return round times to label, as many as a panel has room for."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = next(steps for ratio, steps in TICKS if high < ratio * low)
    return [step * 10.0**decade for decade in decades for step in steps]
