"""The figures of the paper: ours with 95 % bands, the paper's points beside them.

One PDF and one PNG of each. Series are told apart in grey, too: by markers, dashes and hatches.
The paper's points are hollow. Legends stand above the axes, assumptions in the caption below.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.figures import STYLE
from sim.report.recipe_kinds import KINDS
from sim.report.recipe_parts import INK, Picture, look
from sim.study.files import written_aside
from sim.study.paper.figure_data import ALL, CROSSING, MARKS, RATIO, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from sim.study.paper.numbers import Paper
    from sim.study.paper.recipes import Figure

PAPER_STYLE: dict[Any, Any] = STYLE | {
    "axes.titlepad": 6,
    "axes.titlesize": 9,
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,
    "legend.fontsize": 8,
}
INCHES_OF_LINE = 0.15
CHARS_OF_INCH = 19.5
HEAD_INCHES = 0.30
"""Of the title; each row of the legend needs `LEGEND_INCHES`."""
TITLE_POINTS, TITLE_INCHES_OF_CHAR = 10.5, 0.092
"""Of a title; one that would be too wide is written smaller."""
LEGEND_INCHES = 0.22
LEGEND_INCHES_OF_CHAR = 0.072
HANDLE_INCHES = 0.65
PANEL_INCHES = 2.7


def draw_figure(
    figure: Figure, rows: Sequence[Row], paper: Paper | None, folder: Path, notes: Sequence[str]
) -> list[Path]:
    """Draw PDF and PNG of a figure; return their paths.

    Args:
        figure: what it is.
        rows: its table.
        paper: the paper's numbers.
        folder: where the files go.
        notes: further lines of the caption.
    """
    import matplotlib as mpl

    picture = Picture(figure, rows, paper, {})
    panels, draw = KINDS[figure.recipe.draw]
    count = panels(figure)
    width = 6.4 if count == 1 else 3.4 * count
    lines = caption(picture, notes, round(width * CHARS_OF_INCH))
    with mpl.rc_context(PAPER_STYLE):
        canvas, axes = _canvas(count, width)
        draw(picture, axes)
        title = f"{figure.paper_name}  {figure.recipe.title}"
        if figure.twin:
            title += " (padding-free twin)"
        framed(canvas, title, picture.handles, lines, (width, PANEL_INCHES))
        return saved(canvas, folder, figure.name)


def _canvas(count: int, width: float) -> tuple[Canvas, list[Axes]]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, PANEL_INCHES), layout="constrained")
    return canvas, list(canvas.subplots(1, count, squeeze=False)[0])


def framed(
    canvas: Canvas,
    title: str,
    handles: Mapping[str, Any],
    lines: Sequence[str],
    inches: tuple[float, float],
) -> None:
    """Put title and legend above the axes, the caption below, and make room for them.

    Args:
        canvas: whose layout is constrained.
        title: above all.
        handles: of the legend, by label.
        lines: of the caption.
        inches: width of the canvas and height of the axes.
    """
    labels, (width, panels) = list(handles), inches
    columns = _columns(labels, width)
    legend_rows = -(-len(labels) // columns)
    head = HEAD_INCHES + legend_rows * LEGEND_INCHES + 0.08
    foot = len(lines) * INCHES_OF_LINE + 0.12
    height = panels + head + foot
    canvas.set_size_inches(width, height)
    engine: Any = canvas.get_layout_engine()
    engine.set(rect=(0.005, foot / height, 0.985, panels / height), w_pad=0.06)
    canvas.text(
        0.012,
        1 - 0.07 / height,
        title,
        va="top",
        fontsize=min(TITLE_POINTS, TITLE_POINTS * width / (len(title) * TITLE_INCHES_OF_CHAR)),
        fontweight="bold",
    )
    canvas.text(
        0.012,
        (foot - 0.06) / height,
        "\n".join(lines),
        va="top",
        fontsize=7,
        color=INK,
        linespacing=1.3,
    )
    if labels:
        # The legend fills columns; this has it read by rows.
        labels = [label for column in range(columns) for label in labels[column::columns]]
        canvas.legend(
            [handles[label] for label in labels],
            labels,
            loc="upper left",
            bbox_to_anchor=(0.005, 1 - HEAD_INCHES / height),
            ncols=columns,
            handlelength=3.2,
            columnspacing=1.4,
            borderaxespad=0.1,
        )


def _columns(labels: Sequence[str], width: float) -> int:
    """Return the columns of a legend: all in one row if it is wide enough."""
    inches = [HANDLE_INCHES + len(label) * LEGEND_INCHES_OF_CHAR for label in labels]
    if sum(inches) < width:
        return max(len(labels), 1)
    return max(1, int(width / max(inches)))


def saved(canvas: Canvas, folder: Path, name: str) -> list[Path]:
    """Write the files, without a date in them."""
    found = []
    for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        path = folder / f"{name}.{kind}"
        with written_aside(path) as aside:
            canvas.savefig(aside, format=kind, dpi=200, metadata=metadata)
        found.append(path)
    return found


def caption(picture: Picture, notes: Sequence[str], chars: int) -> list[str]:
    """Return the lines below a figure: intervals, results, the paper's claims, assumptions."""
    figure = picture.figure
    ours = "Ours: one seed, no intervals."
    if figure.seeds > 1:
        ours = f"Ours: means of {figure.seeds} seeds with 95 % intervals (Student t)."
    parts = [f"{ours} {_results(picture)}".strip()]
    claims = [] if picture.paper is None else list(picture.paper.claims)
    said = [c.text for c in claims if c.figure == figure.paper_name]
    if said:
        parts.append(f"The paper: {'; '.join(said)}.")
    if figure.twin:
        parts.append(_twin_note(figure))
    parts += list(notes)
    parts.append(f"Assumptions: {'; '.join(figure.assumptions)}.")
    return [line for part in parts for line in textwrap.wrap(part, chars)]


