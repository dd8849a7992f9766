"""`docs/fidelity.md`: what was compared with measured runs, and how well it fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sim.report.fidelity import TITLES, error_text, percent, value_text
from sim.report.tables import number
from sim.study.fidelity.ablation import AS_MODELLED, Ablated
from sim.study.fidelity.cases import Judged
from sim.study.fidelity.errors import ALL, FEW, Figure, of
from sim.study.fidelity.fit import Fitted

HEAD = """# How close to measured runs

Simulated against measured, request by request. `make fidelity` reads the measured runs in
`../shared/data`, fits the constants named below, replays everything and writes this page; the same
for any run of yours: `bucketsim validate RESULT --engine FILE` ([how](validate.md)).

An error is simulated / measured - 1. MAPE: mean over requests of |simulated / measured - 1|.
A run teaches the simulator its host and API constants and nothing else: the fit knows no other
parameter (`sim/study/fidelity/fit.py`, `CONSTANTS`), and the constants found are printed here with
the rows they come from. All else is the profile (operator tables or published coefficients) and the
engine's rules.
"""

NOISE = """## Noise floor

Repeated real runs of one load differ by 4-7 % in TTFT, 1-3.5 % in TPOT and 0.3-3 % in E2E
(the project's `costs.md`, section 6; the runs here were not repeated). An error inside these ranges
cannot be told from chance. When a decode step begins against an arrival is chance as well: at low
load it moves a single TTFT by up to one step.
"""

CLAIMS = """*Claim*: **absolute** where the error is inside the project's bars (TPOT, E2E 3 %, TTFT
10 % below the knee, throughput 5 %, SLO attainment 5 points), else **ranking**: use it to compare
policies, not as a number. TTFT with no free seat is queueing, where 1 % in step time is about 10 %
in TTFT: never more than ranking. Fewer than 10 requests: no claim.
"""

NOT_MODELLED = """## What is not modelled

* CUDA graph padding: a decode batch runs at the next captured size (up to 7 rows more above 8).
* The first step of a cold engine, unless `engine.first_step_ms` is set: the first request here.
* Tokenising and detokenising as a load on the host: a constant per request and per step.
* Late-2023 engines: host time per prompt token (slot mapping in Python); here it shows as TTFT too
  low for long prompts and too high for short ones, by about 0.01 ms a token.
* A sampler that costs more with penalties or top-p; multi-modal prompts; LoRA; drafts.
* The client: its own queueing, network and clock.
* Clock throttling and neighbours on the same host.
"""

BARS = {"tpot": 0.03, "e2el": 0.03, "ttft": 0.10, "throughput": 0.05, "slo": 0.05}
QUEUED = "no free seat"


def page(judged: Sequence[Judged], pictures: str) -> str:
    """Return the page.

    Args:
        judged: what came of each case.
        pictures: folder of the pictures, relative to the page.
    """
    lines = [HEAD, *_overview(judged), CLAIMS, NOISE]
    for case in judged:
        lines += [*_case(case, pictures)]
    return "\n".join([*lines, NOT_MODELLED]).rstrip() + "\n"


def claim(figure: Figure) -> str:
    """Return `absolute`, `ranking`, or nothing for too few requests."""
    if figure.requests < FEW:
        return "-"
    if figure.metric == "ttft" and QUEUED in figure.band:
        return "ranking"
    return "absolute" if abs(figure.error) <= BARS[figure.metric] else "ranking"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return a Markdown table; all columns but the first `left` are right-aligned."""
    rule = ["---"] * left + ["--:"] * (len(titles) - left)
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *rows)] + [""]


def _overview(judged: Sequence[Judged]) -> list[str]:
    rows = []
    for case in judged:
        found = case.ablated[0].figures
        row = [case.case.title, str(len(case.made.measured.trace))]
        for metric in ("ttft", "tpot", "e2el"):
            mean, median = (of(found, metric, statistic) for statistic in ("mean", "p50"))
            row.append(f"{percent(mean.error)} / {percent(median.error)}")
        row.append(" / ".join(_mape(of(found, m, "mean")) for m in ("ttft", "tpot", "e2el")))
        row.append(error_text(of(found, "throughput", "requests").row()))
        rows.append(row)
    titles = ["run", "requests", "TTFT mean / p50", "TPOT mean / p50", "E2E mean / p50"]
    return [
        "## At a glance",
        "",
        *table([*titles, "MAPE TTFT / TPOT / E2E", "throughput"], rows),
        "With the constants fitted on the same runs; on rows that the fit did not see: below.",
        "",
    ]


def _case(judged: Judged, pictures: str) -> Iterator[str]:
    case, made = judged.case, judged.made
    profile = made.setup.instances[0].costs.profile
    yield f"## {case.title}\n"
    yield f"Measured by {case.source}. Profile `{profile.name}`: {profile.basis}; {profile.source}."
    yield f"Clock: {made.clock}. KV cache: {case.kv}."
    lost = f"{made.extrapolated_steps:,} of {made.steps:,} steps"
    yield f"Outside the profile's range: {lost}.\n"
    yield f"![measured and simulated distributions]({pictures}/{case.name}.png)\n"
    yield from _errors(judged)
    yield from _bands(judged)
    yield from _constants(judged)
    yield from _offsets(judged)
    yield from _ablation(judged)


def _errors(judged: Judged) -> list[str]:
    rows = []
    for figure in judged.ablated[0].figures:
        if figure.band == ALL:
            unit = "%" if figure.unit == "share" else figure.unit
            single = _mape(figure) if figure.statistic == "mean" else ""
            rows.append([f"{TITLES[figure.metric]} {figure.statistic}", unit, *_values(figure)])
            rows[-1] += [single, claim(figure)]
    titles = ["", "unit", "measured", "simulated", "error", "MAPE", "claim"]
    return ["### Errors", "", *table(titles, rows)]


