"""The picture of a comparison, drawn from the files of its result folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.study.files import written_aside
from sim.study.statistics.clock import Clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

COLOURS = ("#16425b", "#d9772b", "#5a9367", "#9a6fb0", "#8a8a8a")
DASHES = ("-", (0, (5, 1.6)), (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.2)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("", "o", "s", "^", "x")
"""Told apart in grey, too: colours of falling darkness and dashes; after five policies a marker."""

MAX_POINTS = 2000
"""Points of a distribution drawn: finer than the picture's dots."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlepad": 16,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class _Policy:
    """What is drawn of one policy."""

    label: str
    summary: Mapping[str, Any]
    ttft_s: Floats
    e2e_s: Floats
    colour: str
    dash: Any
    marker: str


def draw_comparison(folder: Path) -> Path:
    """Draw `comparison.png` into the folder of a comparison; return its path."""
    import matplotlib as mpl
    import yaml
    from matplotlib.figure import Figure

    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    labels = list(comparison["policies"])
    config = yaml.safe_load((folder / labels[0] / "config.yaml").read_text(encoding="utf-8"))
    clock = Clock.of(config.get("engine") or {})
    drawn = [_read(folder, comparison, label, at, clock) for at, label in enumerate(labels)]
    path = folder / "comparison.png"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, _height(drawn)), dpi=150, layout="constrained")
        ttft, e2e, bars = figure.subplots(1, 3, width_ratios=(1, 1, 0.75))
        slo = config["slo"]
        _distribution(ttft, [(p, p.ttft_s) for p in drawn], _bound_s(slo, "ttft_ms"))
        ttft.set(title="Time to first token", ylabel="share of requests", xlabel="seconds")
        _distribution(e2e, [(p, p.e2e_s) for p in drawn], _bound_s(slo, "e2e_ms"))
        e2e.set(title="End-to-end latency", xlabel="seconds")
        _bars(bars, drawn)
        _legend(figure, drawn)
        figure.suptitle(_title(config, drawn), x=0.01, ha="left", fontsize=9, color="#444444")
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def _height(drawn: list[_Policy]) -> float:
    """Return the height of the picture in inches: more policies need more rows."""
    return 3.9 + 0.22 * max(len(drawn) - 5, 0)


def _read(
    folder: Path, comparison: Mapping[str, Any], label: str, at: int, clock: Clock
) -> _Policy:
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    names = [clock.since, "first_token_s", "finish_s"]
    table = pq.read_table(folder / label / "requests.parquet", columns=names)
    ttft_ms, e2e_ms = clock.latencies_ms({name: table[name].to_numpy() for name in names})
    return _Policy(
        label,
        comparison["policies"][label],
        ttft_ms / 1e3,
        e2e_ms / 1e3,
        COLOURS[at % len(COLOURS)],
        DASHES[at % len(DASHES)],
        MARKERS[at // len(COLOURS) % len(MARKERS)],
    )


def _distribution(axes: Axes, curves: list[tuple[_Policy, Floats]], bound_s: float | None) -> None:
    """Draw the share of all requests that were as fast; those never served count as slower."""
    for policy, seconds in curves:
        share = np.linspace(0, 1, min(MAX_POINTS, len(seconds) + 1))
        known = np.sort(seconds[~np.isnan(seconds)])
        at = np.ceil(share * len(seconds)).astype(int) - 1
        inside = (at >= 0) & (at < len(known))
        axes.step(
            known[at[inside]],
            share[inside],
            where="post",
            color=policy.colour,
            linestyle=policy.dash,
            linewidth=1.8,
            marker=policy.marker,
            markersize=4,
            markevery=0.12,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.005)
    axes.xaxis.set_major_formatter(_plain)
    axes.grid(visible=False, which="minor")
    if bound_s is not None:
        axes.axvline(bound_s, color="#555555", linewidth=1, linestyle=":")
        axes.annotate(
            f"SLO {_plain(bound_s)} s",
            (bound_s, 1),
            (0, 2),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color="#555555",
        )


def _bars(axes: Axes, drawn: list[_Policy]) -> None:
    """Draw throughput, and within it goodput, with their intervals beside the offered rate."""
    below = -0.62 / _height(drawn)
    rows = np.arange(len(drawn))
    names = {"steady_request_throughput": "throughput", "request_goodput": "goodput (within SLO)"}
    if all(p.summary["request_goodput"] is None for p in drawn):
        del names["request_goodput"]
    for (key, name), offset in zip(names.items(), (-0.2, 0.2), strict=False):
        means = [p.summary[key] or 0 for p in drawn]
        halves = [_half_width(p.summary, key) for p in drawn]
        down = [min(mean, half) for mean, half in zip(means, halves, strict=True)]
        filled = key == "request_goodput"
        bars = axes.barh(
            rows + (offset if len(names) > 1 else 0),
            means,
            0.36,
            xerr=(down, halves) if any(halves) else None,
            color="#16425b" if filled else "#ccd6dd",
            edgecolor="#16425b",
            linewidth=0.6,
            label=name,
            error_kw={"capsize": 2, "elinewidth": 1, "ecolor": "#d9772b"},
        )
        numbers = axes.bar_label(bars, [f"{mean:.3g}" for mean in means], padding=4, fontsize=7)
        for number in numbers:  # above the line of the offered rate
            number.set_zorder(4)
            number.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})
    _mark_offered(axes, drawn[0].summary["offered_rate"])
    axes.set_yticks(rows, [p.label for p in drawn])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
    axes.set(title="Completed requests", xlabel="requests per second")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.4, below),
        ncols=2,
        fontsize=8,
        handlelength=1,
    )


def _mark_offered(axes: Axes, rate: float | None) -> None:
    """Draw the offered rate across the bars, named above."""
    if rate is None:
        return
    axes.axvline(rate, color="#555555", linewidth=1, linestyle=":")
    axes.annotate(
        f"offered {rate:.3g}",
        (rate, 1),
        (0, 2),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        color="#555555",
    )


def _legend(figure: Figure, drawn: list[_Policy]) -> None:
    """Name the policies' lines below the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=p.colour,
            linestyle=p.dash,
            linewidth=1.8,
            marker=p.marker,
            markersize=4,
        )
        for p in drawn
    ]
    figure.legend(
        handles,
        [p.label for p in drawn],
        loc="outside lower left",
        ncols=min(len(drawn), len(COLOURS)),
        handlelength=4,
    )


def _half_width(summary: Mapping[str, Any], key: str) -> float:
    low, high = summary[f"{key}_ci_low"], summary[f"{key}_ci_high"]
    return 0.0 if low is None else (high - low) / 2


def _bound_s(slo: Mapping[str, Any], name: str) -> float | None:
    bound: float | None = slo[name]
    return None if bound is None else bound * float(slo["scale"]) / 1e3


def _title(config: Mapping[str, Any], drawn: list[_Policy]) -> str:
    cluster, workload = config["cluster"], config["workload"]
    arrivals = workload["arrivals"] or {"process": "trace"}
    n, pooled = drawn[0].summary["n_replications"], len(drawn[0].ttft_s)
    counted = f"{pooled:,} requests in {n} replications, bars with 95 % intervals"
    if n == 1:
        counted = f"{pooled:,} requests, n=1: no intervals"
    parts = (
        f"{cluster['model']} on {cluster['count']} x {cluster['gpu']}",
        f"{workload['source']}, {arrivals['process']} arrivals",
        counted,
    )
    return "   ·   ".join(parts)


def _plain(value: float, _position: object = None) -> str:
    return f"{value:g}"
