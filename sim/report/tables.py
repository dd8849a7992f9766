"""Tables of results for a terminal: means with 95 % intervals, paired differences, classes.

They read what `summary.json` and `comparison.json` hold. What users typed is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sim.report.ranking import ranking_lines

Summary = Mapping[str, Any]

UNDEFINED = "-"

SIGNIFICANT = 4
"""Digits of a mean."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        title: what it is called.
        key: of the summary.
        unit: behind the title.
        factor: from the key's unit to the shown one.
        steady: means little when the system is overloaded.
    """

    title: str
    key: str
    unit: str = ""
    factor: float = 1.0
    steady: bool = False


def _latency(name: str, key: str) -> tuple[Row, ...]:
    titles = {"mean": "mean", "median": "p50", "p90": "p90", "p99": "p99"}
    return tuple(
        Row(f"{name} {title}", f"{stat}_{key}_ms", "ms", steady=True)
        for stat, title in titles.items()
    )


SECTIONS: tuple[tuple[Row, ...], ...] = (
    (
        Row("completed", "completed"),
        Row("failed", "failed"),
        Row("duration", "duration", "s"),
    ),
    (
        Row("offered rate", "offered_rate", "req/s"),
        Row("throughput", "steady_request_throughput", "req/s"),
        Row("throughput, whole run", "request_throughput", "req/s"),
        Row("output throughput", "steady_output_throughput", "tok/s"),
        Row("goodput", "request_goodput", "req/s"),
        Row("SLO attainment", "slo_attainment", "%", 100),
        Row("  of TTFT", "slo_attainment_ttft", "%", 100),
        Row("  of TPOT", "slo_attainment_tpot", "%", 100),
    ),
    _latency("TTFT", "ttft"),
    _latency("TPOT", "tpot"),
    _latency("ITL", "itl"),
    _latency("E2E", "e2el"),
    (
        Row("GPU busy", "gpu_busy_frac", "%", 100),
        Row("  prefilling", "gpu_busy_frac_prefill", "%", 100),
        Row("MFU", "mfu", "%", 100),
        Row("padding waste", "padding_waste", "%", 100),
        Row("KV usage mean", "kv_usage_mean", "%", 100),
        Row("KV usage p99", "kv_usage_p99", "%", 100),
        Row("prefix cache hits", "prefix_cache_hit_rate", "%", 100),
        Row("  after preemptions", "prefix_cache_hit_rate_preempted", "%", 100),
        Row("tokens a round", "spec_decode_acceptance_length"),
        Row("drafts accepted", "spec_decode_acceptance_rate", "%"),
        Row("preemptions", "preemptions"),
        Row("out-of-memory events", "oom_events"),
    ),
    (
        Row("GPU energy, modelled", "gpu_energy_j", "kJ", 1e-3),
        Row("  idle", "gpu_energy_idle_j", "kJ", 1e-3),
        Row("GPU power, all", "gpu_power_w", "W"),
        Row("GPU energy per request", "gpu_energy_j_per_request", "J"),
        Row("  per output token", "gpu_energy_j_per_output_token", "J"),
        Row("with hosts", "node_energy_kwh", "kWh"),
        Row("  carbon", "carbon_g", "g CO2e"),
        Row("  price", "energy_cost"),
    ),
)

SIDE_BY_SIDE = 3
"""Policies up to which a comparison has a column for each; more get a row each."""

POLICY_COLUMNS = (
    Row("goodput", "request_goodput", "req/s"),
    Row("SLO", "slo_attainment", "%", 100),
    Row("TTFT p50", "median_ttft_ms", "ms", steady=True),
    Row("TTFT p99", "p99_ttft_ms", "ms", steady=True),
    Row("TPOT p99", "p99_tpot_ms", "ms", steady=True),
    Row("E2E p50", "median_e2el_ms", "ms", steady=True),
    Row("GPU busy", "gpu_busy_frac", "%", 100),
    Row("waste", "padding_waste", "%", 100),
)
"""What is shown of each policy when there are many; `comparison.json` has all."""

ENERGY_COLUMN = Row("energy", "gpu_energy_j_per_output_token", "J/tok")
"""Shown as well if energy was asked for."""

COMPARED = Row("throughput, whole run", "request_throughput", "req/s")
"""The figure whose paired difference from the baseline is shown then."""

COMPARED_OF_CLASS = Row("SLO", "slo_attainment", "%", 100)
"""The figure of a class whose paired difference from the baseline is shown."""

CLASS_COLUMNS = (
    Row("requests", "arrived"),
    Row("completed", "completed"),
    COMPARED_OF_CLASS,
    Row("of TTFT", "slo_attainment_ttft", "%", 100),
    Row("of TPOT", "slo_attainment_tpot", "%", 100),
    Row("TTFT p50", "median_ttft_ms", "ms", steady=True),
    Row("TTFT p99", "p99_ttft_ms", "ms", steady=True),
    Row("TPOT p99", "p99_tpot_ms", "ms", steady=True),
)
"""What is shown of each class; `summary.json` has more."""
GROUPING_TITLES = {"input_len": "prompt tokens"}
"""Those that are not called what their key is."""


def result_table(summary: Summary) -> RenderableType:
    """Return the table of one policy."""
    return _table({str(summary["label"]): summary}, {})


def comparison_table(comparison: Mapping[str, Any]) -> RenderableType:
    """Return the table of a comparison: the baseline first, then the others with differences."""
    base = str(comparison["baseline"])
    labels = [base, *(label for label in comparison["policies"] if label != base)]
    summaries = {label: comparison["policies"][label] for label in labels}
    draw = _policy_table if len(labels) > SIDE_BY_SIDE else _table
    ranking = Text("\n".join(ranking_lines(comparison)))
    return Group(draw(summaries, comparison["differences"]), *([ranking] if ranking else []))


def notices_text(notes: Sequence[str]) -> Text:
    """Return notices as lines."""
    return Text("\n".join(f"note: {note}" for note in notes))


def number(value: float) -> str:
    """Return a number with four digits, thousands separated."""
    if not math.isfinite(value):
        return UNDEFINED
    if value == round(value):
        return f"{value:,.0f}"
    decimals = SIGNIFICANT - 1 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(decimals, 0), SIGNIFICANT)}f}"


def _table(summaries: Mapping[str, Summary], differences: Mapping[str, Any]) -> RenderableType:
    first = next(iter(summaries.values()))
    table = Table("", "", box=SIMPLE_HEAD)
    for label in summaries:
        table.add_column(escape(label), justify="right")
        if label in differences:
            table.add_column("difference", justify="right")
    for section in SECTIONS:
        for row in section:
            if all(_missing(s.get(row.key)) for s in summaries.values()):
                continue
            cells = [row.title, f"[dim]{row.unit}[/]"]
            for label, summary in summaries.items():
                cells.append(_value(row, summary) + _mark(row, summary))
                if label in differences:
                    cells.append(_difference(row, differences[label].get(row.key)))
            table.add_row(*cells)
        table.add_section()
    verdicts = ["load", ""]
    for label, summary in summaries.items():
        verdicts += [summary["saturation"], ""] if label in differences else [summary["saturation"]]
    table.add_row(*verdicts)
    notes = _footnotes(summaries, bool(differences))
    return Group(_heading(first), table, *_class_table(summaries, differences), notes)


def _policy_table(
    summaries: Mapping[str, Summary], differences: Mapping[str, Any]
) -> RenderableType:
    """Return a comparison of many policies: a row for each, and their classes."""
    first = next(iter(summaries.values()))
    table = Table("policy", box=SIMPLE_HEAD)
    wanted = (*POLICY_COLUMNS, ENERGY_COLUMN) if "power" in first else POLICY_COLUMNS
    columns = [c for c in wanted if any(not _missing(s.get(c.key)) for s in summaries.values())]
    table.add_column(f"{COMPARED.title} [dim]{COMPARED.unit}[/]", justify="right")
    table.add_column(f"against {escape(next(iter(summaries)))}", justify="right")
    for column in columns:
        table.add_column(f"{column.title} [dim]{column.unit}[/]", justify="right")
    table.add_column("load")
    for label, summary in summaries.items():
        difference = differences.get(label, {}).get(COMPARED.key)
        cells = [_value(COMPARED, summary), _difference(COMPARED, difference)]
        cells += [_value(column, summary) + _mark(column, summary) for column in columns]
        table.add_row(escape(label), *cells, str(summary["saturation"]))
    notes = _footnotes(summaries, True)
    return Group(_heading(first), table, *_class_table(summaries, differences), notes)


def _heading(summary: Summary) -> Text:
    return Text(f"{summary['model']} on {summary['num_gpus']} x {summary['gpu']}")


def _footnotes(summaries: Mapping[str, Summary], compared: bool) -> Text:
    lines = [_caption(next(iter(summaries.values())), compared)]
    if any(_overloaded(summary) for summary in summaries.values()):
        lines.append("* overloaded: no steady state, the longer the run the larger")
    if any(summary["saturation"] == "backlogged" for summary in summaries.values()):
        lines.append("backlogged: intervals of latencies may be too narrow; ask for longer runs")
    return Text("\n".join(lines))


def _class_table(summaries: Mapping[str, Summary], differences: Mapping[str, Any]) -> list[Table]:
    """Return a table with a row for each class (and policy), if there is more than one class.

    Of a comparison it has the paired difference of the SLO attainment to the baseline.
    """
    shown = _classes(summaries)
    figures = [_of_class(s, *one) for group in shown for one in group for s in summaries.values()]
    columns = [c for c in CLASS_COLUMNS if any(not _missing(f.get(c.key)) for f in figures)]
    if not columns:
        return []
    table = Table("class", box=SIMPLE_HEAD)
    if len(summaries) > 1:
        table.add_column("policy")
    for column in columns:
        table.add_column(f"{column.title} [dim]{column.unit}[/]", justify="right")
    compared = COMPARED_OF_CLASS in columns and bool(differences)
    if compared:
        table.add_column(f"against {escape(next(iter(summaries)))}", justify="right")
    for group in shown:
        for grouping, name in group:
            title = f"{GROUPING_TITLES.get(grouping, grouping)} {escape(name)}"
            for label, summary in summaries.items():
                part = _of_class(summary, grouping, name)
                cells = [_value(c, part) + _mark(c, summary) for c in columns]
                if compared:
                    classes = differences.get(label, {}).get("classes", {})
                    found = classes.get(grouping, {}).get(name, {})
                    cells.append(_difference(COMPARED_OF_CLASS, found.get(COMPARED_OF_CLASS.key)))
                table.add_row(title, *([escape(label)] if len(summaries) > 1 else []), *cells)
                title = ""
        table.add_section()
    return [table]


def _classes(summaries: Mapping[str, Summary]) -> list[list[tuple[str, str]]]:
    """Return grouping and name of the classes with requests, by grouping; none that are alone."""
    found: dict[str, dict[str, None]] = {}
    for summary in summaries.values():
        for grouping, classes in summary.get("classes", {}).items():
            names = {name: None for name, figures in classes.items() if figures["arrived"]}
            found.setdefault(grouping, {}).update(names)
    return [
        [(grouping, name) for name in found[grouping]]
        for grouping in found
        if len(found[grouping]) > 1
    ]


def _of_class(summary: Summary, grouping: str, name: str) -> Summary:
    part: Summary = summary["classes"].get(grouping, {}).get(name, {})
    return part


def _overloaded(summary: Summary) -> bool:
    return bool(summary["saturation"] == "overloaded")


def _mark(row: Row, summary: Summary) -> str:
    return "*" if row.steady and _overloaded(summary) else ""


def _caption(summary: Summary, compared: bool) -> str:
    n = summary["n_replications"]
    if n == 1:
        batches = [found["batches"] for found in summary.get("batch_means", {}).values()]
        if not batches:
            return "n=1, no interval"
        span = "-".join(str(b) for b in sorted({min(batches), max(batches)}))
        return f"n=1: mean ± half of the 95 % interval by batch means ({span} batches of one run)"
    differences = "; differences are paired" if compared else ""
    return f"mean ± half of the 95 % interval, n={n} replications{differences}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _value(row: Row, summary: Summary) -> str:
    value: Any = summary.get(row.key)
    if _missing(value):
        return UNDEFINED
    low, high = summary[f"{row.key}_ci_low"], summary[f"{row.key}_ci_high"]
    text = number(value * row.factor)
    if _missing(low) or low == high:
        return text
    decimals = len(text.partition(".")[2])
    return f"{text} [dim]± {(high - low) / 2 * row.factor:,.{decimals}f}[/]"


def _difference(row: Row, difference: Mapping[str, float] | None) -> str:
    """Return a paired difference: of shares in points, of all else in percent of the baseline."""
    if difference is None:
        return UNDEFINED
    keys = ("percent", "percent_ci_low", "percent_ci_high")
    sign, factor = "%", 1.0
    if row.unit == "%":
        keys, sign, factor = ("diff", "ci_low", "ci_high"), "pt", row.factor
    values = [difference[key] for key in keys]
    if _missing(values[0]):
        return UNDEFINED
    mean, low, high = (math.nan if _missing(v) else v * factor for v in values)
    decimals = 0 if abs(mean) >= 100 or not mean else 1
    text = f"{mean:+,.{decimals}f} {sign}" if mean else f"0 {sign}"
    if _missing(low) or low == high:
        return text
    return f"{text} [dim]± {(high - low) / 2:,.{decimals}f}[/]"
