"""The frontier: tables, sentences and a picture, all from the numbers."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.paper_tables import (
    cells,
    checks_text,
    markdown_table,
    mean_text,
    seeds_text,
    share_text,
    write_tables,
)
from sim.report.recipe_figures import CHARS_OF_INCH, PAPER_STYLE, framed, saved
from sim.report.recipe_parts import plain
from sim.study.files import write_text
from sim.study.paper.frontier import FrontierResult, Line, Point
from sim.study.paper.studies import ENGINES, bounds_text
from sim.study.statistics.stats import student_t

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "frontier"
COMMAND = "make frontier"
WIDTH = 9.2
PANEL_INCHES = 6.2
COLOURS = ("#16425b", "#d9772b", "#5a9367", "#111111", "#9a6fb0", "#8a8a8a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""A line has the colour, the marker, the dash of its number; their counts have no common factor."""
ROOM = 1.12
"""Of the largest capacity that is known, above it; intervals may be cut."""
HOLLOW_FROM = 6
"""Lines from this one on have hollow markers."""


def write_frontier(result: FrontierResult, folder: Path) -> list[Path]:
    """Write tables, page and picture into a folder; return their paths."""
    page = folder / f"{NAME}.md"
    write_text(page, "\n".join(frontier_page(result)) + "\n")
    return [*write_tables(folder, NAME, list(_rows(result))), page, *_draw(result, folder)]


def _rows(result: FrontierResult) -> Iterator[dict[str, Any]]:
    for p in result.points:
        yield {
            "engine": p.line.engine,
            "policy": p.line.policy,
            "line": p.line.label,
            "gpus": p.line.gpus,
            "attainment": p.attainment,
            "slo_scale": p.scale,
            "n": p.capacity.n,
            "at_least": p.at_least,
            **cells("capacity_per_s", p.capacity),
            **cells("ratio", p.ratio),
            "why_none": p.why,
        }


# -- the page -----------------------------------------------------------------------------------


def frontier_page(result: FrontierResult) -> list[str]:
    """Return the lines of the page."""
    file = result.frontier.file
    lines = [f"# {file.title}", "", f"`{COMMAND}`. {_how(result)}", ""]
    for sentence in sentences(result):
        lines += [sentence, ""]
    for engine in ENGINES:
        for share in file.attainments:
            of = _panel_of(result, engine, share)
            if of:
                lines += [f"## {_title(engine, share)}", "", *_table(result, of), ""]
    return lines[:-1]


def _how(result: FrontierResult) -> str:
    file = result.frontier.file
    base = next(line.label for line in _lines(result) if line.policy == file.baseline)
    parts = [
        f"{seeds_text(result.frontier.seeds)}, known to {share_text(file.search.width)}; ratios "
        f"to “{base}” paired.",
        f"{_workload(result)['num_requests']:,} requests at each rate; "
        f"{checks_text(result.checks)}",
        f"Bounds at scale {_lowest(result):g}: {bounds_text(_config(result))}.",
        f"Assumptions: {'; '.join(file.assumptions)}; policies with their defaults.",
    ]
    left_out = [f"{name} ({why})" for name, why in result.frontier.left_out.items()]
    if left_out:
        parts.append(f"Left out: {'; '.join(left_out)}.")
    return " ".join(parts)


def _lowest(result: FrontierResult) -> float:
    return min(result.frontier.file.scales)


def _config(result: FrontierResult) -> str:
    return result.frontier.lines[0].configs[_lowest(result)]


def _workload(result: FrontierResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_config(result))["workload"]
    return found


def _title(engine: str, share: float) -> str:
    return f"{engine.capitalize()} engine, {share_text(share)} of every class"


def _panel_of(result: FrontierResult, engine: str, share: float) -> dict[Line, list[Point]]:
    found: dict[Line, list[Point]] = {}
    for p in result.points:
        if (p.line.engine, p.attainment) == (engine, share):
            found.setdefault(p.line, []).append(p)
    return found


def _table(result: FrontierResult, of: dict[Line, list[Point]]) -> list[str]:
    scales = [f"scale {scale:g}" for scale in result.frontier.file.scales]
    rows = [[line.label, *(_cell(result, p) for p in points)] for line, points in of.items()]
    return markdown_table(["capacity [requests/s] (ratio)", *scales], rows)


def _cell(result: FrontierResult, point: Point) -> str:
    if not any(point.values):
        return f"none: {point.why}"
    text = mean_text(point.capacity, "at least " if point.at_least else "")
    if not math.isnan(point.ratio.mean) and point.line.policy != result.frontier.file.baseline:
        text += f" ({mean_text(point.ratio)} x)"
    if point.why:
        lacking = sum(not value for value in point.values)
        text += f"; {lacking} of {len(point.values)} seeds at no rate"
    return text


# -- sentences ----------------------------------------------------------------------------------


def sentences(result: FrontierResult) -> list[str]:
    """Return what the numbers say, one paragraph each."""
    said = []
    for engine in ENGINES:
        for share in result.frontier.file.attainments:
            of = _panel_of(result, engine, share)
            if of:
                parts = [_best(result, of), _beaten(result, of), _never(of)]
                text = " ".join(part for part in parts if part)
                said.append(f"**{_title(engine, share)}.** {text}")
    return said


