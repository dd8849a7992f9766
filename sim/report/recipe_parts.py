"""What the kinds of figures share: how a series looks, lines with bands, hollow points, bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.study.paper.figure_data import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.study.paper.numbers import Paper
    from sim.study.paper.recipes import Figure

INK = "#333333"
THE_PAPER = "the paper (hollow)"
FEW_TICKS = 7
THOUSANDS = 1000


@dataclass(frozen=True)
class Look:
    """How a series is drawn."""

    name: str
    colour: str
    marker: str
    dash: Any
    hatch: str


LOOKS = {
    "bucketserve": Look("BucketServe", "#16425b", "o", "-", ""),
    "distserve": Look("DistServe", "#d9772b", "s", (0, (5, 1.6)), "///"),
    "uellm": Look("UELLM", "#86b394", "^", (0, (1.2, 1.2)), "..."),
    "prefill": Look("prefill", "#16425b", "o", "-", ""),
    "decode": Look("decode", "#d9772b", "s", (0, (5, 1.6)), "///"),
    "queue": Look("prefill: waiting", "#86b394", "^", ":", "..."),
    "bucketing": Look("bucketing", "#111111", "o", "-", "xxx"),
    "Short": Look("Short", "#5b3a6b", "D", (0, (6, 1.5, 1.2, 1.5)), ""),
    "Long": Look("Long", "#9a9a9a", "v", "-", ""),
    "Mixed": Look("Mixed", "#b0506a", "P", (0, (3, 1.2)), ""),
}
OTHERS = (
    ("#7a5c86", "D", (0, (6, 1.5, 1.2, 1.5)), "\\\\\\"),
    ("#8a8a8a", "v", (0, (3, 1, 1, 1, 1, 1)), "++"),
)


def look(series: str) -> Look:
    """Return how a series is drawn; one that no figure of the paper has is drawn by its name."""
    known = LOOKS.get(series)
    return known or Look(series, *OTHERS[len(series) % len(OTHERS)])


@dataclass
class Picture:
    """What a kind of picture draws from, and what it hands back.

    Attributes:
        figure: the figure.
        rows: its table.
        paper: the paper's numbers; None: not there.
        handles: of the legend.
    """

    figure: Figure
    rows: Sequence[Row]
    paper: Paper | None
    handles: dict[str, Any]

    def panel(self, name: str) -> dict[str, list[Row]]:
        """Return the rows of a panel by series."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.panel == name:
                found.setdefault(row.series, []).append(row)
        return found

    def points(self) -> dict[str, list[tuple[Any, float]]]:
        """Return the paper's points by series."""
        if self.paper is None or self.figure.paper_name not in self.paper.figures:
            return {}
        series = self.paper.figure(self.figure.paper_name).series
        return {name: [(x, y) for x, y, _ in points] for name, points in series.items() if points}

    def keep(self, label: str, handle: Any) -> None:
        """Name something in the legend, once."""
        self.handles.setdefault(label, handle)


def line(picture: Picture, axes: Axes, rows: Sequence[Row], series: str) -> None:
    """Draw a series with its band; later ones are thinner, so that none hides another."""
    how = look(series)
    before = min(len(axes.lines), 2)
    x, y = [r.x for r in rows], [r.y for r in rows]
    (drawn,) = axes.plot(
        x,
        y,
        color=how.colour,
        linestyle=how.dash,
        marker=how.marker,
        markersize=(7, 5, 4)[before],
        linewidth=(2.8, 1.8, 1.4)[before],
    )
    ends = [max(r.low, 0.0) for r in rows], [r.high for r in rows]
    axes.fill_between(x, *ends, color=how.colour, alpha=0.22, linewidth=0)
    picture.keep(how.name, drawn)


def hollow(
    picture: Picture, axes: Axes, points: Sequence[tuple[float, float]], series: str
) -> None:
    """Draw points of the paper."""
    how = look(series)
    (marks,) = axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        linestyle="none",
        marker=how.marker,
        markersize=7.5,
        markerfacecolor="white",
        markeredgecolor=INK,
        markeredgewidth=1.2,
        zorder=5,
        clip_on=False,
    )
    picture.keep(THE_PAPER, marks)


def half_widths(rows: Sequence[Row]) -> list[float]:
    """Return half the intervals; 0 where there is none."""
    return [0.0 if math.isnan(row.low) else row.high - row.y for row in rows]


def x_axis(picture: Picture, axes: Axes, rows: Sequence[Row]) -> None:
    """Label the axis and set its ticks at points that were run."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis = picture.figure.recipe.x
    assert axis is not None, "the data were made with it"
    axes.set_xlabel(axis.label)
    if axis.log:
        axes.set_xscale("log", base=2)
        values = sorted({row.x for row in rows})
        ticks = [v for v in values if v.is_integer() and _is_power(v)]
        axes.xaxis.set_major_locator(FixedLocator(ticks if len(values) > FEW_TICKS else values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(plain)


def plain(value: float, _position: object = None) -> str:
    """Return a tick's label."""
    return f"{value:,.0f}" if value >= THOUSANDS else f"{value:g}"


def _is_power(value: float) -> bool:
    return value >= 1 and int(value) & (int(value) - 1) == 0


def level(picture: Picture, axes: Axes, y: float, label: str) -> None:
    """Mark a level."""
    drawn = axes.axhline(y, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    picture.keep(label, drawn)


def grouped(
    picture: Picture, axes: Axes, found: dict[str, list[Row]], labels: bool = False
) -> None:
    """Draw bars side by side, a group for each category."""
    width = 0.8 / len(found)
    for at, (series, rows) in enumerate(found.items()):
        how = look(series)
        shift = (at - (len(found) - 1) / 2) * width
        errors = half_widths(rows)
        bars = axes.bar(
            [r.x + shift for r in rows],
            [r.y for r in rows],
            width * 0.92,
            color=how.colour,
            edgecolor="white",
            hatch=how.hatch,
            linewidth=0.4,
            yerr=errors if any(errors) else None,
            error_kw={"capsize": 2, "elinewidth": 1, "ecolor": INK},
        )
        picture.keep(how.name, bars)
        if labels:
            axes.bar_label(
                bars,
                [f"{r.y:.0f}" if r.y >= 10 else f"{r.y:.1f}" for r in rows],
                padding=2,
                fontsize=7,
            )
    rows = next(iter(found.values()))
    names = ["\n".join(textwrap.wrap(r.category, 13)) for r in rows]
    axes.set_xticks([r.x for r in rows], names)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
