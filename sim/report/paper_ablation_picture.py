"""The picture of the ablation: a row for each variant, a panel for each measure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.paper_ablation_words import how, measures
from sim.report.recipe_figures import CHARS_OF_INCH, PAPER_STYLE, framed, saved
from sim.report.recipe_parts import INK, plain
from sim.study.paper.ablation import TOKENS, TTFT, AblationResult, Measured
from sim.study.paper.studies import ENGINES, PADDED, PADDING_FREE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "ablation"
LOOKS: dict[str, dict[str, Any]] = {
    PADDED: {"color": "#16425b", "marker": "o", "markersize": 5},
    PADDING_FREE: {
        "color": "#d9772b",
        "marker": "s",
        "markersize": 5,
        "markerfacecolor": "white",
    },
}
DASHES: dict[str, Any] = {PADDED: (0, (5, 2)), PADDING_FREE: (0, (1.2, 1.4))}
"""Of the lines at variants without a component."""
RULE = "#ececec"
WIDTH = 10.0
INCHES_OF_ROW = 0.185
AXIS_INCHES = 0.9
BESIDE = 0.3
"""Rows between the marks of the two engines."""
ROOM = 1.15
"""Factor between an end of an axis and the mean next to it."""
FEW_TICKS = 3
MOST_OF_MEAN = 0.95
"""Of a mean, that an interval reaches down: the axis is logarithmic."""


def draw_ablation(result: AblationResult, folder: Path) -> list[Path]:
    """Draw every variant: a row each, a panel for each measure, a mark for each engine."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    heads = {k: v for k, v in measures(result).items() if k != TOKENS and not k.startswith(TTFT)}
    rows = _rows_drawn(result)
    height = AXIS_INCHES + len(rows) * INCHES_OF_ROW
    handles: dict[str, Any] = {}
    with mpl.rc_context(PAPER_STYLE):
        canvas = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = list(canvas.subplots(1, len(heads), sharey=True, squeeze=False)[0])
        for one, (measure, head) in zip(axes, heads.items(), strict=True):
            _panel(result, one, measure, rows, handles)
            one.set_xlabel(head)
        _labels(axes, rows)
        lines = textwrap.wrap(_caption(result), round(WIDTH * CHARS_OF_INCH))
        framed(canvas, result.ablation.file.title, handles, lines, (WIDTH, height))
        return saved(canvas, folder, NAME)


def _rows_drawn(result: AblationResult) -> list[tuple[str, str]]:
    """Return setting and label of every row, from the top; those with a colon are headings."""
    found: list[tuple[str, str]] = []
    for setting, about in result.ablation.file.settings.items():
        of = {x.variant.label: x.variant for x in result.ablation.lines if x.setting == setting}
        found.append((setting, f"{about.what}:"))
        previous = 0
        for label, variant in of.items():
            if len(variant.has) > 1 >= previous and found[-1][1] in of:
                found.append((setting, "together:"))
            previous = len(variant.has)
            found.append((setting, label))
    return found


def _panel(
    result: AblationResult,
    axes: Axes,
    measure: str,
    rows: Sequence[tuple[str, str]],
    handles: dict[str, Any],
) -> None:
    from matplotlib.ticker import FixedLocator

    of = [m for m in result.measured if m.measure == measure]
    known = [m.mean.mean for m in of if not m.at_least and m.mean.mean > 0]
    ends = min(known, default=1.0) / ROOM, max(known, default=1.0) * ROOM
    axes.set_xscale("log", base=2)
    axes.set_xlim(*ends)
    axes.xaxis.set_major_locator(FixedLocator(ticks(*ends)))
    axes.xaxis.set_major_formatter(plain)
    axes.minorticks_off()
    for at, engine in enumerate(ENGINES):
        style = LOOKS[engine]
        mine = [m for m in of if m.line.engine == engine]
        for m in mine:
            y = _row(rows, m) + (at - 0.5) * BESIDE
            drawn = _mark(axes, m, y, style, ends)
            if drawn is not None:
                handles.setdefault(f"{engine} engine", drawn)
        for setting in result.ablation.file.settings:
            _reference(axes, [m for m in mine if m.line.setting == setting], rows, style)


def ticks(low: float, high: float) -> list[float]:
    """Return powers of two from `low` to `high`; of few, those halfway between, too."""
    powers = [2.0**k for k in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]
    found = [x for x in powers if low <= x <= high]
    if len(found) < FEW_TICKS:
        found = [x for p in powers for x in (p, 1.5 * p) if low <= x <= high]
    return found


def _row(rows: Sequence[tuple[str, str]], measured: Measured) -> int:
    return rows.index((measured.line.setting, measured.line.variant.label))


def _mark(
    axes: Axes, measured: Measured, y: float, style: Mapping[str, Any], ends: tuple[float, float]
) -> Any:
    """Draw a mean with its interval, or an arrow at the edge; return what a legend shows."""
    mean = measured.mean
    if math.isnan(mean.mean):
        return None
    if measured.at_least or not mean.mean:
        x, marker = (ends[1], ">") if measured.at_least else (ends[0], "<")
        look = {**_line_of(style), "marker": marker}
        axes.plot(x, y, clip_on=False, zorder=4, **look)
        return None
    half = 0.0 if math.isnan(mean.low) else mean.high - mean.mean
    low = min(half, mean.mean * MOST_OF_MEAN)
    look = _line_of(style)
    return axes.errorbar(mean.mean, y, xerr=[[low], [half]], capsize=2, elinewidth=1, **look)


def _line_of(style: Mapping[str, Any]) -> dict[str, Any]:
    return {**style, "linestyle": "none"}


def _reference(
    axes: Axes,
    mine: Sequence[Measured],
    rows: Sequence[tuple[str, str]],
    style: Mapping[str, Any],
) -> None:
    """Draw a line at the bare variant of a setting, along its rows."""
    base = next((m for m in mine if not m.line.variant.has), None)
    if base is None or not base.mean.mean > 0:
        return
    at = [_row(rows, m) for m in mine]
    ends = [min(at) - 0.5, max(at) + 0.5]
    look = {"color": style["color"], "linestyle": DASHES[base.line.engine]}
    axes.plot([base.mean.mean] * 2, ends, linewidth=0.9, zorder=1, **look)


def _labels(axes: Sequence[Axes], rows: Sequence[tuple[str, str]]) -> None:
    first = axes[0]
    first.set_yticks(range(len(rows)), [label for _, label in rows])
    first.set_ylim(len(rows) - 0.4, -0.6)
    for text, (_, label) in zip(first.get_yticklabels(), rows, strict=True):
        if label.endswith(":"):
            text.set(fontstyle="italic", color=INK)
    for one in axes:
        one.tick_params(axis="y", length=0)
        for y, (_, label) in enumerate(rows):
            if not label.endswith(":"):
                one.axhline(y, color=RULE, linewidth=0.6, zorder=0)


def _caption(result: AblationResult) -> str:
    return (
        f"{how(result)} Vertical lines: nothing on. An arrow at an edge: at least that, or no "
        "rate at all."
    )
