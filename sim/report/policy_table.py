"""The picture of a decision table: how many to serve, by what waits and by load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.report.figures import STYLE
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, DPI = 7.2, 3.6, 120
LIMIT_COLOUR = "#d9772b"


@dataclass(frozen=True)
class DrawnTable:
    """The table of one load.

    Attributes:
        load: arrivals over what full batches can serve.
        serve: how many to serve of 0, 1, ... waiting requests; 0: wait.
    """

    load: float
    serve: Sequence[int]

    @property
    def limit(self) -> int:
        """The fewest requests that are served."""
        return next(s for s, a in enumerate(self.serve) if a)


def draw_tables(tables: Sequence[DrawnTable], title: str, path: Path) -> Path:
    """Draw tables of rising load into a PNG, a row each; the line is the control limit."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = _figure(tables, title)
        with written_aside(path) as part:
            figure.savefig(part, format="png", dpi=DPI, metadata={"Software": None})
    return path


def _figure(tables: Sequence[DrawnTable], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    most = max(max(t.serve) for t in tables)
    shown = min(len(tables[0].serve) - 1, most + max(t.limit for t in tables) // 2 + 4)
    grid = np.array([t.serve[:shown] for t in tables], dtype=np.float64)
    rows = np.arange(len(tables))
    image = axes.imshow(
        np.ma.masked_equal(grid, 0),
        aspect="auto",
        origin="lower",
        cmap="Blues",
        vmin=0,
        vmax=most,
        interpolation="nearest",
    )
    axes.grid(visible=False)
    limits = np.array([t.limit for t in tables]) - 0.5
    axes.step(
        np.repeat(limits, 2),
        np.ravel(np.column_stack((rows - 0.5, rows + 0.5))),
        color=LIMIT_COLOUR,
        linewidth=2,
    )
    for row, table in enumerate(tables):
        axes.text(table.limit - 0.8, row, f"{table.limit}", va="center", ha="right", fontsize=8)
    axes.set_yticks(rows, [f"{t.load:.2g}" for t in tables])
    axes.set(xlabel="requests waiting", ylabel="load", title=title)
    figure.colorbar(image, ax=axes, label="requests served at once; white: wait")
    return figure
