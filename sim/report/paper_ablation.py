"""The ablation: tables, sentences and a picture, all from the numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.report.paper_tables import cells, markdown_table, mean_text, percent_text, write_tables
from sim.report.recipe_figures import CHARS_OF_INCH, PAPER_STYLE, framed, saved
from sim.report.recipe_parts import INK
from sim.study.files import write_text
from sim.study.paper.ablation import (
    E2E,
    EVERY,
    OF_ALL,
    RATE,
    REQUESTS,
    TOKENS,
    AblationResult,
    Contrast,
    Line,
    Measured,
)
from sim.study.paper.studies import ENGINES
from sim.study.statistics.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "ablation"
COMMAND = "make ablation"
LOOKS = {"padded": ("#16425b", "o", "#16425b"), "padding-free": ("#d9772b", "s", "white")}
"""Engine -> colour, marker, what fills it."""
WIDTH = 10.0
INCHES_OF_ROW = 0.185
PANEL_INCHES = 0.9
ROOM = 1.12
"""Of the largest rate that is known, to the right."""


def write_ablation(result: AblationResult, folder: Path) -> list[Path]:
    """Write tables, page and picture into a folder; return their paths."""
    page = folder / f"{NAME}.md"
    write_text(page, "\n".join(ablation_page(result)) + "\n")
    return [*write_tables(folder, NAME, list(_rows(result))), page, *_draw(result, folder)]


def _rows(result: AblationResult) -> Iterator[dict[str, Any]]:
    """Yield variants, then contrasts: `percent` is to the bare variant, or to `against`."""
    for m in result.measured:
        yield _about(m.line, m.measure) | {
            "against": "",
            "component": "",
            "value": "",
            "instead_of": "",
            "n": m.mean.n,
            "at_least": is_open(result, m),
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
                "at_least": False,
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


def is_open(result: AblationResult, measured: Measured) -> bool:
    """Whether even the highest rate tried reaches the target, in some replication."""
    top = result.ablation.file.search.most_per_s
    return measured.measure.startswith(RATE) and max(measured.values) >= top


# -- the page -----------------------------------------------------------------------------------


def ablation_page(result: AblationResult) -> list[str]:
    """Return the lines of the page."""
    file = result.ablation.file
    lines = [f"# {file.title}", "", f"`{COMMAND}`. {_how(result)}", ""]
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


def _how(result: AblationResult) -> str:
    file, n = result.ablation.file, result.ablation.seeds
    seeds = "One seed, no intervals" if n == 1 else f"Means of {n} seeds with 95 % intervals"
    parts = [
        f"{seeds} (Student t), differences paired.",
        f"Rates are the highest at which {file.attainment:.0%} of the requests meet both bounds, "
        f"known to {file.search.width:.0%}; of every class: the lowest of these.",
        f"Not one crossing in {result.uneven} of {result.searches} searches.",
        f"Assumptions: {'; '.join(file.assumptions)}.",
    ]
    return " ".join(parts)


def _measures(result: AblationResult) -> dict[str, str]:
    """Return what is in tables, and its heading."""
    called = list(result.ablation.file.classes.values())
    return {
        REQUESTS: "offline [requests/s]",
        TOKENS: "offline [tokens/s]",
        OF_ALL: "rate, all [1/s]",
        EVERY: "rate, every class [1/s]",
        **{f"{RATE}{name}": f"rate, {name} [1/s]" for name in called},
        **{f"{E2E}{name}": f"offline end to end, {name} [s]" for name in called},
    }


def _values(result: AblationResult, lines: Sequence[Line]) -> list[str]:
    heads = _measures(result)
    rows = []
    for line in lines:
        found = [result.of(line, measure) for measure in heads]
        texts = [mean_text(m.mean, "at least " if is_open(result, m) else "") for m in found]
        rows.append([line.variant.label, *texts])
    return markdown_table(["variant", *heads.values()], rows)


def _differences(result: AblationResult, lines: Sequence[Line]) -> list[str]:
    heads = _measures(result)
    rows = []
    for line in lines:
        if line.variant.has:
            found = [result.of(line, measure) for measure in heads]
            texts = [percent_text(m.percent, "over " if is_open(result, m) else "") for m in found]
            rows.append([line.variant.label, *texts])
    names = [head.rpartition(" [")[0] for head in heads.values()]
    return markdown_table(["difference to nothing", *names], rows)


def _contrasts(result: AblationResult) -> list[str]:
    heads = _measures(result)
    rows = []
    for c in result.contrasts:
        what = f"{c.component}: {c.value}" + (f" for {c.instead_of}" if c.instead_of else "")
        where = f"{c.line.engine}, {c.line.setting}"
        texts = [percent_text(c.percent[measure]) for measure in heads]
        rows.append([where, what, c.base.variant.label, *texts])
    names = [head.rpartition(" [")[0] for head in heads.values()]
    return markdown_table(["engine, setting", "component", "added to", *names], rows)


# -- sentences ----------------------------------------------------------------------------------


def sentences(result: AblationResult) -> list[str]:
    """Return what the numbers say, one paragraph each."""
    said: list[str] = []
    for engine in ENGINES:
        for setting in result.ablation.file.settings:
            of = [
                c
                for c in result.contrasts
                if (c.line.engine, c.line.setting) == (engine, setting)
            ]
            if of:
                said += _of_engine(result, of, engine, setting)
    return said


def _of_engine(
    result: AblationResult, contrasts: Sequence[Contrast], engine: str, setting: str
) -> list[str]:
    what = result.ablation.file.settings[setting].what
    alone = [c for c in contrasts if c.alone]
    beside = [c for c in contrasts if not c.alone and not c.instead_of]
    instead = [c for c in contrasts if c.instead_of]
    said = [f"**{engine.capitalize()} engine, {what}.** {_largest(result, alone)}"]
    for title, some in (("Alone", alone), ("Beside others", beside), ("Instead", instead)):
        if some:
            said.append("\n".join([f"{title}:", *(f"* {_sentence(result, c)}" for c in some)]))
    return said


def _largest(result: AblationResult, alone: Sequence[Contrast]) -> str:
    """Return which component gains most by itself."""
    said = []
    for measure, words in ((REQUESTS, "offline throughput"), (EVERY, "the rate of every class")):
        sure = [c for c in alone if is_gain(c.percent[measure], _least(result, measure))]
        if sure:
            best = max(sure, key=lambda c: c.percent[measure].mean)
            gain = percent_text(best.percent[measure])
            said.append(f"alone, {_what(result, best)} gain most in {words} ({gain})")
        else:
            said.append(f"no component alone gains anything in {words}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


def is_gain(percent: Interval, least: float) -> bool:
    """Whether a difference is certainly above what can be told."""
    low = percent.mean if math.isnan(percent.low) else percent.low
    return low > 0 and percent.mean > least


def _least(result: AblationResult, measure: str) -> float:
    """Return the smallest difference of a measure that can be told, per cent."""
    return 100 * result.ablation.file.search.width if measure.startswith(RATE) else 0.0


def _sentence(result: AblationResult, contrast: Contrast) -> str:
    measures = {
        REQUESTS: "offline",
        OF_ALL: "rate of all",
        EVERY: "of every class",
        **{f"{RATE}{name}": f"of {name}" for name in result.ablation.file.classes.values()},
    }
    effects = [
        f"{words} {effect(contrast.percent[measure], _least(result, measure))}"
        for measure, words in measures.items()
    ]
    text = _what(result, contrast)
    if contrast.instead_of:
        values = result.ablation.file.components[contrast.component]
        text += f" instead of {values[contrast.instead_of].what}"
    if not contrast.alone:
        text += f", against “{contrast.base.variant.label}”"
    return f"{text[0].upper()}{text[1:]}: {', '.join(effects)}."


def _what(result: AblationResult, contrast: Contrast) -> str:
    return result.ablation.file.components[contrast.component][contrast.value].what


def effect(percent: Interval, least: float) -> str:
    """Return a difference in words; one that cannot be told from none says so.

    Args:
        percent: the difference.
        least: the smallest that can be told, per cent.
    """
    if math.isnan(percent.mean):
        return "undefined"
    ends = (percent.mean, percent.low, percent.high)
    known = [end for end in ends if not math.isnan(end)]
    if all(abs(end) <= least for end in known):
        return "no difference" if least else "exactly no difference"
    if not math.isnan(percent.low) and percent.low <= 0 <= percent.high:
        return f"none that can be told ({percent_text(percent)})"
    return percent_text(percent)


# -- the picture --------------------------------------------------------------------------------


def _draw(result: AblationResult, folder: Path) -> list[Path]:
    """Draw every variant: a row each, a panel for each measure, a mark for each engine."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    heads = {k: v for k, v in _measures(result).items() if k != TOKENS and not k.startswith(E2E)}
    rows = _rows_drawn(result)
    height = PANEL_INCHES + len(rows) * INCHES_OF_ROW
    handles: dict[str, Any] = {}
    with mpl.rc_context(PAPER_STYLE):
        canvas = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = list(canvas.subplots(1, len(heads), sharey=True, squeeze=False)[0])
        for one, (measure, head) in zip(axes, heads.items(), strict=True):
            _panel(result, one, measure, rows, handles)
            one.set_xlabel(head)
        _labels(result, axes, rows)
        lines = textwrap.wrap(_caption(result), round(WIDTH * CHARS_OF_INCH))
        framed(canvas, result.ablation.file.title, handles, lines, (WIDTH, height))
        return saved(canvas, folder, NAME)


