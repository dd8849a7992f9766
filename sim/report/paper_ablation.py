"""The ablation as tables and as a page: all from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sim.report.paper_ablation_picture import NAME, draw_ablation
from sim.report.paper_ablation_words import how, measures, sentences
from sim.report.paper_tables import (
    cells,
    markdown_table,
    mean_text,
    percent_text,
    write_tables,
)
from sim.study.files import write_text
from sim.study.paper.ablation import AblationResult, Line
from sim.study.paper.studies import ENGINES
from sim.study.statistics.stats import Interval

COMMAND = "make ablation"
OVER = "at least "


def write_ablation(result: AblationResult, folder: Path) -> list[Path]:
    """Write tables, page and picture into a folder; return their paths."""
    page = folder / f"{NAME}.md"
    write_text(page, "\n".join(ablation_page(result)) + "\n")
    return [*write_tables(folder, NAME, list(_rows(result))), page, *draw_ablation(result, folder)]


def _rows(result: AblationResult) -> Iterator[dict[str, Any]]:
    """Yield variants, then contrasts: `percent` is to the bare variant, or to `against`."""
    for m in result.measured:
        yield _about(m.line, m.measure) | {
            "against": "",
            "component": "",
            "value": "",
            "instead_of": "",
            "n": m.mean.n,
            "at_least": m.at_least,
            **cells("mean", m.mean),
            **cells("percent", m.percent),
        }
    for c in result.contrasts:
        for measure, percent in c.percent.items():
            nothing = Interval(math.nan, math.nan, math.nan, percent.n)
            yield _about(c.line, measure) | {
                "against": c.base.variant.label,
                "component": c.component,
                "value": c.value,
                "instead_of": c.instead_of,
                "n": percent.n,
                "at_least": measure in c.at_least,
                **cells("mean", nothing),
                **cells("percent", percent),
            }


def _about(line: Line, measure: str) -> dict[str, Any]:
    return {
        "engine": line.engine,
        "setting": line.setting,
        "variant": line.variant.label,
        "policy": line.variant.policy,
        "measure": measure,
    }


# -- the page -----------------------------------------------------------------------------------


def ablation_page(result: AblationResult) -> list[str]:
    """Return the lines of the page."""
    file = result.ablation.file
    lines = [f"# {file.title}", "", f"`{COMMAND}`. {how(result)}", ""]
    for sentence in sentences(result):
        lines += [sentence, ""]
    for setting, about in file.settings.items():
        for engine in ENGINES:
            drawn = [x for x in result.ablation.lines if (x.engine, x.setting) == (engine, setting)]
            if drawn:
                lines += [f"## {engine.capitalize()} engine, {about.what}", ""]
                lines += [*_values(result, drawn), "", *_differences(result, drawn), ""]
    lines += ["## Contrasts: one component more, or another value of it", ""]
    return [*lines, *_contrasts(result)]


def _values(result: AblationResult, lines: Sequence[Line]) -> list[str]:
    heads = measures(result)
    rows = []
    for line in lines:
        found = [result.of(line, measure) for measure in heads]
        texts = [mean_text(m.mean, OVER if m.at_least else "") for m in found]
        rows.append([line.variant.label, *texts])
    return markdown_table(["variant", *heads.values()], rows)


def _differences(result: AblationResult, lines: Sequence[Line]) -> list[str]:
    heads = measures(result)
    rows = []
    for line in lines:
        if line.variant.has:
            found = [result.of(line, measure) for measure in heads]
            texts = [percent_text(m.percent, OVER if m.at_least else "") for m in found]
            rows.append([line.variant.label, *texts])
    names = [head.rpartition(" [")[0] for head in heads.values()]
    return markdown_table(["difference to nothing", *names], rows)


def _contrasts(result: AblationResult) -> list[str]:
    heads = measures(result)
    rows = []
    for c in result.contrasts:
        what = f"{c.component}: {c.value}" + (f" for {c.instead_of}" if c.instead_of else "")
        where = f"{c.line.engine}, {c.line.setting}"
        texts = [percent_text(c.percent[k], OVER if k in c.at_least else "") for k in heads]
        rows.append([where, what, c.base.variant.label, *texts])
    names = [head.rpartition(" [")[0] for head in heads.values()]
    return markdown_table(["engine, setting", "component", "added to", *names], rows)
