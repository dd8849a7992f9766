"""Does Ascendra serve more than its baselines? `python docs/ascendra.py [WORKLOAD ...]`.

Runs `examples/ascendra.yaml` on each workload: the capacity of every policy (highest rate at which
90 % of the requests meet both bounds) in each replication, Ascendra's over the best baseline's with
a 95 % interval, the same with one parameter changed at a time, and the verdict of
`sim/study/paper/verdict.py` on its claim. Prints Markdown and draws docs/img/ascendra-claim.png
(with the workloads named, so name none to draw both). Six minutes on two shared cores.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sim.study.capacity.attainment import Target
from sim.study.capacity.search import Point, PolicyCapacity, capacities
from sim.study.config import read_config, resolve
from sim.study.paper.verdict import Claimed, Setting, Verdict, judge
from sim.study.statistics.stats import Interval, student_t

CONFIG = Path(__file__).parent.parent / "examples" / "ascendra.yaml"
PICTURE = Path(__file__).parent / "img" / "ascendra-claim.png"
WORKLOADS: dict[str, dict[str, Any]] = {
    "sharegpt": {},
    "longbench": {"slo.ttft_ms": 2500},
    "longbench, 2048": {"slo.ttft_ms": 2500, "workload.max_model_len": 2048},
}
"""What differs from the example. Requests are cut to the artifact's context of 8,192 tokens, or to
that of DistServe's evaluation."""
SENSITIVITY: dict[str, tuple[Any, ...]] = {
    "high_share": (0.67,),
    "margin_s": (0.0, 1.0),
    "packing": ("chunked",),
    "order": ("sjf",),
    "enforce": (True,),
    "ticket_seats": (0.05, 0.0),
}
"""One value at a time in place of the default. Two thirds of three instances are two."""
SEATS = 1024
"""Seats an instance in the setting where they bind nobody; 128 in the artifact."""
CLAIM = Claimed(value=1.7, bound=1.0, side="above")
"""Abstract: "by up to 1.7x compared to vLLM and Sarathi-Serve"."""
WIDTH = 0.02
OURS = "ascendra"
BEST = "best of these"
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 7.5,
    "legend.frameon": False,
}
MARK: dict[str, Any] = {"color": "#16425b", "marker": "o", "markersize": 4, "capsize": 2,
                        "linewidth": 1}  # fmt: skip
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A capacity, and a ratio of capacities.

    Attributes:
        label: the baseline, or what is changed.
        rate: requests per second.
        over: Ascendra's over the baseline's, or its own over the best baseline's.
        point: what a policy comes to at its capacity.
    """

    label: str
    rate: Interval
    over: Interval
    point: Point | None = None


@dataclass(frozen=True)
class Found:
    """All about one workload.

    Attributes:
        name: of the workload.
        ours: Ascendra's capacity.
        baselines: the baselines, the best of them in each replication, those with more seats.
        changed: Ascendra, and Ascendra with something changed.
        verdict: on the claim.
    """

    name: str
    ours: Interval
    baselines: list[Row]
    changed: list[Row]
    verdict: Verdict


def main() -> None:
    """Print the tables and the verdict of each workload; draw the ratios."""
    everything = []
    for name in sys.argv[1:] or WORKLOADS:
        everything.append(judged(name, capacities_of(name)))
        report(everything[-1])
    draw(everything)


def capacities_of(name: str) -> dict[str, PolicyCapacity]:
    """Return the capacities on a workload, by label."""
    data = read_config(CONFIG)
    entries = [{"name": e} if isinstance(e, str) else e for e in data["policy"]]
    changed = [
        {"name": OURS, "label": f"{key}={_plain(value)}", key: value}
        for key, values in SENSITIVITY.items()
        for value in values
    ]
    roomy = [
        {**e, "label": f"{e.get('label', e['name'])}, seats={SEATS}", "max_num_seqs": SEATS}
        for e in entries
    ]
    data["policy"] = entries + changed + roomy
    overrides = [f"workload.source={name.split(',')[0]}"]
    overrides += [f"{key}={value}" for key, value in WORKLOADS[name].items()]
    experiment = resolve(data, str(CONFIG), overrides)
    return capacities(experiment, Target(0.9), WIDTH, jobs=2, curve=()).policies


def judged(name: str, policies: dict[str, PolicyCapacity]) -> Found:
    """Return what was found on a workload."""
    rates = {k: np.array([c.rate_per_s for c in p.crossings]) for k, p in policies.items()}
    ours = rates[OURS]
    plain = {k: v for k, v in rates.items() if k != OURS and "=" not in k}
    roomy = {k: v for k, v in rates.items() if ", seats=" in k and not k.startswith(OURS)}
    best, best_roomy = (np.max(list(of.values()), axis=0) for of in (plain, roomy))
    compared = plain | {BEST: best} | roomy
    points: dict[str, Point | None] = {k: p.at_capacity for k, p in policies.items()}
    baselines = [
        Row(k, interval(v), interval(ours / v), points.get(k)) for k, v in compared.items()
    ]
    changed = [
        Row(k, interval(v), interval(v / (best_roomy if ", seats=" in k else best)), points[k])
        for k, v in rates.items()
        if k not in compared
    ]
    settings = [
        Setting(*row.label.split("=", 1), row.over.mean, row.over.low, row.over.high)
        for row in changed
        if row.label != OURS
    ]
    verdict = judge(CLAIM, interval(ours / best), settings)
    return Found(name, interval(ours), baselines, changed, verdict)


def _plain(value: Any) -> str:
    """Return a value as a config has it."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def report(found: Found) -> None:
    """Print what was found on a workload."""
    print(f"\n{found.name}: capacity at 90 % attainment, {found.ours.n} replications, ", end="")
    print("95 % intervals\n\n| policy | requests/s | Ascendra over it | TTFT, TPOT met |")
    print("|---|---|---|---|")
    for row in found.baselines:
        print(f"| {row.label} | {shown(row.rate)} | {shown(row.over)} | {met(row.point)} |")
    print("\n| changed | requests/s | over the best baseline | TTFT, TPOT met | moved or taken |")
    print("|---|---|---|---|---|")
    for row in found.changed:
        cells = (row.label, shown(row.rate), shown(row.over), met(row.point), moved(row.point))
        print(f"| {' | '.join(cells)} |")
    print(f"\nVerdict: **{found.verdict.name}**: {found.verdict.reason}.", flush=True)


