"""The page of a run or a comparison, from the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType

from sim.report.html.charts import by_row, distribution_chart, frontier, over_time
from sim.report.html.page import (
    Block,
    Card,
    Chart,
    Folded,
    Lines,
    Section,
    Study,
    Style,
    Table,
    Verdict,
    blocks_of,
    styled,
)
from sim.report.html.page_points import MOST_CLASSES
from sim.report.html.plotting import Axis, Line, Point, half_of, number_of
from sim.report.html.samples import (
    Requests,
    distribution,
    kv_share,
    read_requests,
    waiting,
)
from sim.report.ranking import ranking_lines
from sim.report.tables import SIDE_BY_SIDE, comparison_table, number, result_table
from sim.study.statistics.clock import Clock

Content = Mapping[str, Any]

VERDICTS = {
    "stable": "kept up with the arrivals",
    "backlogged": "a queue was left at the end, or lasted so long that a run saw few of its "
    "states: intervals of latencies may be too narrow; ask for longer runs",
    "overloaded": "the queue grew to the end: no steady state; the longer the run, the larger "
    "the latencies",
}
"""What the words of `sim.study.statistics.stability` mean."""

HEADLINES = (
    ("request_goodput", "Goodput", "requests/s", 1.0),
    ("slo_attainment", "SLO attainment", "%", 100.0),
    ("steady_request_throughput", "Throughput", "requests/s", 1.0),
    ("p99_ttft_ms", "TTFT p99", "ms", 1.0),
    ("p99_tpot_ms", "TPOT p99", "ms", 1.0),
    ("output_throughput_per_gpu", "Output per GPU", "tokens/s", 1.0),
)
LATENCIES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per further token (TPOT)",
    "e2e": "End to end (E2E)",
}
HOW_TO_STEPS = (
    "KV memory over time needs steps.parquet: run again with run.steps=true on the command line."
)
GROUPING_TITLES = {
    "source": "source",
    "task": "task",
    "priority": "priority",
    "input_len": "prompt length, tokens",
}


@dataclass(frozen=True)
class Result:
    """One policy's part of a folder.

    Attributes:
        label: of the policy.
        style: of its series.
        folder: with its files.
        summary: content of `summary.json`.
        config_text: of `config.yaml`; "" without.
    """

    label: str
    style: Style
    folder: Path
    summary: Content
    config_text: str

    @property
    def config(self) -> Content:
        """The config, plain."""
        return yaml.safe_load(self.config_text) or {}


def run_study(folder: Path) -> Study:
    """Return the page of the folder of `bucketsim run`."""
    summary = read_json(folder / "summary.json")
    result = _results({summary["label"]: summary}, lambda _: folder)[0]
    tables, classes = _tables(result_table(summary))
    return Study(
        f"Run of {result.label}",
        _about([result]),
        verdicts({result.label: summary["saturation"]}),
        cards(summary),
        tuple(summary["notes"]),
        (Section("Summary", tables), *_details([result], classes)),
    )


def comparison_study(folder: Path) -> Study:
    """Return the page of the folder of `bucketsim compare`."""
    comparison = read_json(folder / "comparison.json")
    results = _results(comparison["policies"], lambda label: folder / label)
    summaries = {r.label: r.summary for r in results}
    tables, classes = _tables(comparison_table({**comparison, "rankings": {}}))
    against = Lines((f"differences are to {comparison['baseline']}",))
    folded = [
        Folded(f"All figures of {r.label}", blocks=_tables(result_table(r.summary))[0])
        for r in results
        if len(results) > SIDE_BY_SIDE
    ]
    return Study(
        f"Comparison of {', '.join(summaries)}",
        _about(results),
        verdicts({label: s["saturation"] for label, s in summaries.items()}),
        (),
        grouped_notes({label: s["notes"] for label, s in summaries.items()}),
        (
            *_ranking(comparison),
            *_figures_section(results),
            Section("Summary", (*tables, against, *folded)),
            *_details(results, classes),
        ),
    )


def verdicts(of: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Return what can be trusted, the worst first: labels by verdict."""
    found: dict[str, list[str]] = {word: [] for word in reversed(VERDICTS)}
    for label, word in of.items():
        found.setdefault(word, []).append(label)
    return tuple(
        Verdict(word, f"{', '.join(labels)}: {VERDICTS.get(word, '')}")
        for word, labels in found.items()
        if labels
    )


