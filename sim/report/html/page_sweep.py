"""The page of a sweep, from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sim.report.html.page import Block, Lines, Section, Study, Verdict, column_table, style
from sim.report.html.page_points import MOST_CLASSES, OPEN, class_sections, point_charts, rate_axis
from sim.report.html.page_runs import (
    GROUPING_TITLES,
    VERDICTS,
    config_section,
    read_config,
    read_json,
)
from sim.report.html.plotting import Line, Point, number_of
from sim.report.sweeps import index_columns, point_columns
from sim.study.statistics.stats import aggregate
from sim.study.sweeps.results import SweepResults, point_summaries, read_results

Content = Mapping[str, Any]
Row = Mapping[str, Any]
Classes = dict[tuple[str, str], dict[str, Content]]
"""Label and values of a point -> class -> figures."""

RATE = "workload.arrivals.rate"
MOST_SERIES = 14
"""Of the combinations of a sweep, joined by lines; more are points, by policy."""
MOST_BYTES = 700_000
"""Of all charts: plotly takes 4.8 MB of the file's 6."""
MOST_ROWS = 300
"""Of a sweep's table."""


def sweep_study(folder: Path) -> Study:
    """Return the page of the folder of `bucketsim sweep`."""
    found = read_results(folder)
    points = point_summaries(found)
    text = read_config(folder / "config.yaml")
    overall = [str(point["saturation"]) for point in points if "saturation" in point]
    sections = [
        *_small_sections(found, points, yaml.safe_load(text) or {}),
        Section("Points", tuple(_point_table(found, points))),
        *_index_sections(folder),
    ]
    labels = list(dict.fromkeys(str(point["label"]) for point in points))
    n = sorted({int(point["n_replications"]) for point in points})
    counted = f"{len(points)} points of {', '.join(found.keys) or 'one config'}"
    return Study(
        f"Sweep of {', '.join(labels)}",
        (*_cluster(text), counted, f"{_span(n)} replications a point"),
        _sweep_verdicts(overall),
        (),
        _unfinished(folder, found),
        (*sections, config_section({"config.yaml": text})),
    )


def _lines(
    keys: Sequence[str], points: Sequence[Row], classes: Classes
) -> tuple[str, list[Line]] | None:
    """Return the key that is the horizontal axis, and the lines; None if no number varies."""
    key = next((k for k in [RATE, *keys] if _varies(k, points)), None)
    if key is None:
        return None
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        if number_of(point["values"].get(key)) is None:
            continue
        others = _others(point["values"], key)
        of = classes.get((str(point["label"]), _values(point["values"])), {})
        here = Point(float(point["values"][key]), point, of, others)
        groups.setdefault((str(point["label"]), others), []).append(here)
    if len(groups) <= MOST_SERIES:
        named = [", ".join(part for part in group if part) for group in groups]
        lines = [
            Line(name, style(at), sorted(of, key=lambda p: p.x))
            for at, (name, of) in enumerate(zip(named, groups.values(), strict=True))
        ]
        return key, lines
    by_label: dict[str, list[Point]] = {}
    for (label, _), several in groups.items():
        by_label.setdefault(label, []).extend(several)
    return key, [
        Line(label, style(at), of, joined=False) for at, (label, of) in enumerate(by_label.items())
    ]


def _varies(key: str, points: Sequence[Row]) -> bool:
    values = [point["values"].get(key) for point in points]
    return len({v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}) > 1


def _others(values: Content, key: str) -> str:
    """Return the other values of a point, in words."""
    left = {k: v for k, v in values.items() if k not in (key, "policy.name", "policy")}
    return ", ".join(
        f"{k.rpartition('.')[2]} {v:g}" if isinstance(v, float) else f"{k.rpartition('.')[2]} {v}"
        for k, v in left.items()
    )


def _values(values: Content) -> str:
    return json.dumps(values, sort_keys=True)


def _classes_of(found: SweepResults) -> Classes:
    """Return, by label and values of a point, the figures of its classes.

    They are those of the first grouping that has several.
    """
    classes: Classes = {}
    for point in found.points:
        rows = [found.rows[name] for name in point["tasks"] if name in found.rows]
        if not rows:
            continue
        merged = aggregate([_defined(json.loads(row["classes"])) for row in rows])
        for grouping in GROUPING_TITLES:
            names = {n: f for n, f in merged.get(grouping, {}).items() if f.get("arrived")}
            if 1 < len(names) <= MOST_CLASSES:
                classes[str(point["label"]), _values(point["values"])] = names
                break
    return classes


