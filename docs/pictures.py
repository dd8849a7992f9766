"""Draw the same ten requests under every policy: `python docs/pictures.py [POLICY ...]`.

Two A100-40GB with Llama-2-13B, KV over PCIe. Writes `docs/img/policies/POLICY.png`; needs a few
seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import policies
from sim.core.records import KINDS, RunRecord
from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import resolve
from sim.study.statistics.metrics import span_seconds
from sim.types import Trace

OUT = Path(__file__).parent / "img" / "policies"

REQUESTS = (  # arrival in seconds, prompt and output tokens
    (0.00, 700, 30),
    (0.02, 60, 40),
    (0.04, 1600, 16),
    (0.06, 100, 24),
    (0.10, 50, 36),
    (0.12, 1200, 12),
    (0.16, 80, 20),
    (0.22, 1900, 24),
    (0.28, 120, 32),
    (0.34, 70, 16),
)
PARAMETERS: dict[str, dict[str, Any]] = {
    # Memory for ten requests is plenty, so that nothing would be split: see the page.
    "bucketserve": {"nmax_length": 2},
    "bucketserve-optimal": {"boundaries": "fixed", "edges": [512]},
    # Means of these requests, as if 3.3 came a second, and power that is dear: else nobody waits.
    "smdp": {
        "mean_input_tokens": 578,
        "mean_output_tokens": 25,
        "mean_gap_s": 0.3,
        "power_weight_ms": 20,
    },
}
"""What is not left at its default."""
SPECULATIVE: dict[str, dict[str, Any]] = {
    "cosine": {"method": "drafter_pool", "num_speculative_tokens": 4},
}
"""Of policies that want it."""
TTFT_MS = 500
LAST_S = 3.3
"""End of the time axis: that of the slowest policy."""

FILLS: dict[str, dict[str, Any]] = {
    "prefill": {"facecolor": "#16425b", "edgecolor": "white"},
    "mixed": {"facecolor": "#7d97a5", "edgecolor": "black", "hatch": "////"},
    "decode": {"facecolor": "#d5dfe4", "edgecolor": "black"},
    "KV transfer": {"facecolor": "white", "edgecolor": "black", "hatch": "xxxxx"},
}
"""Told apart in grey, too."""
ARRIVAL = {"color": "black", "marker": "|", "markersize": 9, "linestyle": ""}
FIRST_TOKEN = {"color": "#d9772b", "marker": "o", "markersize": 4.5, "markeredgecolor": "black",
               "markeredgewidth": 0.5, "linestyle": ""}  # fmt: skip
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}

Bar = tuple[int, float, float, str]
"""Row, start and duration in seconds, fill."""


def main() -> None:
    """Draw the named policies, or all."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or policies.names():
        path = OUT / f"{name}.png"
        with mpl.rc_context(STYLE):
            draw(name, run(name)).savefig(path, dpi=110, metadata={"Software": None})
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def run(name: str) -> RunRecord:
    """Serve the requests under a policy."""
    arrival_s, input_len, output_len = (np.array(c) for c in zip(*REQUESTS, strict=True))
    trace = Trace(input_len=input_len, output_len=output_len, arrival_s=arrival_s)
    config = {
        "cluster": {"gpu": "a100-40gb", "count": 2, "model": "llama-2-13b",
                    "link": {"name": "pcie"}},
        "policy": {"name": name, **PARAMETERS.get(name, {})},
        "workload": {"source": "alpaca", "num_requests": len(REQUESTS),
                     "arrivals": {"process": "all-at-once"}},
        "slo": {"ttft_ms": TTFT_MS},
        "speculative": SPECULATIVE.get(name),
    }  # fmt: skip
    experiment = resolve(config, "docs/pictures.py")
    setup = build(experiment, experiment.policies[0])
    return simulate(trace, setup.policy, setup.specs, settings(experiment, setup.policy, trace, 0))


def draw(name: str, record: RunRecord) -> Figure:
    """Return the picture of a run: what each instance did, and what happened to each request."""
    instances = [f"{i['role']}, TP{i['tp']}" for i in record.instances]
    requests = [f"{tokens:,}" for tokens in record.requests["input_len"].tolist()]
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(len(instances) + 0.6, 6.5))
    _bars(top, _steps(record), 0.8)
    _rows(top, instances, "instance")
    top.set_title(f"{name}: ten requests, Llama-2-13B on two A100-40GB", loc="left", fontsize=9)
    _bars(bottom, _phases(record), 0.62)
    _events(bottom, record)
    _rows(bottom, requests, "prompt tokens of each request")
    bottom.set(xlabel="seconds", xlim=(-0.02, LAST_S))
    _legend(figure)
    return figure


def _steps(record: RunRecord) -> Iterator[Bar]:
    """Yield what each instance ran."""
    for step, duration_s in zip(record.steps, span_seconds(record.steps), strict=True):
        kind = KINDS[step["kind"]].removeprefix("static_")
        yield int(step["instance"]), float(step["start_s"]), float(duration_s), kind


def _phases(record: RunRecord) -> Iterator[Bar]:
    """Yield what happened to each request; the prompt may wait between its chunks."""
    columns = record.requests
    moved_s = columns["transfer_end_s"]
    starts = {
        "prefill": (columns["prefill_start_s"], columns["prefill_end_s"]),
        "KV transfer": (columns["transfer_start_s"], moved_s),
        "decode": (
            np.where(np.isnan(moved_s), columns["prefill_end_s"], moved_s),
            columns["finish_s"],
        ),
    }
    for fill, (start_s, end_s) in starts.items():
        for row, (start, end) in enumerate(zip(start_s, end_s, strict=True)):
            if end > start:
                yield row, float(start), float(end - start), fill


def _bars(axes: Axes, bars: Iterator[Bar], height: float) -> None:
    for row, start, duration, fill in bars:
        axes.barh(row, duration, height, start, linewidth=0.4, **FILLS[fill])


def _events(axes: Axes, record: RunRecord) -> None:
    """Draw arrivals, first tokens, and a line from arrival to end."""
    columns = record.requests
    rows = np.arange(len(REQUESTS))
    line: dict[str, Any] = {"linewidth": 0.7, "capstyle": "butt", "zorder": 0}
    axes.hlines(rows, columns["arrival_s"], columns["finish_s"], "black", **line)
    axes.plot(columns["arrival_s"], rows, **ARRIVAL)
    axes.plot(columns["first_token_s"], rows, **FIRST_TOKEN, zorder=3)


def _rows(axes: Axes, names: list[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel(title)
    axes.tick_params(axis="y", length=0)


def _legend(figure: Figure) -> None:
    handles: list[Any] = [Patch(label=name, linewidth=0.4, **fill) for name, fill in FILLS.items()]
    handles.insert(0, Line2D([], [], label="arrival", **ARRIVAL))
    handles.insert(1, Line2D([], [], label="waiting", color="black", linewidth=0.7))
    handles.append(Line2D([], [], label="first token", **FIRST_TOKEN))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.6)


if __name__ == "__main__":
    main()