def _twin_note(figure: Figure) -> str:
    if not figure.tasks:
        return "Twin: no engine takes part in this figure, it is the same."
    return "Twin: the same recipe, no engine pads; BucketServe counts the sum of the prompts."


def _results(picture: Picture) -> str:
    """Return ratios and crossings in words."""
    target, found = picture.figure.recipe.target, []
    crossings, ratios = picture.panel(CROSSING), picture.panel(RATIO)
    if crossings and target is not None:
        rates = [f"{look(s).name} {_interval(r[0], ' requests/s')}" for s, r in crossings.items()]
        found.append(f"Below {target:g} % from: {', '.join(rates)}.")
    if ratios:
        at = "" if target is not None else f" at {ratios[next(iter(ratios))][-1].x:g}"
        known = {s: r[-1] for s, r in ratios.items() if not math.isnan(r[-1].y)}
        named = [f"over {look(s).name} {_interval(row, '')}" for s, row in known.items()]
        found.append(f"BucketServe{at} {', '.join(named)}." if named else "")
    if picture.figure.recipe.draw == "curve" and target is None:
        ends = [(s, r[-1]) for s, r in picture.panel(ALL).items()]
        named = [f"{look(s).name} {_interval(row, '')}" for s, row in ends]
        found.append(f"At {ends[0][1].x:g}: {', '.join(named)}.")
    marks = picture.panel(MARKS)
    if "seconds" in marks:
        each = ", ".join(f"{row.y:.3g} s at {row.x:g}" for row in marks["seconds"])
        found.append(f"A request takes {each} requests/s.")
    if "operations" in marks:
        last, first = marks["operations"][-1], marks["operations"][0]
        found.append(
            f"{first.y:,.0f} operations with {first.x:g} bucket, {last.y:,.0f} with {last.x:g}; "
            f"the run lasts {marks['duration'][-1].y:,.0f} s."
        )
    return " ".join(found)


def _interval(row: Row, unit: str) -> str:
    if math.isnan(row.y):
        return "not within these points"
    if math.isnan(row.low):
        return f"{row.y:.3g}{unit}"
    return f"{row.y:.3g} [{row.low:.3g}, {row.high:.3g}]{unit}"
