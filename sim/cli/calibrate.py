"""`calibrate`: measure and fit on a real device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.show import Interrupted, notices, progress, say, show_columns, show_json

if TYPE_CHECKING:
    from calibrate.fit import FitReport
    from calibrate.measure import Outcome
    from calibrate.plan import Setting
    from calibrate.points import Point
    from calibrate.rig import DeviceRig

app = typer.Typer(help="Measure a real device, fit a profile for the simulator.")

CPU_BUDGET_MINUTES, CUDA_BUDGET_MINUTES = 1.2, 4.0
"""Defaults of `--budget-minutes`."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


class Padded(StrEnum):
    """Which paths are measured."""

    BOTH = "both"
    NONE = "none"
    ONLY = "only"


PATHS = {Padded.BOTH: (False, True), Padded.NONE: (False,), Padded.ONLY: (True,)}


class Dtype(StrEnum):
    """Types of weights and KV cache."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


@app.command()
def measure(
    model: Annotated[str, typer.Option("--model", help="Model of the catalogue.")] = "tiny-llama",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the samples; one there is continued.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Default: fp32 on the CPU, else bf16.")
    ] = None,
    padded: Annotated[
        Padded, typer.Option("--padded", help="The padded path beside the padding-free one?")
    ] = Padded.BOTH,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="safetensors; default: random weights.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Catalogue name of the GPU; default: recognised.")
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option("--budget-minutes", help="Stop then. Default: 1.2 on the CPU, else 4."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print points, minutes and memory; measure nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Time forward passes of a model on a device; Ctrl-C keeps what is done, the next call goes on.

    Writes samples.csv (one row a point) and samples.json (device, versions, engine settings).
    """
    default = CUDA_BUDGET_MINUTES if device.startswith("cuda") else CPU_BUDGET_MINUTES
    minutes = default if budget_minutes is None else budget_minutes
    _check(out, dry_run, minutes)
    rig = _open(model, device, dtype, padded, weights, gpu)
    from calibrate.plan import Pace
    from calibrate.points import grid

    points = grid(rig.limits, PATHS[padded], Pace(rig.setting).seconds)
    if dry_run:
        _show_plan(points, rig.setting, minutes, json)
        return
    assert out is not None
    from calibrate.measure import SAMPLES, measure

    try:
        with progress("measuring") as update:
            outcome = measure(rig, points, out, 60 * minutes, update)
    except KeyboardInterrupt:
        raise Interrupted(f"{out} keeps the finished points, the same command goes on") from None
    notices(outcome.notes)
    say(f"wrote {out / SAMPLES}")
    if json:
        show_json({**asdict(outcome), "samples": str(out / SAMPLES)})
    else:
        print(_summary(outcome))


@app.command()
def fit(
    samples: Annotated[
        Path | None, typer.Argument(metavar="DIR|CSV", help="What `measure` wrote.")
    ] = None,
    operators: Annotated[
        Path | None, typer.Option("--operators", help="Folder of operator tables instead.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="With --operators: whose tables.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --operators: one model; default: all.")
    ] = None,
    tp: Annotated[
        int | None, typer.Option("--tp", min=1, help="With --operators: one degree; default: all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder (or FILE.yaml); default: beside the CSV.")
    ] = None,
    json: Json = False,
) -> None:
    """Fit profiles for `run` to measured samples, or to operator tables of a GPU."""
    from sim.types import BadInput

    if (samples is None) == (operators is None):
        raise BadInput("give either DIR|CSV of a measurement or --operators DIR")
    if samples is not None:
        if (gpu, model, tp) != (None, None, None):
            raise BadInput("--gpu, --model and --tp go with --operators; samples.json has its own")
        _fit_samples(samples, out, json)
        return
    assert operators is not None
    if gpu is None or out is None:
        raise BadInput("--operators needs --gpu NAME and --out DIR")
    _fit_operators(operators, gpu, model, tp, out, json)


def _fit_samples(samples: Path, out: Path | None, json: bool) -> None:
    from calibrate.fit import fit_folder, padding_of
    from calibrate.padding import padding_lines

    reports = fit_folder(samples, out)
    padding = padding_of(samples, reports)
    if json:
        profiles = [_fitted(report) for report in reports]
        show_json({"profiles": profiles, "padding": [asdict(cost) for cost in padding]})
        return
    for report in reports:
        print("\n".join(report.lines()))
    for line in padding_lines(padding):
        print(line)


def _fitted(report: FitReport) -> dict[str, Any]:
    """Return what `--json` prints of a profile."""
    return {
        "profile": report.profile.name,
        "file": str(report.file),
        "picture": str(report.picture),
        "held_out": {kind: error.model_dump() for kind, error in report.held_out.items()},
        "points": len(report.marks),
        "left_out": report.left_out,
        "remarks": list(report.remarks),
        "notes": list(report.profile.notes),
    }


def _fit_operators(
    tables: Path, gpu: str, model: str | None, tp: int | None, out: Path, json: bool
) -> None:
    from calibrate.operators import fit_operators, report_lines
    from sim.study.files import output_folder

    reports = fit_operators(tables, gpu, model, tp, output_folder(out))
    if json:
        show_json({"profiles": [{**asdict(r), "path": r.path and str(r.path)} for r in reports]})
    else:
        print("\n".join(report_lines(reports)))


@app.command()
def replay(
    measured: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of measure and fit, with the profiles.")
    ],
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results; default: DIR/replay.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", help="Simulated time of a replay. Default: CPU 3, else 12."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option("--policies", help="Of continuous, static, bucketserve.")
    ] = None,
    loads: Annotated[
        str | None, typer.Option("--loads", help="Shares of saturation; default 0.8,0.5,1.")
    ] = None,
    json: Json = False,
) -> None:
    """Run the same policies on the device and in the simulator; print the errors.

    Writes diff.md, cdf.png, requests.parquet of both sides, engine.yaml and the profiles used,
    after every replay, so that an interruption loses one.
    """
    need_torch()
    from calibrate.replay import CPU, CUDA, POLICIES, replay_folder

    scenario = CUDA if device.startswith("cuda") else CPU
    if seconds is not None:
        scenario = replace(scenario, seconds=_positive("--seconds", seconds))
    if policies is not None:
        scenario = replace(scenario, policies=_policies(policies, POLICIES))
    if loads is not None:
        shares = tuple(_positive("--loads", text) for text in loads.split(","))
        scenario = replace(scenario, loads=shares)
    found = replay_folder(measured, device, out, scenario, say)
    folder = out or measured / "replay"
    say(f"wrote {folder}, picture: {folder / 'cdf.png'}")
    if json:
        show_json({"differences": [asdict(row) | {"error": row.error} for row in found]})
        return
    shown = [row for row in found if row.bar is not None]
    show_columns(
        {
            "policy": [row.policy for row in shown],
            "load": [f"{row.load:.0%}" for row in shown],
            "figure": [row.figure for row in shown],
            "real": [f"{row.real:.4g}" for row in shown],
            "simulated": [f"{row.simulated:.4g}" for row in shown],
            "error": [f"{row.error:+.1%}" for row in shown],
        }
    )