def interval(values: Values) -> Interval:
    """Return the mean with its interval."""
    return student_t(values.tolist())


def met(point: Point | None) -> str:
    """Return the attainment of either bound at the capacity."""
    if point is None:
        return ""
    shares = (point.figures[f"slo_attainment_{bound}"] for bound in ("ttft", "tpot"))
    return ", ".join(f"{share:.0%}" for share in shares)


def moved(point: Point | None) -> str:
    """Return moves and arrivals at high priority, as a share of the requests."""
    if point is None:
        return ""
    return f"{point.figures['bucketing_operations'] / point.figures['completed']:.0%}"


def shown(found: Interval) -> str:
    """Return a mean with its interval."""
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def draw(everything: list[Found]) -> None:
    """Draw all ratios with their intervals, a panel a workload."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        panels = figure.subplots(1, len(everything), sharex=True, sharey=True, squeeze=False)[0]
        for axes, found in zip(panels, everything, strict=True):
            _panel(axes, found)
        figure.supxlabel("ratio of capacities, with 95 % interval", fontsize=7.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
        figure.savefig(PICTURE, dpi=120)
    print(f"\nwrote {PICTURE.name}")


def _panel(axes: Axes, found: Found) -> None:
    ours = [(row.label, row.over) for row in found.baselines]
    changed = [(row.label, row.over) for row in found.changed if row.label != OURS]
    rows = [("Ascendra over:", None), *ours, ("Over the best, with:", None), *changed]
    value, near = CLAIM.value, CLAIM.tolerance
    axes.axvspan(value - near, value + near, color="#d5dfe4", label="claimed, 10 % either way")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--", label="no gain")
    for at, (_, one) in enumerate(rows):
        if one is not None:
            bars = [[one.mean - one.low], [one.high - one.mean]]
            fill = "#16425b" if at <= len(ours) else "white"
            axes.errorbar([one.mean], [at], xerr=bars, markerfacecolor=fill, **MARK)
    axes.set_yticks(range(len(rows)), [label.removeprefix("ascendra, ") for label, _ in rows])
    axes.tick_params(axis="y", length=0)
    for tick, (_, one) in zip(axes.get_yticklabels(), rows, strict=False):
        tick.set_fontweight("bold" if one is None else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_title(f"{found.name}:\n{found.verdict.name}", fontsize=7.5)


if __name__ == "__main__":
    main()
