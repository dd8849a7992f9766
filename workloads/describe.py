"""What a trace looks like: numbers and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.types import Trace
from workloads.base import Ints, bad
from workloads.write import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
BINS = 36
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
FILL, LINE = "#8fb3cf", "#1c2f40"
"""Light fill and dark line: they differ in lightness, so they survive a greyscale printer."""


def describe(trace: Trace) -> dict[str, Any]:
    """Return the statistics of a trace, ready for JSON; None where a number is not defined.

    Keys: `n`, `span_s` (first to last arrival), `rate_per_s` ((n - 1) / span), `input_len` and
    `output_len` (each `mean`, `min`, `p1` to `p99`, `max`, in tokens), `rank_correlation`
    (Spearman, input against output), `sources` (name -> requests) and `notes`.
    """
    arrival = trace.arrival_s
    span_s = None if arrival is None else float(arrival[-1] - arrival[0])
    counts = np.bincount(
        np.zeros(len(trace), np.int64) if trace.source is None else trace.source,
        minlength=len(trace.sources),
    )
    return {
        "n": len(trace),
        "span_s": span_s,
        "rate_per_s": (len(trace) - 1) / span_s if span_s else None,
        "input_len": _summary(trace.input_len),
        "output_len": _summary(trace.output_len),
        "rank_correlation": _rank_correlation(trace.input_len, trace.output_len),
        "sources": dict(zip(trace.sources, counts.tolist(), strict=True)),
        "notes": dict(trace.notes),
    }


def _summary(lengths: Ints) -> dict[str, float]:
    values = np.percentile(lengths, PERCENTILES)
    quantiles = {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}
    ends = {"mean": float(lengths.mean()), "min": int(lengths.min())}
    return {**ends, **quantiles, "max": int(lengths.max())}


def _rank_correlation(first: Ints, second: Ints) -> float | None:
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def plot_histogram(trace: Trace, path: str | Path) -> None:
    """Draw the distributions of input and output length to a PNG, PDF or SVG file.

    Raises:
        BadInput: another suffix, or a place that cannot be written.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in PLOT_SUFFIXES:
        raise bad(path, f"cannot draw to it; valid suffixes: {', '.join(PLOT_SUFFIXES)}")
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, trace.input_len, "Prompt")
    _panel(right, trace.output_len, "Output")
    left.set_ylabel("requests [%]")
    names = ", ".join(trace.sources[:4]) + (", …" if len(trace.sources) > 4 else "")
    title = f"{names}: {len(trace):,} requests".replace("$", r"\$")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    with written_aside(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=160)


def _panel(axes: Axes, lengths: Ints, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = int(lengths.min()), int(lengths.max())
    if high > 20 * low:  # spread over decades
        edges = np.geomspace(low, high + 1, BINS + 1)
        axes.set_xscale("log")
    else:
        step = -(-(high + 1 - low) // BINS)
        edges = np.arange(low, high + 1 + step, step, dtype=float)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.margins(x=0.05 if high > low else 1.0)
    # Edges between whole numbers, so that no bin is empty only because none lies in it.
    edges = np.unique(np.round(edges)) - 0.5
    share = np.histogram(lengths, edges)[0] / len(lengths) * 100
    axes.stairs(share, edges, fill=True, facecolor=FILL, edgecolor=LINE, linewidth=0.8)
    for percentile, name, style in ((50, "median", "-"), (95, "95th percentile", "--")):
        value = float(np.percentile(lengths, percentile))
        axes.axvline(
            value, color=LINE, linestyle=style, linewidth=1.3, label=f"{name} {value:,.0f}"
        )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=8)
    axes.set_xlabel(f"{label} length [tokens]")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