def _rows_drawn(result: AblationResult) -> list[tuple[str, str]]:
    """Return setting and label of every row, from the top; an empty label is a gap."""
    found: dict[tuple[str, str], None] = {}
    for setting in result.ablation.file.settings:
        if found:
            found[setting, ""] = None
        for line in result.ablation.lines:
            if line.setting == setting:
                found[setting, line.variant.label] = None
    return list(found)


def _panel(
    result: AblationResult,
    axes: Axes,
    measure: str,
    rows: Sequence[tuple[str, str]],
    handles: dict[str, Any],
) -> None:
    of = [m for m in result.measured if m.measure == measure]
    known = [m.mean.mean for m in of if not is_open(result, m) and m.mean.mean == m.mean.mean]
    right = ROOM * max(known, default=1.0)
    for at, engine in enumerate(ENGINES):
        colour, marker, fill = LOOKS[engine]
        style = {"color": colour, "marker": marker, "markerfacecolor": fill, "markersize": 5}
        for m in of:
            if m.line.engine != engine:
                continue
            y = rows.index((m.line.setting, m.line.variant.label)) + (at - 0.5) * 0.3
            if is_open(result, m) or m.mean.mean > right:
                axes.plot(right, y, **{**style, "marker": ">"}, clip_on=False, linestyle="none")
                continue
            half = 0.0 if math.isnan(m.mean.low) else m.mean.high - m.mean.mean
            drawn = axes.errorbar(
                m.mean.mean, y, xerr=half, linestyle="none", capsize=2, elinewidth=1, **style
            )
            handles.setdefault(f"{engine} engine", drawn)
        base = next((m for m in of if m.line.engine == engine and not m.line.variant.has), None)
        if base is not None:
            axes.axvline(base.mean.mean, color=colour, linewidth=0.9, linestyle=_dash(at))
    axes.set_xlim(0, right)


def _dash(at: int) -> Any:
    return ((0, (5, 2)), (0, (1.2, 1.4)))[at]


def _labels(result: AblationResult, axes: Sequence[Axes], rows: Sequence[tuple[str, str]]) -> None:
    first = axes[0]
    first.set_yticks(range(len(rows)), [label for _, label in rows])
    first.set_ylim(len(rows) - 0.3, -0.7)
    for one in axes:
        one.tick_params(axis="y", length=0)
        one.grid(visible=False, axis="y")
    for y, (setting, label) in enumerate(rows):
        if not label:
            first.annotate(
                f"{result.ablation.file.settings[setting].what}:",
                (0, y),
                (-4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                fontstyle="italic",
                color=INK,
            )


def _caption(result: AblationResult) -> str:
    return (
        f"{_how(result)} Vertical lines: nothing on, by engine. An arrow at the edge: at least "
        "that, or more than the axis shows."
    )
