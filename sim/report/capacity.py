"""Tables and the picture of capacities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sim.report.figures import COLOURS, DASHES, MARKERS, STYLE
from sim.report.tables import UNDEFINED, number
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Content = Mapping[str, Any]

WIDE = 20.0
"""Rates that are further apart get a logarithmic axis."""


def capacity_table(content: Content) -> RenderableType:
    """Return a row for each policy."""
    goal = content["attainment"]
    compared = len(content["policies"]) > 1
    table = Table("policy", "GPUs", box=SIMPLE_HEAD)
    columns = ["capacity [dim]req/s[/]", "per GPU [dim]req/s[/]"]
    columns += [f"against {escape(content['baseline'])}"] if compared else []
    columns += [f"{_judged(content)} there [dim]%[/]", "goodput per GPU [dim]req/s[/]"]
    columns += ["output per GPU [dim]tokens/s[/]", "p99 TTFT [dim]ms[/]", "p99 TPOT [dim]ms[/]"]
    for column in columns:
        table.add_column(column, justify="right")
    for label, policy in content["policies"].items():
        cells = [_capacity(policy, key) for key in ("capacity_per_s", "capacity_per_gpu_per_s")]
        if compared:
            cells.append(_against(content["differences"].get(label)))
        there = policy["at_capacity"]
        if there is None:
            cells += [UNDEFINED] * 5
        else:
            judged = _binding(there, content["every_class"])
            cells += [_value(judged, "slo_attainment", 100)]
            keys = ("request_goodput_per_gpu", "output_throughput_per_gpu")
            cells += [_value(there, key) for key in (*keys, "p99_ttft_ms", "p99_tpot_ms")]
        table.add_row(escape(label), str(policy["num_gpus"]), *cells)
    n = max(policy["n_replications"] for policy in content["policies"].values())
    scope = ", in every class" if content["every_class"] else ""
    lines = [
        f"highest rate at which {goal:.4g} of the requests meet every bound{scope}",
        f"mean ± half of the 95 % interval over n={n} replications, each with its own capacity"
        if n > 1
        else "n=1, no interval",
    ]
    return Group(Text(f"{content['model']} on {content['gpu']}"), table, Text("\n".join(lines)))


def sizes_table(content: Content) -> RenderableType:
    """Return the answer for each policy, and the layouts beside it."""
    table = Table("policy", "layout", box=SIMPLE_HEAD)
    for column in ("GPUs", "req/s per GPU", "attainment [dim]%[/]"):
        table.add_column(column, justify="right")
    table.add_column("")
    for label, policy in content["policies"].items():
        if policy["best"] is None:
            table.add_row(escape(label), "none reaches the target", "", "", "", "")
            continue
        rows = [(policy["best"], "[bold]fewest[/]")]
        rows += [(layout, "one less") for layout in policy["fewer"]]
        rows += [(layout, "reaches it, too") for layout in policy["others"]]
        rows += _failing(policy.get("failures"))
        title = escape(label)
        for layout, what in rows:
            cells = [str(layout["num_gpus"]), number(layout["rate_per_gpu_per_s"])]
            table.add_row(
                title, _pools(layout), *cells, _value(layout, "slo_attainment", 100), what
            )
            title = ""
        table.add_section()
    head = f"{content['rate_per_s']:g} requests/s of {content['model']} on {content['gpu']}"
    goal = f"target: {content['attainment']:.4g} of the requests meet every bound"
    scope = ", in every class" if content["every_class"] else ""
    return Group(Text(head), table, Text(goal + scope), *_costs(content))


def _judged(content: Content) -> str:
    return "lowest class" if content["every_class"] else "attainment"


def _binding(point: Content, every_class: bool) -> Content:
    """Return the attainments that the target is about: of all, or of the worst class."""
    classes = point["by_class"].values() if every_class else ()
    found: Content = min((point, *classes), key=lambda of: of["slo_attainment"])
    return found


def _failing(failures: Content | None) -> list[tuple[Content, str]]:
    """Return the layouts that were run with failures, and what they are."""
    if failures is None:
        return []
    rows = [(failures["without_spare"], "with failures"), (failures["n_plus_one"], "N+1")]
    enough = failures["enough"]
    if enough is not None and enough["pools"] not in [layout["pools"] for layout, _ in rows]:
        rows.append((enough, "with failures"))
    return [
        (layout, f"{what}: {'reaches it' if layout['reached'] else 'misses it'}")
        for layout, what in rows
    ]


def _pools(layout: Content) -> str:
    pools = layout["pools"]
    return " + ".join(f"{p['instances']} x {p['role']} tp {p['tp']}" for p in pools)


def _costs(content: Content) -> list[RenderableType]:
    lines = []
    for label, policy in content["policies"].items():
        costs = policy["costs"]
        if costs is None:
            continue
        line = (
            f"{label}: {number(costs['gpu_hours_per_day'])} GPU-hours a day, "
            f"{number(costs['gpu_hours_per_million_requests'])} a million requests"
        )
        if "cost_per_day" in costs:
            tokens = costs["cost_per_million_output_tokens"]
            line += (
                f"; at {content['price_per_gpu_hour']:g} a GPU-hour: "
                f"{number(costs['cost_per_day'])} a day, "
                f"{number(costs['cost_per_million_requests'])} a million requests, "
                f"{number(tokens)} a million output tokens"
            )
        lines.append(line)
    return [Text("\n".join(lines))] if lines else []


def _capacity(policy: Content, key: str) -> str:
    if not policy[key]:
        return "none"
    return (">= " if policy["is_lower_bound"] else "") + _value(policy, key)


def _against(difference: Content | None) -> str:
    if difference is None:
        return UNDEFINED
    mean, low, high = (difference[f"percent{s}"] for s in ("", "_ci_low", "_ci_high"))
    return f"{mean:+.1f} %" + ("" if _missing(low) else f" [dim][{low:+.1f}, {high:+.1f}][/]")


def _value(of: Content, key: str, factor: float = 1.0) -> str:
    mean, low, high = (of[key + suffix] for suffix in ("", "_ci_low", "_ci_high"))
    if _missing(mean):
        return UNDEFINED
    text = number(mean * factor)
    if _missing(low) or low == high:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} [dim]± {(high - low) / 2 * factor:,.{decimals}f}[/]"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


# -- the picture --------------------------------------------------------------------------------


def draw_capacity(folder: Path) -> Path:
    """Draw `capacity.png` from a folder's `capacity.json`: attainment against rate per GPU."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    content = json.loads((folder / "capacity.json").read_text(encoding="utf-8"))
    path = folder / "capacity.png"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.4), dpi=150, layout="constrained")
        axes = figure.subplots()
        for at, (label, policy) in enumerate(content["policies"].items()):
            _curve(axes, at, label, policy, content)
        _frame(axes, content)
        figure.suptitle(_title(content), x=0.01, ha="left", fontsize=9, color="#444444")
        figure.legend(loc="outside right upper", handlelength=4, fontsize=8)
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def _curve(axes: Axes, at: int, label: str, policy: Content, content: Content) -> None:
    """Draw a policy's attainments with their intervals, and its capacity on the target."""
    colour, dash = COLOURS[at % len(COLOURS)], DASHES[at % len(DASHES)]
    curve, goal = policy["curve"], content["attainment"]
    judged = [_binding(point, content["every_class"]) for point in curve]
    rates = [p["rate_per_gpu_per_s"] for p in curve]
    mean, low, high = (
        [math.nan if of[key] is None else of[key] for of in judged]
        for key in ("slo_attainment", "slo_attainment_ci_low", "slo_attainment_ci_high")
    )
    gpus = f"{policy['num_gpus']} GPUs" if policy["num_gpus"] > 1 else "1 GPU"
    rate = f"{_capacity_text(policy)} req/s" if curve else "none"
    axes.plot(
        rates,
        mean,
        color=colour,
        linestyle=dash,
        linewidth=1.6,
        marker=MARKERS[at // len(COLOURS) % len(MARKERS)],
        markersize=4,
        label=f"{label}\n{rate} on {gpus}",
    )
    axes.fill_between(rates, low, [min(value, 1.0) for value in high], color=colour, alpha=0.13)
    if not curve:
        return
    capacity = policy["capacity_per_gpu_per_s"]
    ends = [policy[f"capacity_per_gpu_per_s_ci_{side}"] for side in ("low", "high")]
    if None not in ends:
        error = [[capacity - ends[0]], [ends[1] - capacity]]
        axes.errorbar(capacity, goal, xerr=error, color=colour, elinewidth=2.4, capsize=4, zorder=5)
    axes.plot(capacity, goal, "o", color=colour, markersize=6, markeredgecolor="white", zorder=6)


def _capacity_text(policy: Content) -> str:
    return (">= " if policy["is_lower_bound"] else "") + number(policy["capacity_per_s"])


def _frame(axes: Axes, content: Content) -> None:
    """Draw the target and set the axes."""
    from matplotlib.ticker import LogLocator

    goal = content["attainment"]
    axes.axhline(goal, color="#555555", linewidth=1, linestyle=":", zorder=1)
    axes.annotate(
        f"target {goal:.4g}",
        (0, goal),
        (4, -3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="left",
        va="top",
        fontsize=8,
        color="#555555",
    )
    points = [point for policy in content["policies"].values() for point in policy["curve"]]
    rates = [p["rate_per_gpu_per_s"] for p in points]
    if rates and max(rates) > WIDE * min(rates):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(visible=False, which="minor")
    elif rates:
        axes.set_xlim(0, max(rates) * 1.03)
    shares = [_binding(point, content["every_class"])["slo_attainment"] for point in points]
    lowest = min(shares, default=0.0)
    axes.set_ylim(max(0.0, min(lowest, goal) - 0.05), 1.01)
    label = "share of requests within the SLO"
    if content["every_class"]:
        label += ", lowest class"
    axes.set(xlabel="requests per second and GPU", ylabel=label)


def _title(content: Content) -> str:
    n = max(policy["n_replications"] for policy in content["policies"].values())
    intervals = f"95 % intervals over n={n} replications" if n > 1 else "n=1: no intervals"
    parts = (f"{content['model']} on {content['gpu']}", intervals)
    return "   ·   ".join(parts)
