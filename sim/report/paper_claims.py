"""The claims table of a paper: Markdown, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sim.study.files import write_text
from sim.study.paper.assumptions import PAPER_SET
from sim.study.paper.verdict import JOINT, Decisive, Estimate, judge

if TYPE_CHECKING:
    from sim.study.paper.claims import Judged, Result
    from sim.study.statistics.stats import Interval

CSV_NAME, MARKDOWN_NAME, SETTINGS_NAME = "claims.csv", "claims.md", "settings.parquet"
CSV_HEAD = (
    "id figure claim paper bound side ours low high n lowest highest agree against unclear near "
    "alone verdict decisive value mean crosses reason"
)
HEAD = (
    "claim",
    "figure",
    "the paper",
    "ours, paper set",
    "one assumption changed",
    "all changed (5-95 %)",
    "agree / against / unclear",
    "alone",
    "verdict",
    "decisive assumption",
)


def write_claims(result: Result, folder: Path) -> list[Path]:
    """Write the table in each form; the same result gives the same bytes."""
    paths = [folder / name for name in (MARKDOWN_NAME, CSV_NAME, SETTINGS_NAME)]
    write_text(paths[0], markdown(result))
    write_text(paths[1], _csv(result))
    _write_settings(result, paths[2])
    return paths


def markdown(result: Result) -> str:
    """Return the table with what it rests on, and the reason of every verdict."""
    study = result.study
    samples, effort = study.assumptions.samples, study.assumptions.effort
    shorter = ", ".join(f"{count:,} in {name}" for name, count in effort.requests.items())
    singles = sum(len(a.values) - 1 for a in study.assumptions.assumptions.values())
    lines = [
        f"Ours under the paper set: mean and 95 % interval of {samples.paper_seeds} replications, "
        "ratios formed in each on the same requests. "
        f"One assumption changed: lowest and highest mean of {singles} settings "
        f"({len(study.assumptions.assumptions)} assumptions); all changed: {result.points} points "
        f"of a Latin hypercube over them. {samples.seeds} replications a setting; there a rate is "
        f"searched to {effort.width:.0%} with fewer requests ({shorter}). *Agree*, "
        "*against*: points that decide as the paper set does or the opposite; *unclear*: "
        f"{samples.seeds} replications do not decide it there; *alone*: the verdict "
        "under the paper set alone. The rule is `sim/study/paper/verdict.py`.",
        "",
        *table(result),
        "",
        "Why:",
        "",
        *(f"* `{one.claim.id}`: {one.verdict.reason}." for one in result.judged),
        "",
        _check(result),
    ]
    if result.failures:
        lines += ["", _failed(result)]
    return "\n".join(lines) + "\n"


def table(result: Result) -> list[str]:
    """Return the lines of the Markdown table."""
    return rows_as_markdown([HEAD, *(_cells(result, one) for one in result.judged)])


def rows_as_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; the first row is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def _cells(result: Result, one: Judged) -> list[str]:
    claim, found = one.claim, one.verdict
    joint = [s.mean for s in one.settings if s.assumption == JOINT]
    alone = [s.mean for of in one.alone().values() for s in of]
    return [
        claim.text,
        claim.figure,
        said(one),
        interval(one.ours),
        _span(alone),
        _span(joint, 0.05),
        f"{found.agree} / {found.against} / {found.unclear}" if joint else "",
        judge(claim.claimed, one.ours, ()).name,
        f"**{found.name}**",
        decisive(result, found.decisive),
    ]


def said(one: Judged) -> str:
    """Return what the paper claims, with its unit."""
    claim = one.claim
    unit = f" {claim.unit}" if claim.unit not in ("", "share") else ""
    if claim.value is None:
        return f"{claim.side} {claim.bound:g}{unit}"
    about = {"about": "about ", "up to": "up to ", "below": "below ", "exactly": ""}
    return f"{about[claim.relation]}{claim.value:.4g}{unit}"


def interval(found: Interval) -> str:
    """Return a mean with its interval."""
    if math.isnan(found.mean):
        return "undefined"
    if math.isnan(found.low):
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def decisive(result: Result, found: Decisive | None) -> str:
    """Return the decisive assumption as the table shows it."""
    if found is None:
        return "none was changed"
    label = result.study.assumptions.assumptions[found.assumption].label
    what = {"bound": "crosses the bound", "value": "gains or loses the value"}
    return (
        f"{label} = {found.value}: {found.mean:.3g}, {what.get(found.crosses, 'crosses nothing')}"
    )


def _span(means: Iterable[float], cut: float = 0.0) -> str:
    """Return lowest and highest, without the given share of either end."""
    known = sorted(mean for mean in means if not math.isnan(mean))
    if not known:
        return ""
    low, high = round(cut * (len(known) - 1)), round((1 - cut) * (len(known) - 1))
    return f"{known[low]:.3g} to {known[high]:.3g}"


def _check(result: Result) -> str:
    """Return what the shorter runs of the settings change by themselves."""
    moves = [
        (abs(one.check.mean / one.ours.mean - 1), one)
        for one in result.judged
        if one.ours.mean and not math.isnan(one.check.mean + one.ours.mean)
    ]
    if not moves:
        return ""
    move, one = max(moves, key=lambda pair: pair[0])
    return (
        "The paper set with the settings' shorter runs differs by at most "
        f"{move:.1%} (`{one.claim.id}`: {interval(one.check)})."
    )


def _failed(result: Result) -> str:
    names = sorted({name.split(": ")[0] for name in result.failures})
    first, why = next(iter(result.failures.items()))
    return (
        f"{len(result.failures)} quantities could not be measured, under {len(names)} settings; "
        f"they count as unclear. The first: {first}: {why}."
    )


def _csv(result: Result) -> str:
    """Return a row for each claim, with every figure as a number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD.split())
    for one in result.judged:
        claim, found = one.claim, one.verdict
        last = found.decisive
        writer.writerow(
            [
                *(claim.id, claim.figure, claim.text),
                *("" if x is None else x for x in (claim.value, claim.bound, claim.side)),
                *(f"{x:.6g}" for x in (one.ours.mean, one.ours.low, one.ours.high)),
                one.ours.n,
                *(f"{x:.6g}" for x in (found.lowest, found.highest)),
                *(found.agree, found.against, found.unclear, found.near),
                judge(claim.claimed, one.ours, ()).name,
                found.name,
                *(
                    ("", "", "", "")
                    if last is None
                    else (last.assumption, last.value, f"{last.mean:.6g}", last.crosses)
                ),
                found.reason,
            ]
        )
    return text.getvalue()


def _write_settings(result: Result, path: Path) -> None:
    """Write ours under every setting: a row for each claim and setting."""
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]

    from sim.study.files import written_aside

    rows = []
    for one in result.judged:
        seen: list[tuple[str, object, Estimate]] = [(PAPER_SET, "", one.ours)]
        seen.append((PAPER_SET, "shorter runs", one.check))
        seen += [(s.assumption, s.value, s) for s in one.settings]
        for name, value, found in seen:
            about = {"claim": one.claim.id, "assumption": name, "value": str(value)}
            rows.append(about | {"mean": found.mean, "low": found.low, "high": found.high})
    table = pa.Table.from_pylist(rows)
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with written_aside(path) as aside:
        pq.write_table(table, aside, store_schema=False, **options)
