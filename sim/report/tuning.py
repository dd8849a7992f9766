"""The table and the picture of a search for parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sim.report.figures import COLOURS, STYLE
from sim.report.tables import UNDEFINED, number
from sim.study.files import written_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Content = Mapping[str, Any]

SOURCE, PICTURE = "tune.json", "tune.png"
CAPACITY, TTFT = "capacity_per_s", "p99_ttft_ms"
GREY, FRONT, BASELINE = "#9aa3a8", COLOURS[0], COLOURS[1]
WIDE = 5.0
"""Latencies that are further apart get a logarithmic axis."""


def tuning_table(content: Content) -> RenderableType:
    """Return a row for the baseline and for each trial of the front."""
    candidates = content["candidates"]
    several = len({c["label"] for c in candidates}) > 1
    shown = [k for k in content["keys"] if any(k in c["values"] for c in candidates)]
    table = Table("trial", box=SIMPLE_HEAD)
    for name in (["policy"] if several else []) + [_short(k, shown) for k in shown]:
        table.add_column(escape(name), overflow="fold")
    for title in ("capacity [dim]req/s[/]", "p99 TTFT [dim]ms[/]"):
        table.add_column(f"{title}\nsearch", justify="right")
        table.add_column("\nfresh", justify="right")
        table.add_column("against\nbaseline", justify="right")
    table.add_column("front,\nfresh")
    for c in candidates:
        name = f"{c['trial']} (baseline)" if c["trial"] == 0 else str(c["trial"])
        cells = [escape(c["label"])] if several else []
        cells += [escape(_value(c["values"].get(key, ""))) for key in shown]
        for key in (CAPACITY, TTFT):
            cells += [_mean(c["searched"], key), _figure(c["fresh"], key), _gain(c, key)]
        table.add_row(name, *cells, "yes" if c["holds"] else "no")
    head = f"{content['model']} on {content['num_gpus']} x {content['gpu']}"
    return Group(Text(head), table, Text("\n".join(_lines(content))))


def _lines(content: Content) -> list[str]:
    n = content["n_replications"]
    chosen = [c for c in content["candidates"] if c["chosen"]]
    held = sum(c["holds"] for c in chosen)
    scope = " in every class" if content["every_class"] else ""
    return [
        f"capacity: highest rate at which {content['attainment']:.4g} of the requests meet every "
        f"bound{scope}; p99 TTFT at {content['rate_per_s']:.4g} requests/s, "
        f"{content['load']:g} of the baseline's capacity",
        f"{content['num_trials']} trials, {content['num_failed']} failed, "
        f"{content['num_repeated']} repeated others; seed {content['seed']}",
        f"search: on the n={n} replications the trials were chosen by, where the best of many look "
        "better than they are",
        f"fresh: on n={n} other replications, ± half of the 95 % interval: believe these; "
        f"{held} of {len(chosen)} on the front of the search are on it there, too",
    ]


def _short(key: str, keys: Sequence[str]) -> str:
    last = key.rpartition(".")[2]
    return last if [k.rpartition(".")[2] for k in keys].count(last) == 1 else key


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(of: Content, key: str) -> str:
    return UNDEFINED if _missing(of[key]) else _bound(of, key) + number(of[key])


def _bound(of: Content, key: str) -> str:
    return ">= " if key == CAPACITY and of["is_lower_bound"] else ""


def _figure(of: Content, key: str) -> str:
    if _missing(of[key]) or _missing(of[f"{key}_ci_low"]):
        return _mean(of, key)
    text = number(of[key])
    half = (of[f"{key}_ci_high"] - of[f"{key}_ci_low"]) / 2
    return f"{_bound(of, key)}{text} [dim]± {half:,.{len(text.partition('.')[2])}f}[/]"


def _gain(candidate: Content, key: str) -> str:
    if candidate["against_baseline"] is None:
        return ""
    of = candidate["against_baseline"][key]
    if _missing(of["percent"]):
        return UNDEFINED
    text = f"{of['percent']:+.1f} %"
    if _missing(of["percent_ci_low"]):
        return text
    return f"{text} [dim]\\[{of['percent_ci_low']:+.1f}, {of['percent_ci_high']:+.1f}][/]"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


# -- the picture --------------------------------------------------------------------------------


def draw_tuning(folder: Path) -> Path:
    """Draw `tune.png` from a folder's `tune.json`: capacity against p99 TTFT."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    content = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    path = folder / PICTURE
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
        axes = figure.subplots()
        _trials(axes, content)
        _front(axes, content)
        _frame(axes, content)
        figure.suptitle(_title(content), x=0.01, ha="left", fontsize=9, color="#444444")
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
        with written_aside(path) as aside:
            figure.savefig(aside, format="png", metadata={"Software": None})
    return path


