"""The pages of a capacity search and of a sizing, from the files of their folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sim.report.capacity import capacity_table, sizes_table
from sim.report.html.charts import by_row
from sim.report.html.page import Card, Lines, Section, Study, Verdict, blocks_of, styled
from sim.report.html.page_points import OPEN, class_sections, point_charts, rate_axis
from sim.report.html.page_runs import (
    card,
    config_section,
    grouped_notes,
    read_config,
    read_json,
    verdicts,
)
from sim.report.html.plotting import Axis, Line, Mark, Point, half_of, number_of

Content = Mapping[str, Any]


def capacity_study(folder: Path) -> Study:
    """Return the page of the folder of `bucketsim capacity --attainment`."""
    content = read_json(folder / "capacity.json")
    policies: Mapping[str, Content] = content["policies"]
    series = styled(list(policies))
    goal = content["attainment"] * 100
    lines = [
        Line(label, look, [_curve_point(p) for p in policies[label]["curve"]])
        for label, look in series
    ]
    texts = {f"{label}.yaml": read_config(folder / f"{label}.yaml") for label in policies}
    config = yaml.safe_load(next((t for t in texts.values() if t), "")) or {}
    x = rate_axis("offered requests/s per GPU", lines)
    target = Mark(goal, f"target {goal:g} %")
    charts = point_charts(lines, x, " per GPU", config, target, "_per_gpu")
    notes = [*content["notes"], *grouped_notes({k: p["notes"] for k, p in policies.items()})]
    scope = " in every class" if content["every_class"] else ""
    return Study(
        f"Capacity of {', '.join(policies)}",
        (
            f"{content['model']} on {content['gpu']}",
            f"highest rate at which {goal:g} % of the requests meet every bound{scope}",
        ),
        _capacity_verdicts(content),
        tuple(_capacity_card(label, p) for label, p in policies.items()),
        tuple(notes),
        (
            Section("Summary", tuple(blocks_of(capacity_table(content)))),
            Section("Against the rate", (*charts, Lines((OPEN,))), series),
            *class_sections(lines, x, "at each rate", target),
            config_section(texts),
        ),
    )


def sizing_study(folder: Path) -> Study:
    """Return the page of the folder of `bucketsim capacity --rate`."""
    content = read_json(folder / "sizing.json")
    policies: Mapping[str, Content] = content["policies"]
    none = [label for label, p in policies.items() if p["best"] is None]
    missed = (
        (Verdict("failed", f"{', '.join(none)}: no layout reaches the target"),) if none else ()
    )
    loads = {k: p["figures"]["saturation"] for k, p in policies.items() if p["figures"]}
    series = styled(list(policies))
    lines = [
        (label, look, (policies[label]["figures"] or {}).get("by_class", {}))
        for label, look in series
    ]
    names = list(dict.fromkeys(name for _, _, of in lines for name in of))
    axis = Axis("% within the SLO", 0, 103)
    chart = by_row("By source", names, lines, "slo_attainment", axis, 100) if names[1:] else None
    classes = [Section("SLO attainment by class, fewest GPUs", (chart,), series)] if chart else []
    return Study(
        f"GPUs for {content['rate_per_s']:g} requests/s",
        (f"{content['model']} on {content['gpu']}",),
        (*missed, *verdicts(loads)),
        tuple(
            card(label, p["best"]["num_gpus"], 0.0, "GPUs at least")
            for label, p in policies.items()
            if p["best"]
        ),
        grouped_notes(
            {k: [*p["notes"], *p.get("failures", {}).get("notes", [])] for k, p in policies.items()}
        ),
        (Section("Summary", tuple(blocks_of(sizes_table(content)))), *classes),
    )


def _curve_point(point: Content) -> Point:
    return Point(point["rate_per_gpu_per_s"], point, point["by_class"])


def _capacity_card(label: str, policy: Content) -> Card:
    value = number_of(policy["capacity_per_s"])
    if not value:
        return Card(label, "none", "", "reaches the target at no rate")
    found = card(label, value, half_of(policy, "capacity_per_s"), "requests/s")
    at_least = "≥ " if policy["is_lower_bound"] else ""
    return Card(
        label, at_least + found.value, found.half, f"requests/s on {policy['num_gpus']} GPUs"
    )


def _capacity_verdicts(content: Content) -> tuple[Verdict, ...]:
    policies = content["policies"]
    none = [label for label, p in policies.items() if not p["capacity_per_s"]]
    missed = (Verdict("failed", f"{', '.join(none)}: no rate reaches the target"),) if none else ()
    loads = {k: p["at_capacity"]["saturation"] for k, p in policies.items() if p["at_capacity"]}
    found = verdicts(loads)
    return (*missed, *(Verdict(v.level, f"at its capacity, {v.text}") for v in found))
