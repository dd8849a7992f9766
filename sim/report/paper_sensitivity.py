"""How far each assumption moves the claims: one picture, tables, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.paper_claims import interval, rows_as_markdown, said
from sim.report.recipe_figures import PAPER_STYLE, saved
from sim.report.recipe_parts import INK, THE_PAPER
from sim.study.files import write_text
from sim.study.paper.claims import explained, joint_choices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.study.paper.claims import Grid, Judged, Result

NAME = "sensitivity"
COLUMNS = 3
PANEL_INCHES = (2.9, 3.0)
TICKS = (
    (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
    (0.5, 0.7, 1, 1.5, 2, 3, 4),
    (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4, 1.7),
)
"""Of an axis: the first of these with enough of them inside."""
ENOUGH = 3
OURS, SPAN, POINT = "#16425b", "#9db4c0", "#d9772b"
HARDLY = 1.02
"""An assumption that moves ours by a smaller factor is not drawn."""
MOST = 6
"""Assumptions of a table's row."""


def write_sensitivity(result: Result, grids: Sequence[Grid], folder: Path) -> list[Path]:
    """Write `sensitivity.md`, `.png` and `.pdf`; return their paths."""
    page = folder / f"{NAME}.md"
    write_text(page, markdown(result, grids))
    return [page, *draw(result, folder)]


def headline(result: Result) -> list[Judged]:
    """Return the claims that are ratios of two systems."""
    return [one for one in result.judged if one.claim.kind == "ratio" and one.claim.section == 9]


# -- the picture --------------------------------------------------------------------------------


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw how far each assumption alone moves each headline ratio."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    claims = headline(result)
    named = result.study.assumptions.assumptions
    moving = [n for n in named if any(one.influence(n) > HARDLY for one in claims)]
    moving.sort(key=lambda n: math.prod(one.influence(n) for one in claims))
    rows = -(-len(claims) // COLUMNS)
    with mpl.rc_context(PAPER_STYLE):
        size = (2.2 + COLUMNS * PANEL_INCHES[0], rows * PANEL_INCHES[1] + 0.6)
        canvas = Canvas(figsize=size, layout="constrained")
        grid: Any = canvas.subplots(rows, COLUMNS, sharey=True, squeeze=False)
        handles: dict[str, Any] = {}
        flat = [axes for line in grid for axes in line]
        for axes, one in zip(flat, claims, strict=False):
            _panel(axes, one, moving, handles)
        for axes in flat[len(claims) :]:
            axes.set_axis_off()
        for line in grid:
            line[0].set_yticks(range(len(moving)), [named[n].label for n in moving], fontsize=7.5)
        canvas.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper left",
            ncols=len(handles),
            fontsize=8,
        )
        canvas.supxlabel(
            "ratio of the two systems (logarithmic), one assumption changed at a time", fontsize=9
        )
        return saved(canvas, folder, NAME)


