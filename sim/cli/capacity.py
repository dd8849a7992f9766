"""`capacity`: what it takes to serve a rate."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.show import notices, progress, say, show_columns, show_json
from sim.cli.study import Config, Json, Overrides, Roofline
from sim.cli.study import _load as load

if TYPE_CHECKING:
    from sim.study.placement import Candidate, Found, Layout, Placement


NAMED = 4
"""Skipped layouts that are named with a reason they share."""


class Algorithm(StrEnum):
    """The placement searches of DistServe."""

    HIGH = "high"
    LOW = "low"


def capacity(
    config: Config,
    overrides: Overrides = None,
    placement: Annotated[
        bool, typer.Option("--placement", help="Search tp, pp and replicas of each phase.")
    ] = False,
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="Links between nodes: fast or slow.")
    ] = Algorithm.HIGH,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests/s to serve; default: the config's.")
    ] = None,
    attainment: Annotated[
        float, typer.Option("--attainment", help="Share of requests that meets the bounds.")
    ] = 0.9,
    gpus_per_node: Annotated[
        int, typer.Option("--gpus-per-node", help="GPUs that fast links join.")
    ] = 8,
    max_rate: Annotated[
        float, typer.Option("--max-rate", help="Upper end of the bisection, requests/s per GPU.")
    ] = 16.0,
    width: Annotated[
        float, typer.Option("--width", help="Bisect to this width, requests/s per GPU.")
    ] = 0.5,
    json: Json = False,
    roofline: Roofline = False,
) -> None:
    """Search the placement of prefill and decode instances that serves a rate."""
    from sim.study.placement import Search, configured_rate_per_s, place
    from sim.types.errors import BadInput, SimulationError

    if not placement:
        raise BadInput("capacity by bisection comes with a later release; use --placement")
    experiment = load(config, overrides, roofline)
    rate_per_s = configured_rate_per_s(experiment) if rate is None else rate
    search = Search(rate_per_s, algorithm.value, attainment, gpus_per_node, max_rate, width)
    with progress("placing") as update:
        found = place(experiment, search, update)
    _show(found, json)
    if found.placement is None:
        raise SimulationError(
            f"no layout reaches an attainment of {attainment:g} at {width:g} requests/s per GPU "
            "or more; lower --attainment or --width, or relax the slo"
        )


def _show(found: Found, json: bool) -> None:
    notices(found.notes)
    if json:
        show_json(_content(found))
        return
    _say_skipped(found)
    _show_candidates(found)
    if found.placement is not None:
        _show_placement(found, found.placement)


def _content(found: Found) -> dict[str, Any]:
    """Return what `--json` prints."""
    candidates = [asdict(c) | {"gpus": c.gpus} for c in found.candidates]
    for candidate in candidates:
        candidate["goodput_per_gpu_per_s"] = candidate.pop("goodput_per_gpu")
    chosen = found.placement
    return {
        **asdict(found.search),
        "candidates": candidates,
        "num_skipped": len(found.skipped),
        "skipped": [asdict(s) for s in found.skipped],
        "placement": None if chosen is None else asdict(chosen) | {"gpus": chosen.gpus},
        "attainment_at_rate": None if found.check is None else asdict(found.check),
        "notes": list(found.notes),
    }


def _say_skipped(found: Found) -> None:
    by_reason: dict[str, list[str]] = {}
    for skipped in found.skipped:
        by_reason.setdefault(skipped.reason, []).append(skipped.layout)
    for reason, layouts in by_reason.items():
        some = ", ".join(layouts[:NAMED]) + (", …" if len(layouts) > NAMED else "")
        say(f"skipped {len(layouts)} ({some}): {reason}")


def _show_candidates(found: Found) -> None:
    candidates = found.candidates
    show_columns(
        {
            "judged": [c.phase for c in candidates],
            "prefill": [_cell(c.prefill) for c in candidates],
            "decode": [_cell(c.decode) for c in candidates],
            "GPUs": [c.gpus for c in candidates],
            "req/s per GPU": [_goodput(c) for c in candidates],
            "": ["chosen" if _is_chosen(c, found.placement) else None for c in candidates],
        }
    )


def _cell(layout: Layout | None) -> str:
    return "ideal" if layout is None else str(layout)


def _goodput(candidate: Candidate) -> str:
    if not candidate.goodput_per_gpu:
        return "none"
    return (">= " if candidate.at_bound else "") + f"{candidate.goodput_per_gpu:g}"


def _is_chosen(candidate: Candidate, placement: Placement | None) -> bool:
    if placement is None:
        return False
    return candidate.prefill in (None, placement.prefill) and candidate.decode in (
        None,
        placement.decode,
    )


def _show_placement(found: Found, placement: Placement) -> None:
    search, check = found.search, found.check
    print(
        f"placement for {search.rate_per_s:g} requests/s: {placement.prefill_instances} x prefill "
        f"{placement.prefill}, {placement.decode_instances} x decode {placement.decode}, "
        f"{placement.gpus} GPUs"
    )
    if check is not None:
        print(
            f"its attainment there: {check.total:.1%} (TTFT {check.ttft:.1%}, "
            f"TPOT {check.tpot:.1%}), target {search.attainment:.1%}"
        )
