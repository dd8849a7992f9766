"""CoSine against the plain engine and a fixed draft: `python docs/cosine.py`.

Llama-3.1-70B on four A100-80GB, as four pipeline stages and tensor-parallel; 256 tokens in, 128
out, a closed loop of 1 to 16 requests. Writes `docs/img/cosine.png` and, beside it, the numbers
(`.csv`); a minute.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sim.study.config import resolve
from sim.study.run import replicate
from sim.study.statistics.stats import aggregate

OUT = Path(__file__).parent / "img" / "cosine.png"

LAYOUTS: dict[str, dict[str, Any]] = {
    "PP4": {"pools": [{"instances": 1, "pp": 4}], "profile": "roofline"},
    "TP4": {"pools": [{"instances": 1, "tp": 4}], "profile": "vllm-operators"},
}
BATCHES = (1, 2, 4, 8, 16)
REPLICATIONS = 5
FEWEST, ROUNDS = 40, 8
"""Requests of a run: at least so many, and so many times the batch."""

POOL = {"method": "drafter_pool", "num_speculative_tokens": 4}
GENERIC = 0.48
"""Acceptance of one drafter of the pool over all domains: 0.6 * (0.2 + 0.8 * 0.75)."""

FIXED = "one 68M draft, K = 4"
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    FIXED: (
        "continuous",
        {
            "method": "draft_model",
            "num_speculative_tokens": 4,
            "model": "llama-68m",
            "profile": "roofline",
            "draft_tensor_parallel_size": 1,
            "acceptance": {"model": "geometric", "rate": GENERIC},
        },
    ),
    "CoSine, K = 4": ("cosine", POOL),
    "CoSine, adaptive": (
        {"name": "cosine", "drafters_per_request": 0},
        POOL | {"num_speculative_tokens": 8, "control": "goodput"},
    ),
    "CoSine, ladder": (
        {"name": "cosine", "drafters_per_request": 0, "adapt": "ladder"},
        POOL | {"num_speculative_tokens": 8},
    ),
    "K = 4, not overlapped": ("cosine", POOL | {"pool": {"overlap": False}}),
    "K = 4, not routed": ({"name": "cosine", "routing": "fixed"}, POOL),
    "K = 4, not fused": ({"name": "cosine", "drafters_per_request": 1}, POOL),
}
PAPER = (3.15, 4.71)
"""Throughput over vLLM for the 70B model (arXiv:2503.10325)."""

LINES: dict[str, dict[str, Any]] = {
    FIXED: {"color": "#7d97a5", "marker": "s"},
    "CoSine, K = 4": {"color": "#16425b", "marker": "o"},
    "CoSine, adaptive": {"color": "#d9772b", "marker": "*", "markersize": 8, "linestyle": "--"},
    "K = 4, not overlapped": {"color": "#45687c", "marker": "^", "linestyle": ":"},
}
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "legend.frameon": False,
}

Row = list[Any]
Figures = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    """Simulate, write the numbers, draw."""
    rows = [
        [layout, batch, way, *found]
        for layout in LAYOUTS
        for batch in BATCHES
        for way, found in speed_ups(layout, batch).items()
    ]
    names = ["layout", "batch", "way", "speed_up", "ci_low", "ci_high"]
    names += ["over_fixed", "over_fixed_ci_low", "over_fixed_ci_high"]
    names += ["tokens_a_round", "mean_tpot_ms", "n"]
    with OUT.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([*r[:3], *(f"{v:.4f}" for v in r[3:]), REPLICATIONS] for r in rows)
    with mpl.rc_context(STYLE):
        draw(rows).savefig(OUT, dpi=110, metadata={"Software": None})


def speed_ups(layout: str, batch: int) -> dict[str, tuple[float, ...]]:
    """Return the figures of each way.

    Speed-up over plain decoding and over one fixed draft, each with its 95 % interval of paired
    runs; tokens a round; TPOT in ms.
    """
    plain = runs(layout, batch, "continuous", None)
    every = {way: runs(layout, batch, *chosen) for way, chosen in WAYS.items()}
    found = {}
    for way, mine in every.items():
        ratios = (*_ratio(mine, plain), *_ratio(mine, every[FIXED]))
        more = mine["spec_decode_acceptance_length"].mean(), mine["mean_tpot_ms"].mean()
        found[way] = (*ratios, *map(float, more))
    print(layout, batch, {way: [round(v, 2) for v in value] for way, value in found.items()})
    return found


def _ratio(mine: Figures, other: Figures) -> tuple[float, float, float]:
    ratios = mine["steady_output_throughput"] / other["steady_output_throughput"]
    if mine is other:
        return 1.0, 1.0, 1.0
    summary = aggregate([{"ratio": float(ratio)} for ratio in ratios])
    return summary["ratio"], summary["ratio_ci_low"], summary["ratio_ci_high"]


def runs(layout: str, batch: int, policy: Any, keys: dict[str, Any] | None) -> Figures:
    """Return figures of each replication."""
    config = {
        "cluster": {"gpu": "a100-80gb", "count": 4, "model": "llama-3.1-70b", **LAYOUTS[layout]},
        "policy": policy,
        "workload": {
            "source": "fixed",
            "input_len": 256,
            "output_len": 128,
            "num_requests": max(FEWEST, ROUNDS * batch),
            "max_model_len": 1024,
            "arrivals": {"process": "closed", "concurrency": batch},
        },
        "run": {"replications": REPLICATIONS},
        "speculative": keys,
    }
    experiment = resolve(config, "docs/cosine.py")
    choice = experiment.policies[0]
    every = [replicate(experiment, choice, index).summary for index in range(REPLICATIONS)]
    return {
        key: np.array([each.get(key, np.nan) for each in every], np.float64)
        for key in ("steady_output_throughput", "spec_decode_acceptance_length", "mean_tpot_ms")
    }


def draw(rows: list[Row]) -> Figure:
    """Return the picture: a panel for each layout."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(LAYOUTS), sharey=True)
    for panel, layout in zip(panels, LAYOUTS, strict=True):
        _panel(panel, layout, [row[1:] for row in rows if row[0] == layout])
    panels[0].set_ylabel("tokens a second, speculative / plain")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _panel(axes: Axes, layout: str, rows: list[Row]) -> None:
    for way, look in LINES.items():
        mine = [row for row in rows if row[1] == way]
        batch, ratio, low, high = ([row[i] for row in mine] for i in (0, 2, 3, 4))
        spread = np.subtract(ratio, low), np.subtract(high, ratio)
        kind: dict[str, Any] = {"markersize": 4, "linewidth": 1, "capsize": 2, **look}
        axes.errorbar(batch, ratio, spread, label=way, **kind)
    axes.axhline(1, color="black", linewidth=0.7, zorder=0)
    axes.axhspan(*PAPER, color="#eeeeee", zorder=0)
    axes.text(1, np.mean(PAPER), "the paper's range", va="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 5)
    axes.set_xlabel("requests in flight")
    axes.set_title(f"Llama-3.1-70B on four A100-80GB, {layout}", loc="left", fontsize=9)


if __name__ == "__main__":
    main()
