"""`run` and `compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.show import by_policy, notices, progress, say, show, show_json

if TYPE_CHECKING:
    from sim.study.config import Experiment, PolicyChoice
    from sim.study.run import StudyResult
    from sim.study.statistics.precision import Precision

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML of the experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys, e.g. workload.arrivals.rate=8."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Jobs = Annotated[
    int, typer.Option("--jobs", min=1, help="Processes; same results with any number.")
]
Roofline = Annotated[
    bool, typer.Option("--roofline", help="Price steps by peak figures: any model, not measured.")
]

PrecisionText = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="SHARE",
        help="Add replications until the half-widths of intervals are so small, e.g. 2%.",
    ),
]
Of = Annotated[
    str | None,
    typer.Option(
        "--of", metavar="KEYS", help="Figures for --precision; default: mean_ttft_ms,mean_tpot_ms."
    ),
]
MaxReplications = Annotated[
    int | None,
    typer.Option("--max-replications", help="Replications for --precision, at most; default 100."),
]


def run(
    config: Config,
    overrides: Overrides = None,
    out: Out = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Chrome trace of the first replication.")
    ] = None,
    json: Json = False,
    jobs: Jobs = 1,
    roofline: Roofline = False,
    precision: PrecisionText = None,
    of: Of = None,
    max_replications: MaxReplications = None,
) -> None:
    """Simulate one policy and print its figures."""
    enough = _precision(precision, of, max_replications)
    experiment = _load(config, overrides, roofline)
    from sim.report.tables import result_table
    from sim.study.files import output_file, output_folder
    from sim.study.output import summary_of, write_result
    from sim.study.provenance import settings_of
    from sim.study.run import run

    if out is not None:
        output_folder(out)
    if timeline is not None:
        output_file(timeline)
    with progress("simulating") as update:
        result = run(experiment, jobs, update, enough)
    notices(result.notes)
    if out is not None:
        write_result(result, out)
        say(f"wrote {out}")
    if timeline is not None:
        _write_timeline(result, timeline)
        say(f"wrote {timeline}: open it at ui.perfetto.dev")
    summary = summary_of(result)
    if json:
        show_json({**summary, "settings": settings_of(result.experiment, result.setup)})
    else:
        show(result_table(summary))


def compare(
    config: Config,
    overrides: Overrides = None,
    policies: Annotated[
        str | None, typer.Option("--policies", help="Names a,b,c; default: the config's list.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Compare with this one; default: the first.")
    ] = None,
    out: Out = None,
    json: Json = False,
    jobs: Jobs = 1,
    roofline: Roofline = False,
    precision: PrecisionText = None,
    of: Of = None,
    max_replications: MaxReplications = None,
) -> None:
    """Simulate several policies on the same requests and print their differences."""
    enough = _precision(precision, of, max_replications)
    experiment = _load(config, overrides, roofline)
    if policies is not None:
        experiment = replace(experiment, policies=_chosen(experiment, policies))
    from sim.report.figures import draw_comparison
    from sim.report.tables import comparison_table
    from sim.study.files import output_folder
    from sim.study.output import comparison_of, write_comparison
    from sim.study.run import compare

    if out is not None:
        output_folder(out)
    with progress("simulating") as update:
        comparison = compare(experiment, baseline, jobs, update, enough)
    notices(by_policy({result.choice.label: result.notes for result in comparison.results}))
    if out is not None:
        write_comparison(comparison, out)
        say(f"wrote {out}, picture: {draw_comparison(out)}")
    content = comparison_of(comparison)
    if json:
        show_json(content)
    else:
        show(comparison_table(content))


def _load(config: Path, overrides: list[str] | None, roofline: bool) -> Experiment:
    from sim.study.config import load_config

    last = ["cluster.profile=roofline"] if roofline else []
    return load_config(config, [*(overrides or []), *last])


def _precision(text: str | None, of: str | None, cap: int | None) -> Precision | None:
    if text is None and of is None and cap is None:
        return None
    from sim.study.statistics.precision import DEFAULT_CAP, parse_precision
    from sim.types import BadInput

    if text is None:
        raise BadInput("--precision is missing; --of and --max-replications are about it")
    return parse_precision(text, of, DEFAULT_CAP if cap is None else cap)


def _chosen(experiment: Experiment, names: str) -> tuple[PolicyChoice, ...]:
    """Return the named policies, with the config's parameters where it lists them."""
    from sim.study.config import more_policies

    listed = {p.label: p for p in experiment.policies}
    asked = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    new = [name for name in asked if name not in listed]
    if new or not asked:
        listed |= {p.label: p for p in more_policies(experiment, new, "--policies")}
    return tuple(listed[name] for name in asked)


def _write_timeline(result: StudyResult, path: Path) -> None:
    from sim.report.timeline import write_timeline
    from sim.study.output import step_columns

    record = result.replications[0].record
    write_timeline(path, record.instances, step_columns(record), record.swaps, record.requests)