def _best(result: FrontierResult, of: dict[Line, list[Point]]) -> str:
    """Return who has the largest capacity at each scale, and who cannot be told from it."""
    found: dict[str, list[str]] = {}
    for at, scale in enumerate(result.frontier.file.scales):
        points = sorted((points[at] for points in of.values()), key=lambda p: -_mean(p))
        best = points[0]
        if not _mean(best):
            continue
        label = best.line.label
        near = [p.line.label for p in points[1:] if is_close(best.values, p.values)]
        if near:
            label += f" (not told from it: {', '.join(near)})"
        text = mean_text(best.capacity, "at least " if best.at_least else "")
        found.setdefault(label, []).append(f"{text} at scale {scale:g}")
    said = [f"{label} {', '.join(rates)}" for label, rates in found.items()]
    return f"Highest capacity, requests/s: {'; '.join(said)}." if said else ""


def _mean(point: Point) -> float:
    mean = point.capacity.mean
    return 0.0 if math.isnan(mean) else mean


def is_close(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the paired difference of two capacities cannot be told from none."""
    found = student_t([a - b for a, b in zip(values, others, strict=True)])
    return found.low <= 0 <= found.high


def _beaten(result: FrontierResult, of: dict[Line, list[Point]]) -> str:
    """Return at how many scales each line certainly beats the baseline, or is beaten by it."""
    over, under = [], []
    for line, points in of.items():
        if line.policy == result.frontier.file.baseline:
            continue
        ratios = [p.ratio for p in points if not math.isnan(p.ratio.mean)]
        above = [r for r in ratios if r.low > 1]
        if above:
            text = f"{line.label} at {len(above)} of {len(ratios)} scales (up to "
            over.append(f"{text}{max(r.mean for r in above):.3g} x)")
        elif ratios and all(r.high < 1 for r in ratios):
            under.append(line.label)
    base = next(x.label for x in of if x.policy == result.frontier.file.baseline)
    parts = [f"Certainly above {base}: {', '.join(over)}."] if over else []
    parts += [f"Certainly below it at every scale: {', '.join(under)}."] if under else []
    return " ".join(parts)


def _never(of: dict[Line, list[Point]]) -> str:
    """Return who misses the target at some scale, whatever the rate."""
    found: dict[str, list[str]] = {}
    for line, points in of.items():
        scales = [f"{p.scale:g}" for p in points if not any(p.values)]
        if len(scales) == len(points):
            found.setdefault("any scale", []).append(line.label)
        elif scales:
            found.setdefault(f"scale {' and '.join(scales)}", []).append(line.label)
    if not found:
        return ""
    said = [
        f"at {scales}: {'everybody' if len(names) == len(of) else ', '.join(names)}"
        for scales, names in found.items()
    ]
    return f"No rate reaches the target {'; '.join(said)}."


# -- the picture --------------------------------------------------------------------------------


def _lines(result: FrontierResult) -> list[Line]:
    first = result.frontier.lines[0].engine
    return [line for line in result.frontier.lines if line.engine == first]


def _draw(result: FrontierResult, folder: Path) -> list[Path]:
    """Draw capacity over the scale of the bounds, a panel for each engine and share."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = result.frontier.file
    handles: dict[str, Any] = {}
    with mpl.rc_context(PAPER_STYLE):
        canvas = Figure(figsize=(WIDTH, PANEL_INCHES), layout="constrained")
        axes = canvas.subplots(
            len(ENGINES), len(file.attainments), sharex=True, sharey=True, squeeze=False
        )
        for row, engine in zip(axes, ENGINES, strict=True):
            for one, share in zip(row, file.attainments, strict=True):
                _panel(result, one, _panel_of(result, engine, share), handles)
                one.set_title(_title(engine, share))
        for row in axes:
            row[0].set_ylabel("capacity [requests/s]")
        for one in axes[-1]:
            one.set_xlabel("scale of the bounds")
        lines = textwrap.wrap(_caption(result), round(WIDTH * CHARS_OF_INCH))
        framed(canvas, file.title, handles, lines, (WIDTH, PANEL_INCHES))
        return saved(canvas, folder, NAME)


def _panel(
    result: FrontierResult, axes: Axes, of: dict[Line, list[Point]], handles: dict[str, Any]
) -> None:
    labels = [line.label for line in _lines(result)]
    for line, points in of.items():
        at = labels.index(line.label)
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        means = [p.capacity.mean for p in points]
        halves = [
            0.0 if math.isnan(p.capacity.low) else p.capacity.high - p.capacity.mean for p in points
        ]
        drawn = axes.errorbar(
            [p.scale for p in points],
            means,
            yerr=halves if any(halves) else None,
            color=colour,
            linestyle=DASHES[at % len(DASHES)],
            marker=marker,
            markersize=5.5,
            markerfacecolor=colour if at < HOLLOW_FROM else "white",
            linewidth=2.0 if at < 3 else 1.3,
            capsize=2,
            elinewidth=1,
        )
        handles.setdefault(line.label, drawn)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(result.frontier.file.scales))
    axes.xaxis.set_major_formatter(plain)
    axes.minorticks_off()
    known = [p.capacity.mean for p in result.points if not p.at_least]
    axes.set_ylim(0, ROOM * max((mean for mean in known if mean == mean), default=1.0))


def _caption(result: FrontierResult) -> str:
    nobody = "At 0: no rate reaches the target."
    same = [x.label for x in _lines(result) if x.policy in result.frontier.file.never_pad]
    if same:
        nobody += f" The same in both rows, for they never pad: {', '.join(same)}."
    return f"{_how(result)} {nobody}"
