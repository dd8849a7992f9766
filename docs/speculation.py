"""Speed-up of speculative decoding against the batch: `python docs/speculation.py`.

Llama-3.1-8B, ShareGPT lengths, a closed loop of as many requests as the batch is to hold. Writes
`docs/img/speculation.png` and, beside it, the numbers (`.csv`); about five minutes.
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

OUT = Path(__file__).parent / "img" / "speculation.png"

GPUS = ("h100", "a100-80gb")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WAYS: dict[str, dict[str, Any]] = {
    "K = 1": {"num_speculative_tokens": 1},
    "K = 3": {"num_speculative_tokens": 3},
    "K = 5": {"num_speculative_tokens": 5},
    "K = 7": {"num_speculative_tokens": 7},
    "goodput, K ≤ 7": {"num_speculative_tokens": 7, "control": "goodput"},
}
REPLICATIONS = 5
FEWEST, ROUNDS = 40, 6
"""Requests of a run: at least so many, and so many times the batch."""

LINES: dict[str, dict[str, Any]] = {
    "K = 1": {"color": "#b3c1c9", "marker": "o"},
    "K = 3": {"color": "#7d97a5", "marker": "s"},
    "K = 5": {"color": "#45687c", "marker": "^"},
    "K = 7": {"color": "#16425b", "marker": "D"},
    "goodput, K ≤ 7": {"color": "#d9772b", "marker": "*", "markersize": 8, "linestyle": "--"},
}
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "legend.frameon": False,
}


def main() -> None:
    """Simulate, write the numbers, draw."""
    rows = [
        [gpu, batch, way, *found]
        for gpu in GPUS
        for batch in BATCHES
        for way, found in speed_ups(gpu, batch).items()
    ]
    with OUT.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["gpu", "batch", "way", "speed_up", "ci_low", "ci_high", "n"])
        writer.writerows([*r[:3], *(f"{v:.4f}" for v in r[3:]), REPLICATIONS] for r in rows)
    with mpl.rc_context(STYLE):
        draw(rows).savefig(OUT, dpi=110, metadata={"Software": None})


def speed_ups(gpu: str, batch: int) -> dict[str, tuple[float, float, float]]:
    """Return the speed-up of each way over plain decoding, with a 95 % interval of paired runs."""
    plain = tokens_per_s(gpu, batch, None)
    found = {}
    for way, keys in WAYS.items():
        ratios = tokens_per_s(gpu, batch, keys) / plain
        summary = aggregate([{"ratio": float(ratio)} for ratio in ratios])
        found[way] = (summary["ratio"], summary["ratio_ci_low"], summary["ratio_ci_high"])
    print(gpu, batch, {way: round(value[0], 3) for way, value in found.items()}, flush=True)
    return found


def tokens_per_s(gpu: str, batch: int, keys: dict[str, Any] | None) -> np.ndarray[Any, Any]:
    """Return the output tokens a second of each replication."""
    config = {
        "cluster": {"gpu": gpu, "count": 1, "model": "llama-3.1-8b"},
        "policy": {"name": "continuous", "max_num_seqs": 1024, "max_num_batched_tokens": 8192},
        "workload": {
            "source": "sharegpt",
            "num_requests": max(FEWEST, ROUNDS * batch),
            "max_model_len": 8192,
            "arrivals": {"process": "closed", "concurrency": batch},
        },
        "run": {"replications": REPLICATIONS},
        "speculative": None if keys is None else {"method": "eagle", **keys},
    }
    experiment = resolve(config, "docs/speculation.py")
    choice = experiment.policies[0]
    runs = (replicate(experiment, choice, index) for index in range(REPLICATIONS))
    return np.array([run.summary["steady_output_throughput"] for run in runs])


def draw(rows: list[list[Any]]) -> Figure:
    """Return the picture: a panel for each GPU."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(GPUS), sharey=True)
    for panel, gpu in zip(panels, GPUS, strict=True):
        _panel(panel, gpu, [row[1:] for row in rows if row[0] == gpu])
    panels[0].set_ylabel("tokens a second, speculative / plain")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    return figure


def _panel(axes: Axes, gpu: str, rows: list[list[Any]]) -> None:
    for way, look in LINES.items():
        batch, _, ratio, low, high = zip(*(row for row in rows if row[1] == way), strict=True)
        below = np.subtract(ratio, low)
        above = np.subtract(high, ratio)
        kind: dict[str, Any] = {"markersize": 4, "linewidth": 1, "capsize": 2, **look}
        axes.errorbar(batch, ratio, (below, above), label=way, **kind)
    axes.axhline(1, color="black", linewidth=0.7, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("requests in flight")
    axes.set_title(f"Llama-3.1-8B on one {gpu.upper()}", loc="left", fontsize=9)


if __name__ == "__main__":
    main()
