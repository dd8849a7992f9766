"""What the numbers of the ablation say, in sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from sim.report.paper_tables import checks_text, mean_text, percent_text, seeds_text, share_text
from sim.study.paper.ablation import (
    EVERY,
    OF_ALL,
    RATE,
    REQUESTS,
    TOKENS,
    TTFT,
    AblationResult,
    Contrast,
    Line,
)
from sim.study.paper.studies import ENGINES, bounds_text
from sim.study.statistics.stats import Interval

TOLD, UNSURE, UNCHANGED, UNDEFINED = "told", "not told from none", "unchanged", "undefined"
"""Kinds of differences."""
NOTHING = "no difference that can be told"


def how(result: AblationResult) -> str:
    """Return how the numbers were made."""
    file = result.ablation.file
    line = result.ablation.lines[0]
    offline, online = (json.loads(text)["workload"] for text in (line.offline, line.online))
    parts = [
        f"{seeds_text(result.ablation.seeds)}, differences paired.",
        f"Rates are the highest at which {share_text(file.attainment)} of the requests meet both "
        f"bounds ({bounds_text(line.online)}), known to {share_text(file.search.width)} (less: "
        "unchanged); of every class: the lowest of these.",
        f"{offline['num_requests']:,} requests at t = 0 offline, {online['num_requests']:,} at "
        f"each rate; {checks_text(result.checks)}",
        f"Assumptions: {'; '.join(file.assumptions)}.",
    ]
    return " ".join(parts)


def measures(result: AblationResult) -> dict[str, str]:
    """Return what is in tables, and its heading."""
    called = list(result.ablation.file.classes.values())
    return {
        REQUESTS: "offline [requests/s]",
        TOKENS: "offline [tokens/s]",
        OF_ALL: "rate, all [1/s]",
        EVERY: "rate, every class [1/s]",
        **{f"{RATE}{name}": f"rate, {name} [1/s]" for name in called},
        **{f"{TTFT}{name}": f"offline TTFT, {name} [s]" for name in called},
    }


def sentences(result: AblationResult) -> list[str]:
    """Return what the numbers say, one paragraph each."""
    said: list[str] = []
    for engine in ENGINES:
        for setting in result.ablation.file.settings:
            of = [
                c for c in result.contrasts if (c.line.engine, c.line.setting) == (engine, setting)
            ]
            if of:
                said += _of_engine(result, of, engine, setting)
    return said


def _of_engine(
    result: AblationResult, contrasts: Sequence[Contrast], engine: str, setting: str
) -> list[str]:
    file = result.ablation.file
    alone = [c for c in contrasts if c.alone]
    said = [f"**{engine.capitalize()} engine, {file.settings[setting].what}.** "]
    said[0] += _largest(result, alone)
    whole = [
        f"* “{line.variant.label}” against nothing: {_whole(result, line) or NOTHING}."
        for line in result.ablation.lines
        if (line.engine, line.setting) == (engine, setting)
        and line.variant.label in file.highlights
    ]
    if whole:
        said.append("\n".join(["Together:", *whole]))
    told, nothing = [], []
    for contrast in [*alone, *_fullest(contrasts, False), *_fullest(contrasts, True)]:
        text = _about_contrast(result, contrast)
        effects = _effects(result, contrast.percent, contrast.at_least)
        if effects:
            told.append(f"* {text[0].upper()}{text[1:]}: {effects}.")
        else:
            nothing.append(text)
    if told:
        said.append("\n".join(["One component more, or another one:", *told]))
    said += _urgent(result, engine, setting)
    if nothing:
        said.append(f"No difference that can be told in any of these: {'; '.join(nothing)}.")
    return said


def _urgent(result: AblationResult, engine: str, setting: str) -> list[str]:
    """Return what priorities do for those who have them."""
    lines = [x for x in result.urgent if (x.engine, x.setting) == (engine, setting)]
    said = [f"* “{x.variant.label}”: {_waits(result.urgent[x])}." for x in lines]
    return ["\n".join(["Mean TTFT offline, by priority:", *said])] if said else []


def _waits(of: Mapping[str, Interval]) -> str:
    return ", ".join(f"{mean_text(wait)} s with priority {name}" for name, wait in of.items())


def _fullest(contrasts: Sequence[Contrast], instead: bool) -> list[Contrast]:
    """Return, for each value of a component, the contrast beside the most other components."""
    found: dict[tuple[str, str], Contrast] = {}
    for c in contrasts:
        if c.alone or bool(c.instead_of) != instead:
            continue
        best = found.setdefault((c.component, c.value), c)
        if len(c.line.variant.has) > len(best.line.variant.has):
            found[c.component, c.value] = c
    return list(found.values())


def _whole(result: AblationResult, line: Line) -> str:
    of = [m for m in result.measured if m.line is line]
    at_least = frozenset(m.measure for m in of if m.at_least)
    return _effects(result, {m.measure: m.percent for m in of}, at_least)


def _effects(
    result: AblationResult, percent: Mapping[str, Interval], at_least: frozenset[str]
) -> str:
    """Return the differences that can be told, and which cannot; "": there is none."""
    called = {
        REQUESTS: "offline",
        OF_ALL: "rate of all",
        EVERY: "rate of every class",
        **{f"{RATE}{name}": f"rate of {name}" for name in result.ablation.file.classes.values()},
    }
    sure: list[str] = []
    others: dict[str, list[str]] = {}
    for key, words in called.items():
        kind, text = effect(percent[key], _least(result, key), key in at_least)
        if kind == TOLD:
            sure.append(f"{words} {text}")
        else:
            others.setdefault(kind, []).append(f"{words} {text}".strip())
    if not sure:
        return ""
    return "; ".join([", ".join(sure), *(f"{k}: {', '.join(v)}" for k, v in others.items())])


def _about_contrast(result: AblationResult, contrast: Contrast) -> str:
    text = _what(result, contrast)
    if contrast.instead_of:
        values = result.ablation.file.components[contrast.component]
        text += f" instead of {values[contrast.instead_of].what}"
    if contrast.alone:
        return f"{text}, alone"
    return f"{text}, against “{contrast.base.variant.label}”"


def _largest(result: AblationResult, alone: Sequence[Contrast]) -> str:
    """Return which component gains most by itself."""
    said = []
    for measure, words in ((REQUESTS, "offline throughput"), (EVERY, "the rate of every class")):
        sure = [c for c in alone if is_gain(c.percent[measure], _least(result, measure))]
        if sure:
            best = max(sure, key=lambda c: c.percent[measure].mean)
            gain = percent_text(best.percent[measure])
            said.append(f"{words} gains most by {_what(result, best)} ({gain})")
        else:
            said.append(f"{words} gains by none")
    return f"Alone, {'; '.join(said)}."


def is_gain(percent: Interval, least: float) -> bool:
    """Whether a difference is certainly above what can be told."""
    low = percent.mean if math.isnan(percent.low) else percent.low
    return low > 0 and percent.mean > least


def _least(result: AblationResult, measure: str) -> float:
    """Return the smallest difference of a measure that can be told, per cent."""
    return 100 * result.ablation.file.search.width if measure.startswith(RATE) else 0.0


def _what(result: AblationResult, contrast: Contrast) -> str:
    return result.ablation.file.components[contrast.component][contrast.value].what


def effect(percent: Interval, least: float, at_least: bool = False) -> tuple[str, str]:
    """Return what kind of difference it is, and the difference in words.

    Args:
        percent: the difference.
        least: the smallest that can be told, per cent.
        at_least: it is a lower bound.
    """
    if math.isnan(percent.mean):
        return UNDEFINED, ""
    if at_least:
        return TOLD, f"at least {percent_text(Interval(percent.mean, math.nan, math.nan, 1))}"
    ends = (percent.mean, percent.low, percent.high)
    if all(abs(end) <= least for end in ends if not math.isnan(end)):
        return UNCHANGED, ""
    if not math.isnan(percent.low) and percent.low <= 0 <= percent.high:
        return UNSURE, f"({percent_text(percent)})"
    return TOLD, percent_text(percent)
