"""The picture of a sweep's Sobol indices, drawn from its `indices.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.figures import COLOURS, STYLE
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE = "indices.json"
PICTURE = "indices.png"
SHARES = (-0.2, 1.2)
"""What is shown: indices are from 0 to 1, their estimates not quite."""
TITLES = {
    "request_goodput": "goodput",
    "slo_attainment": "SLO attainment",
    "output_throughput": "output tokens/s",
    "mean_ttft_ms": "TTFT mean",
    "p99_ttft_ms": "TTFT p99",
    "mean_tpot_ms": "TPOT mean",
    "p99_tpot_ms": "TPOT p99",
}
KINDS = {"first": ("alone (first-order)", COLOURS[0]), "total": ("with interactions", COLOURS[1])}
BAR = 0.36
"""Height of a bar; a parameter has two in a band of 1."""


def draw_indices(folder: Path) -> Path | None:
    """Draw the indices of a sweep's folder; None if no figure has any.

    A row of panels for each policy and grid point, a panel for each figure, two bars with 95 %
    intervals for each parameter.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cells = json.loads((folder / SOURCE).read_text(encoding="utf-8"))["cells"]
    keys = [key for key in TITLES if any(key in cell["figures"] for cell in cells)]
    if not keys:
        return None
    tallest = max(len(cell["parameters"]) for cell in cells)
    with mpl.rc_context(STYLE):
        size = (2.0 + 1.7 * len(keys), 1.0 + len(cells) * (0.8 + 0.45 * tallest))
        figure = Figure(size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(cells), len(keys), squeeze=False)
        for row, cell in zip(axes, cells, strict=True):
            for ax, key in zip(row, keys, strict=True):
                _panel(ax, cell, key)
                ax.tick_params(labelleft=ax is row[0])
            row[0].set_ylabel(_place(cell) if len(cells) > 1 else "")
        for ax, key in zip(axes[0], keys, strict=True):
            ax.set_title(TITLES[key])
        handles = [Patch(color=colour, label=title) for title, colour in KINDS.values()]
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        figure.supxlabel("share of the figure's variance, with 95 % intervals", fontsize=9)
        path = folder / PICTURE
        with written_aside(path) as aside:
            figure.savefig(aside, dpi=150, format="png", metadata={"Software": None})
    return path


def _panel(ax: Axes, cell: Mapping[str, Any], key: str) -> None:
    """Draw the bars of one figure; a figure that does not vary has none."""
    parameters = cell["parameters"]
    for at, (kind, (_, colour)) in enumerate(KINDS.items()):
        if key not in cell["figures"]:
            break
        found = [cell["figures"][key][kind][name] for name in parameters]
        values = [index["value"] for index in found]
        spread = [
            [max(index["value"] - index["low"], 0.0) for index in found],
            [max(index["high"] - index["value"], 0.0) for index in found],
        ]
        places = [row + (at - 0.5) * BAR for row in range(len(parameters))]
        style = {"elinewidth": 0.8, "ecolor": "#8a8a8a", "capsize": 2}
        ax.barh(places, values, BAR, xerr=spread, color=colour, error_kw=style)
    ax.set_yticks(range(len(parameters)), [_short(name, parameters) for name in parameters])
    ax.set_ylim(len(parameters) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(*SHARES)
    ax.axvline(0, color="#8a8a8a", linewidth=0.6)


def _short(name: str, names: Sequence[str]) -> str:
    """Return the last part of a key, or all of it if others end so."""
    last = name.rpartition(".")[2]
    return last if [n.rpartition(".")[2] for n in names].count(last) == 1 else name


def _place(cell: Mapping[str, Any]) -> str:
    fixed = [f"{k.rpartition('.')[2]} {v}" for k, v in cell["fixed"].items() if k != "policy.name"]
    return ", ".join([cell["label"], *fixed])
