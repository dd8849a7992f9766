"""Pictures of a validation: distributions on both sides, errors over the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sim.report.figures import STYLE
from sim.study.fidelity.measured import METRICS, Floats
from sim.study.fidelity.replay import Replayed
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MINE = "#8a8a8a", "#d9772b"
NAMES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "e2el": "End-to-end latency",
}
LOG_SPAN = 20.0
"""Ratio of p99 to p1 from which an axis is logarithmic."""

SECONDS_FROM_MS = 3000.0
"""Medians from which an axis is in seconds."""

SUFFIXES = (".png", ".pdf")


def draw_validation(made: Replayed, folder: Path) -> Path:
    """Draw `cdf.png` and `cdf.pdf` into a folder; return the former's path."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6), dpi=150, layout="constrained")
        for axes, metric in zip(figure.subplots(1, 3), METRICS, strict=True):
            _distributions(axes, made, metric)
        _finish(figure, made)
        _save(figure, folder / "cdf")
    return folder / "cdf.png"


def _distributions(axes: Axes, made: Replayed, metric: str) -> None:
    real, mine = made.measured.latency_ms[metric], made.latency_ms[metric]
    real, mine = real[~np.isnan(real)], mine[~np.isnan(mine)]
    axes.set(title=NAMES[metric], ylim=(0, 1.01))
    if not len(real):
        return
    seconds = float(np.median(real)) >= SECONDS_FROM_MS
    factor = 1e-3 if seconds else 1.0
    low, high = np.percentile(np.concatenate([real, mine]), (1, 99))
    if low > 0 and high / low > LOG_SPAN:
        axes.set_xscale("log")
        _plain_ticks(axes)
    _steps(axes, real * factor, INK, "-", 3.2, "measured")
    _steps(axes, mine * factor, MINE, (0, (4, 1.2)), 1.6, "simulated")
    bound = getattr(made.experiment.slo.bounds(), {"e2el": "e2e_ms"}.get(metric, f"{metric}_ms"))
    if bound is not None:
        axes.axvline(bound * factor, color="#b0506a", linewidth=1.0, linestyle=":", label="SLO")
    axes.set_xlabel("seconds" if seconds else "milliseconds")
    if metric == "ttft":
        axes.set_ylabel("share of requests")


def _steps(axes: Axes, values: Floats, colour: str, dash: object, width: float, label: str) -> None:
    values = np.sort(values)
    share = np.arange(1, len(values) + 1) / len(values)
    axes.step(
        values,
        share,
        where="post",
        color=colour,
        linestyle=dash,
        linewidth=width,
        label=label,
    )


def _plain_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers, at decades, or finer where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, made: Replayed) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=len(handles),
    )
    cluster = made.experiment.cluster
    title = (
        f"{cluster.model} on {cluster.gpu}, {len(made.measured.trace)} requests of "
        f"{made.measured.name}; {made.clock} clock"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#444444")


def _save(figure: Figure, stem: Path) -> None:
    for suffix in SUFFIXES:
        path = stem.with_suffix(suffix)
        dated = {"Software": None} if suffix == ".png" else {"CreationDate": None}
        with written_aside(path) as aside:
            figure.savefig(aside, format=suffix[1:], metadata=dated)