def _defined(figures: Content) -> dict[str, Any]:
    """Return nested figures with NaN for those that JSON has as null."""
    return {
        key: _defined(value)
        if isinstance(value, Mapping)
        else (float("nan") if value is None else value)
        for key, value in figures.items()
    }


def _small_sections(
    found: SweepResults, points: Sequence[Row], config: Content
) -> tuple[Section, ...]:
    """Return the charts of so many points, drawn by lot, that the file stays small."""
    charted = _lines(found.keys, points, _classes_of(found))
    if charted is None:
        return ()
    key, lines = charted
    total = sum(len(line.points) for line in lines)
    order = np.random.default_rng(0).permutation(total)
    kept = total
    while True:
        sections = _sections(key, _chosen(lines, set(order[:kept].tolist())), config)
        charts = [chart for section in sections for chart in section.charts]
        if sum(len(json.dumps(chart.figure)) for chart in charts) <= MOST_BYTES or kept < 2:
            break
        kept //= 2
    if kept == total:
        return sections
    told = Lines((f"Drawn: {kept} of {total} points, chosen by lot.",))
    return (replace(sections[0], blocks=(*sections[0].blocks, told)), *sections[1:])


def _chosen(lines: Sequence[Line], numbers: set[int]) -> list[Line]:
    """Return lines with the points of these numbers, counted from the first of all."""
    counted = count()
    return [
        replace(line, points=[point for point in line.points if next(counted) in numbers])
        for line in lines
    ]


def _sections(key: str, lines: Sequence[Line], config: Content) -> tuple[Section, ...]:
    """Return the charts of lines."""
    title = "offered requests/s" if key == RATE else key
    x = rate_axis(title, lines)
    series = tuple((line.label, line.style) for line in lines)
    charts = point_charts(lines, x, "", config, None, "")
    notes = [OPEN]
    if not all(line.joined for line in lines):
        notes.append("Each mark is one combination of the swept values; point at it to see them.")
    heading = "Against the rate" if key == RATE else f"Against {key}"
    against = Section(heading, (*charts, Lines(tuple(notes))), series)
    return (against, *class_sections(lines, x, "at each point", None))


def _sweep_verdicts(of: Sequence[str]) -> tuple[Verdict, ...]:
    found = {word: of.count(word) for word in reversed(VERDICTS)}
    return tuple(
        Verdict(word, f"{times} of {len(of)} points: {VERDICTS[word]}")
        for word, times in found.items()
        if times
    )


def _point_table(found: SweepResults, points: Sequence[Row]) -> Iterator[Block]:
    yield column_table(point_columns(found.keys, points[:MOST_ROWS]))
    lines = ["mean ± half of the 95 % interval over the n replications of a point"]
    if len(points) > MOST_ROWS:
        lines.append(f"the first {MOST_ROWS} of {len(points)} points; all: bucketsim results DIR")
    yield Lines(tuple(lines))


def _unfinished(folder: Path, found: SweepResults) -> tuple[str, ...]:
    notes = []
    missing = len(found.tasks) - len(found.rows)
    if missing:
        notes.append(f"{missing} of {len(found.tasks)} tasks have no result")
    if (folder / "failed.json").is_file():
        for task in read_json(folder / "failed.json")["failed"][:10]:
            values = _others(task["values"], "")
            notes.append(f"failed: {task['label']}, {values}: {task['error']}")
    return tuple(notes)


def _index_sections(folder: Path) -> Iterator[Section]:
    if not (folder / "indices.json").is_file():
        return
    cells = read_json(folder / "indices.json")["cells"]
    if not cells:
        return
    note = (
        "Share of a figure's variance that a parameter explains alone (first-order) and with its "
        "interactions (total), with 95 % intervals; indices.png is the picture."
    )
    yield Section("Which parameter matters", (column_table(index_columns(cells)), Lines((note,))))


def _cluster(text: str) -> tuple[str, ...]:
    cluster = (yaml.safe_load(text) or {}).get("cluster") or {}
    if not cluster:
        return ()
    return (f"{cluster.get('model')} on {cluster.get('count', '?')} x {cluster.get('gpu')}",)


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