def _trials(axes: Axes, content: Content) -> None:
    """Draw every trial as the search saw it, and join its front."""
    good = [t for t in content["trials"] if t["error"] is None]
    x, y = [t[CAPACITY] for t in good], [t[TTFT] for t in good]
    axes.plot(x, y, ".", color=GREY, markersize=5, label="trials, as the search saw them")
    chosen = [c["searched"] for c in content["candidates"] if c["chosen"]]
    _joined(axes, chosen, ":", "front of the search", color=GREY)


def _front(axes: Axes, content: Content) -> None:
    """Draw baseline and front as measured again, and join those that none beats."""
    from matplotlib.colors import to_rgba

    known = [c for c in content["candidates"] if c["fresh"]["error"] is None]
    held = sorted((c for c in known if c["holds"]), key=lambda c: float(c["fresh"][CAPACITY]))
    _joined(axes, [c["fresh"] for c in held], "-", "not beaten, measured again", color=FRONT)
    labels = {True: "baseline, measured again", False: "front of the search, measured again"}
    for c in known:
        base, fresh = c["trial"] == 0, c["fresh"]
        colour = BASELINE if base else FRONT
        axes.errorbar(
            fresh[CAPACITY],
            fresh[TTFT],
            xerr=_error(fresh, CAPACITY),
            yerr=_error(fresh, TTFT),
            fmt="D" if base else "o",
            color=colour,
            markersize=7 if base else 5,
            markerfacecolor=colour if c["holds"] else "white",
            ecolor=to_rgba(colour, 0.4),
            elinewidth=1,
            capsize=2,
            zorder=4,
            label=labels.pop(base, None),
        )
        axes.annotate(
            "baseline" if base else str(c["trial"]),
            (fresh[CAPACITY], fresh[TTFT]),
            (-7, 4) if base else (5, 3),
            ha="right" if base else "left",
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )


def _joined(axes: Axes, of: Sequence[Content], line: str, label: str, color: str) -> None:
    """Join points of a front by steps: between two, one gets no more than either gives."""
    x, y = [p[CAPACITY] for p in of], [p[TTFT] for p in of]
    if len(of) > 1:
        axes.step(x, y, line, where="pre", color=color, linewidth=1.3, label=label)


def _error(of: Content, key: str) -> list[list[float]] | None:
    low, high = of[f"{key}_ci_low"], of[f"{key}_ci_high"]
    if _missing(low):
        return None
    return [[min(of[key] - low, of[key])], [high - of[key]]]


def _frame(axes: Axes, content: Content) -> None:
    latencies = [t[TTFT] for t in content["trials"] if t["error"] is None]
    if max(latencies) > WIDE * min(latencies):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(visible=False, which="minor")
    axes.margins(x=0.08)
    rate = f"{content['rate_per_s']:.3g} requests/s"
    axes.set(
        xlabel=f"capacity at an attainment of {content['attainment']:.4g}, requests per second",
        ylabel=f"p99 TTFT at {rate}, ms",
    )
    axes.annotate("better ↘", (0.985, 0.02), xycoords="axes fraction", ha="right", color="#777777")


def _title(content: Content) -> str:
    n = content["n_replications"]
    parts = (
        f"{content['model']} on {content['num_gpus']} x {content['gpu']}",
        f"{content['num_trials']} trials, {content['num_failed']} failed",
        f"95 % intervals over n={n} fresh replications" if n > 1 else "n=1: no intervals",
    )
    return "   ·   ".join(parts)