def grouped_notes(notes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return each note once, with the policies it is about."""
    labels: dict[str, list[str]] = {}
    for label, lines in notes.items():
        for line in lines:
            labels.setdefault(line, []).append(label)
    every = len(notes)
    return tuple(
        f"{', '.join(of) if len(of) < every or every == 1 else 'all policies'}: {line}"
        for line, of in labels.items()
    )


def cards(figures: Content) -> tuple[Card, ...]:
    """Return the headline figures that are known."""
    found = []
    for key, title, unit, factor in HEADLINES:
        value = number_of(figures.get(key))
        if value is not None:
            found.append(card(title, value * factor, half_of(figures, key) * factor, unit))
    return tuple(found)


def card(title: str, value: float, half: float, unit: str) -> Card:
    """Return a headline figure with half its interval."""
    text = number(value)
    decimals = len(text.partition(".")[2])
    return Card(title, text, f"± {half:,.{decimals}f}" if half else "", unit)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        BadInput: it is not one.
    """
    from sim.types import BadInput

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: not a JSON object")
    return content


def read_config(path: Path) -> str:
    """Return the text of a config; "" without."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def config_section(texts: Mapping[str, str]) -> Section:
    """Return the configs and what they were run with.

    Args:
        texts: YAML by what it is called.
    """
    found = {title: text for title, text in texts.items() if text}
    if not found:
        return Section("Config and versions", (Lines(("The folder holds no config.",)),))
    about = (yaml.safe_load(next(iter(found.values()))) or {}).get("about", {})
    packages = ", ".join(f"{name} {v}" for name, v in about.get("packages", {}).items())
    profiles = ", ".join(f"{name} ({h})" for name, h in about.get("profiles", {}).items())
    lines = [f"bucketsim {about.get('bucketsim', '?')}, revision {about.get('git_revision')}"]
    if packages:
        lines.append(f"Python {about.get('python', '?')}, {packages}")
    if profiles:
        lines.append(f"cost profiles (hash): {profiles}")
    blocks = [Folded(title, text) for title, text in found.items()]
    return Section("Config and versions", (Lines(tuple(lines)), *blocks))


# -- parts --------------------------------------------------------------------------------------


def _results(summaries: Mapping[str, Content], place: Callable[[str], Path]) -> list[Result]:
    return [
        Result(
            label, look, place(label), summaries[label], read_config(place(label) / "config.yaml")
        )
        for label, look in styled(list(summaries))
    ]


def _about(results: Sequence[Result]) -> tuple[str, ...]:
    summary, config = results[0].summary, results[0].config
    lines = [f"{summary['model']} on {summary['num_gpus']} x {summary['gpu']}"]
    workload = config.get("workload", {})
    if workload:
        arrivals = workload.get("arrivals") or {"process": "trace"}
        rate = f" at {arrivals['rate']:g} requests/s" if arrivals.get("rate") else ""
        lines.append(f"{workload.get('source')}, {arrivals['process']} arrivals{rate}")
    n = summary["n_replications"]
    lines.append(f"{n} replications, 95 % intervals" if n > 1 else "1 replication")
    bounds = _bounds_ms(config)
    if bounds:
        named = ", ".join(f"{name.upper()} {bound:g} ms" for name, bound in bounds.items())
        lines.append(f"SLO: {named}" + (", others by class" if config["slo"].get("by") else ""))
    return tuple(lines)


def _bounds_ms(config: Content) -> dict[str, float]:
    """Return the bounds that hold for requests without bounds of their class."""
    slo = config.get("slo") or {}
    return {
        name: float(slo[f"{name}_ms"]) * float(slo.get("scale", 1))
        for name in LATENCIES
        if slo.get(f"{name}_ms") is not None
    }


def _figures_section(results: Sequence[Result]) -> Iterator[Section]:
    """Yield the comparison's charts of means."""
    lines = [(r.label, r.style, {"": r.summary}) for r in results]
    charts = []
    for key, title, axis, factor in (
        ("request_goodput", "Goodput", Axis("requests/s within the SLO"), 1.0),
        ("p99_ttft_ms", "TTFT, 99th percentile", Axis("ms"), 1.0),
    ):
        chart = by_row(title, [""], lines, key, axis, factor)
        if chart is not None:
            charts.append(chart)
    points = [Line(r.label, r.style, [Point(0.0, r.summary)], joined=False) for r in results]
    trade = frontier(points, "")
    if trade is not None:
        charts.append(trade)
    if charts:
        yield Section("Policies", tuple(charts), _series_of(results))


def _tables(renderable: RenderableType) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
    """Return the blocks of a terminal's table without its heading, and the table of classes."""
    blocks = list(blocks_of(renderable))[1:]
    classes = [b for b in blocks[1:] if isinstance(b, Table)]
    return tuple(b for b in blocks if b not in classes), tuple(classes)


def _ranking(comparison: Content) -> Iterator[Section]:
    lines = ranking_lines(comparison)
    if lines:
        yield Section("Ranking", (Lines(tuple(lines), strong=True),))


def _details(results: Sequence[Result], classes: Sequence[Block]) -> Iterator[Section]:
    """Yield the sections that a run and a comparison share."""
    charts = list(_class_charts(results))
    if charts or classes:
        yield Section("Classes of requests", (*charts, *classes), _series_of(results))
    yield from _request_sections(results)
    several = len(results) > 1
    yield config_section(
        {f"config.yaml of {r.label}" if several else "config.yaml": r.config_text for r in results}
    )


def _series_of(results: Sequence[Result]) -> tuple[tuple[str, Style], ...]:
    return tuple((r.label, r.style) for r in results)


def _class_charts(results: Sequence[Result]) -> Iterator[Chart]:
    for grouping, title in GROUPING_TITLES.items():
        by_label = {r.label: r.summary.get("classes", {}).get(grouping, {}) for r in results}
        names = list(
            dict.fromkeys(n for of in by_label.values() for n, f in of.items() if f["arrived"])
        )
        if not 1 < len(names) <= MOST_CLASSES:
            continue
        lines = [(r.label, r.style, by_label[r.label]) for r in results]
        axis = Axis("% within the SLO", 0, 103)
        chart = by_row(f"SLO attainment by {title}", names, lines, "slo_attainment", axis, 100)
        if chart is not None:
            yield chart


def _request_sections(results: Sequence[Result]) -> Iterator[Section]:
    """Yield distributions, queue and KV memory over time."""
    found: list[tuple[Result, Requests]] = []
    for result in results:
        path = result.folder / "requests.parquet"
        if path.is_file():
            warmups = [r.get("warmup_s") or 0.0 for r in result.summary["replications"]]
            clock = Clock.of(result.config.get("engine") or {})
            found.append((result, read_requests(path, warmups, clock)))
    if not found:
        lines = ("The folder holds no requests.parquet: no distributions, nothing over time.",)
        yield Section("Distributions", (Lines(lines),))
        return
    series = tuple((r.label, r.style) for r, _ in found)
    bounds = _bounds_ms(results[0].config)
    latencies = [(result, requests.latencies_ms()) for result, requests in found]
    charts = [
        distribution_chart(
            title,
            [(r.label, r.style, *distribution(of[key])) for r, of in latencies],
            "ms",
            bounds.get(key),
        )
        for key, title in LATENCIES.items()
    ]
    note = Lines(
        (
            "Of all requests of all replications after the warm-up. A request that was never "
            "served counts as slower than all others, so a curve may end below 100 %.",
        )
    )
    shown = tuple(chart for chart in charts if chart is not None)
    yield Section("Distributions of latencies", (*shown, note), series)
    yield Section("Over time", tuple(_over_time(found)), series)


def _over_time(found: Sequence[tuple[Result, Requests]]) -> Iterator[Block]:
    queues = []
    for result, requests in found:
        patience = (result.config.get("slo") or {}).get("abort_after_s")
        queues.append((result.label, result.style, *waiting(requests, patience)))
    yield over_time(
        "Waiting requests",
        queues,
        Axis("requests"),
        "Arrived, prefill not yet begun; the most in each 400th of the run. First replication.",
    )
    shares = []
    for result, _ in found:
        path, sizes = result.folder / "steps.parquet", _kv_tokens(result.config)
        share = kv_share(path, sizes) if path.is_file() and sizes else None
        if share is not None:
            times, of = share
            shares.append((result.label, result.style, times, of * 100))
    if shares:
        yield over_time(
            "KV memory in use",
            shares,
            Axis("% of all instances' KV memory", 0, 102),
            "By running steps, the mean of each 400th of the run; idle instances count 0. First "
            "replication.",
        )
    else:
        yield Lines((HOW_TO_STEPS,))


def _kv_tokens(config: Content) -> list[float]:
    """Return the tokens that fit each instance; none if the config does not tell."""
    sizes = []
    for of in config.get("about", {}).get("instances", []):
        sizes += [float(of["num_gpu_blocks"] * of["block_size"])] * int(of["count"])
    return sizes