def _positive(option: str, value: str | float) -> float:
    from sim.types import BadInput

    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise BadInput(f"{option} {value}: must be a number above 0")
    return number


def _policies(names: str, valid: Sequence[str]) -> tuple[str, ...]:
    from sim.types import BadInput

    chosen = tuple(names.split(","))
    for name in chosen:
        if name not in valid:
            raise BadInput(f"--policies: {name!r} is not replayed; valid: {', '.join(valid)}")
    return chosen


def _check(out: Path | None, dry_run: bool, minutes: float) -> None:
    from sim.types import BadInput

    if out is None and not dry_run:
        raise BadInput("--out is missing: the folder for the samples (or --dry-run)")
    if not minutes > 0:
        raise BadInput(f"--budget-minutes {minutes:g}: must be above 0")


def _open(
    model: str,
    device: str,
    dtype: str | None,
    padded: Padded,
    weights: Path | None,
    gpu: str | None,
) -> DeviceRig:
    need_torch()
    from calibrate.rig import open_rig
    from sim.costs.catalogue import model_named

    model_named(model)  # an unknown one ends here
    say(f"loading {model} on {device}")
    rig = open_rig(model, device, dtype, PATHS[padded], weights, gpu)
    for path, (kernel, note) in rig.kernels().items():
        say(f"attention, {path}: {kernel}" + (f" ({note})" if note else ""))
    return rig


def need_torch() -> None:
    """Raise `BadInput` with the remedy where torch is not installed."""
    from importlib.util import find_spec

    from sim.types import BadInput

    if find_spec("torch") is None:
        raise BadInput("calibrate runs a model and needs torch: pip install 'bucketsim[calibrate]'")


def _show_plan(points: list[Point], setting: Setting, minutes: float, json: bool) -> None:
    from calibrate.plan import plan

    groups = plan(points, setting)
    total = sum(group.minutes for group in groups)
    if json:
        content: dict[str, Any] = {"groups": [asdict(group) for group in groups]}
        show_json(content | {"minutes": total, "budget_minutes": minutes})
        return
    show_columns(
        {
            "phase": [group.phase for group in groups],
            "padded": ["yes" if group.padded else "no" for group in groups],
            "points": [group.points for group in groups],
            "refused": [group.refused for group in groups],
            "minutes": [f"{group.minutes:.1f}" for group in groups],
            "memory, GB": [f"{group.most_bytes / 1e9:.2f}" for group in groups],
        }
    )
    print(
        f"{sum(group.points for group in groups)} points, about {total:.1f} minutes for all; "
        f"budget {minutes:g} minutes, most informative points first"
    )


def _summary(outcome: Outcome) -> str:
    parts = [
        f"{outcome.ok} of {outcome.planned} points measured in {outcome.seconds:.0f} s",
        f"{outcome.kept} were there" if outcome.kept else "",
        f"{outcome.again} measured twice" if outcome.again else "",
        f"{outcome.refused} refused" if outcome.refused else "",
        f"{outcome.oom} out of memory" if outcome.oom else "",
        f"{outcome.skipped_for_time} left out for time" if outcome.skipped_for_time else "",
    ]
    return ", ".join(part for part in parts if part)