def _panel(axes: Axes, one: Judged, moving: Sequence[str], handles: dict[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    alone = one.alone()
    here = one.check.mean
    for at, name in enumerate(moving):
        means = [s.mean for s in alone.get(name, ()) if s.mean > 0]
        if not means:
            continue
        ends = min([here, *means]), max([here, *means])
        (line,) = axes.plot(ends, (at, at), color=SPAN, linewidth=5, solid_capstyle="butt")
        (dots,) = axes.plot(
            means, [at] * len(means), linestyle="none", marker="|", color=OURS, markersize=8
        )
        handles.setdefault("range over the values of an assumption", line)
        handles.setdefault("one value", dots)
    handles.setdefault(
        "ours, paper set", axes.axvline(here, color=OURS, linewidth=1.4, linestyle="-")
    )
    handles.setdefault(
        "no difference", axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    )
    if one.claim.value is not None:
        mark = axes.axvline(one.claim.value, color=POINT, linewidth=1.4, linestyle=(0, (5, 1.6)))
        handles.setdefault(THE_PAPER.replace(" (hollow)", ""), mark)
    axes.set_xscale("log")
    axes.margins(x=0.06)
    low, high = axes.get_xlim()
    inside = [[t for t in ticks if low <= t <= high] for ticks in TICKS]
    ticks = next((one for one in inside if len(one) >= ENOUGH), inside[-1])
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title(f"{one.claim.id} ({one.claim.figure})", fontsize=8.5)


# -- the page -----------------------------------------------------------------------------------


def markdown(result: Result, grids: Sequence[Grid]) -> str:
    """Return the page: what decides each claim, in words and tables."""
    lines = [
        "## What decides the claims",
        "",
        *conclusions(result),
        "",
        "## How much each assumption explains",
        "",
        f"Share of the variance of log(ours) over {result.points} joint points that an assumption "
        "explains by itself; the rest is joint effects and seeds.",
        "",
        *_explained_table(result),
        "",
        "## One assumption at a time",
        "",
        *_alone_table(result),
        "",
    ]
    for found in grids:
        lines += _grid_lines(result, found)
    return "\n".join(lines)


def conclusions(result: Result) -> list[str]:
    """Return one sentence for each headline claim, from the figures only."""
    return [f"* {_conclusion(result, one)}" for one in headline(result)]


def _conclusion(result: Result, one: Judged) -> str:
    named = result.study.assumptions.assumptions
    moves = sorted(((one.influence(n), n) for n in named), reverse=True)
    large = [f"{named[n].label} (by a factor of up to {f:.2g})" for f, n in moves[:3] if f > HARDLY]
    still = sum(f <= HARDLY for f, _ in moves)
    joint = one.verdict.agree + one.verdict.against + one.verdict.unclear
    holds = f"{one.verdict.agree} of {joint} joint points decide as the paper set does"
    moved = f"it is moved most by {_listed(large)}" if large else "no assumption alone moves it"
    return (
        f"`{one.claim.id}`: {interval(one.ours)} against the paper's {said(one)}, "
        f"{one.verdict.name}; {moved}; {still} of {len(moves)} assumptions move it by less than "
        f"{HARDLY - 1:.0%}; {holds}."
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _explained_table(result: Result) -> list[str]:
    chosen = joint_choices(result.study, result.points)
    rows = [["claim", "explained, largest first"]]
    for one in headline(result):
        shares = sorted(
            ((explained(one, chosen, n), n) for n in result.study.assumptions.assumptions),
            key=lambda pair: (math.isnan(pair[0]), -pair[0]),
        )
        named = result.study.assumptions.assumptions
        parts = [f"{named[n].label} {s:.0%}" for s, n in shares[:MOST] if s >= 0.01]
        rows.append([f"`{one.claim.id}`", "; ".join(parts) or "nothing above 1 %"])
    return rows_as_markdown(rows)


def _alone_table(result: Result) -> list[str]:
    claims = headline(result)
    rows = [["assumption", "value", *(f"`{one.claim.id}`" for one in claims)]]
    rows.append(["paper set", "", *(f"{one.check.mean:.3g}" for one in claims)])
    for name, assumption in result.study.assumptions.assumptions.items():
        for value in list(assumption.values)[1:]:
            cells = []
            for one in claims:
                found = next((s for s in one.alone().get(name, ()) if s.value == value), None)
                cells.append("" if found is None else _moved(one, found.mean))
            rows.append([assumption.label, value, *cells])
    return rows_as_markdown(rows)


def _moved(one: Judged, mean: float) -> str:
    """Return a mean; a dot where it is the paper set's."""
    if math.isnan(mean):
        return "undefined"
    return "·" if mean == one.check.mean else f"{mean:.3g}"


def _grid_lines(result: Result, found: Grid) -> list[str]:
    named = result.study.assumptions.assumptions
    down, across = (named[name].label for name in found.pair.of)
    lines = [
        f"## {down} against {across}",
        "",
        f"{found.pair.why[0].upper()}{found.pair.why[1:]}.",
        "",
    ]
    for claim, cells in found.found.items():
        rows = [[f"`{claim}`", *(f"{across} {column}" for column in found.columns)]]
        for row in found.rows:
            means = [cells[row, column].mean for column in found.columns]
            shown = ["undefined" if math.isnan(m) else f"{m:.3g}" for m in means]
            rows.append([f"{down} {row}", *shown])
        lines += [*rows_as_markdown(rows), ""]
    return lines