def _bands(judged: Judged) -> list[str]:
    figures = [f for f in judged.ablated[0].figures if f.band != ALL and f.statistic == "mean"]
    rows = [
        [f.band, TITLES[f.metric], str(f.requests), *_values(f), _mape(f), claim(f)]
        for f in figures
    ]
    titles = ["load band", "mean of", "requests", "measured ms", "simulated ms", "error", "MAPE"]
    return [
        "### By load band",
        "",
        "Band: other requests in the system at arrival, in the measured run.",
        "",
        *table([*titles, "claim"], rows, 2),
    ]


def _constants(judged: Judged) -> list[str]:
    rows = [_constants_row("all", judged.fitted, ())]
    for half in judged.halves:
        rows.append(_constants_row("half", half.fitted, half.figures))
    names = list(judged.fitted.values_ms)
    titles = ["rows used", *(f"`{name}`" for name in names), "TTFT", "TPOT", "E2E"]
    return [
        "### Constants fitted, and the rows used",
        "",
        "In milliseconds, ± standard error (jackknife over ten blocks of rows); 0 ± 0: at the "
        "lower bound. Errors of means on the rows that were not used:",
        "",
        *table(titles, rows),
        f"`{judged.engine_file.as_posix()}` holds the first row's for `bucketsim validate "
        "--engine`.",
        "",
    ]


def _constants_row(what: str, fitted: Fitted, figures: Sequence[Figure]) -> list[str]:
    first, last = fitted.rows
    row = [f"{first}-{last}" + (" (all)" if what == "all" else "")]
    for name, value in fitted.values_ms.items():
        row.append(f"{value:.3g} ± {fitted.errors_ms[name]:.2g}")
    for metric in ("ttft", "tpot", "e2el"):
        row.append(percent(of(figures, metric, "mean").error) if figures else "")
    return row


def _offsets(judged: Judged) -> list[str]:
    rows = [
        [
            f"{offset.low}-{offset.high - 1}",
            str(offset.requests),
            f"{offset.rows:.1f}",
            percent(offset.prefill_share, signed=False),
            f"{offset.measured_ms:.2f}",
            f"{offset.composed_ms:.2f}",
            f"{offset.missing_ms:+.2f}",
            percent(offset.composed_ms / offset.measured_ms - 1),
            percent(offset.fitted_ms / offset.measured_ms - 1),
        ]
        for offset in judged.offsets
    ]
    titles = ["rows a step", "requests", "mean", "steps with a prompt", "measured TPOT ms"]
    titles += ["profile alone ms", "missing ms a step", "error", "error, fitted"]
    plain = of(_figures(judged), "tpot", "mean")
    return [
        "### What the profile alone says of a step",
        "",
        f"Before anything is fitted the replay's mean TPOT is {percent(plain.error)}, mean E2E "
        f"{percent(of(_figures(judged), 'e2el', 'mean').error)}. By the batches that requests "
        "decode in:",
        "",
        *table(titles, rows),
    ]


def _figures(judged: Judged) -> list[Figure]:
    from sim.study.fidelity.errors import figures

    return figures(judged.plain)


def _ablation(judged: Judged) -> list[str]:
    rows = [_ablated_row(row) for row in judged.ablated]
    titles = ["", "TTFT mean", "TPOT mean", "E2E mean", "MAPE TTFT", "MAPE TPOT", "MAPE E2E"]
    has_slo = any(f.metric == "slo" for f in judged.ablated[0].figures)
    titles += ["throughput", *(["SLO"] if has_slo else [])]
    return [
        "### What each part is worth",
        "",
        "Errors with one thing taken away, the constants as fitted with everything in place. Rows "
        "equal to the first: it did not bind in this run (full-sequence reservation, null block "
        "and size of the KV cache matter only when memory is short).",
        "",
        *table(titles, rows),
        *_not_in_play(judged),
    ]


def _not_in_play(judged: Judged) -> list[str]:
    """Return what this run cannot tell about."""
    profile = judged.made.setup.instances[0].costs.profile
    absent = ["the all-reduce (one GPU)"] if profile.tp == 1 else []
    if not profile.terms.lm_head.knots_tokens_ms:
        absent.append("lm_head (inside the coefficients of the dense layers)")
    if judged.made.experiment.engine.preset != "vllm-0.19":
        absent.append("asynchronous scheduling and prefix caching (not in this version)")
    return [f"Not in play here: {', '.join(absent)}.", ""] if absent else []


def _ablated_row(ablated: Ablated) -> list[str]:
    found = ablated.figures
    means = [of(found, metric, "mean") for metric in ("ttft", "tpot", "e2el")]
    row = [f"**{ablated.name}**" if ablated.name == AS_MODELLED else ablated.name]
    row += [percent(figure.error) for figure in means] + [_mape(figure) for figure in means]
    row.append(percent(of(found, "throughput", "requests").error))
    slo = [f for f in found if f.metric == "slo" and f.statistic == ALL]
    return row + [error_text(f.row()) for f in slo]


def _values(figure: Figure) -> list[str]:
    row = figure.row()
    if figure.unit == "share":
        pair = [value_text(row[side], "share") for side in ("measured", "simulated")]
    else:
        pair = [number(row[side]) for side in ("measured", "simulated")]
    return [*pair, error_text(row)]


def _mape(figure: Figure) -> str:
    return percent(figure.mape, signed=False)


def write_page(judged: Sequence[Judged], path: Path, pictures: str) -> None:
    """Write the page."""
    from sim.study.files import write_text

    write_text(path, page(judged, pictures))
