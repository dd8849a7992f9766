"""`capacity`: the highest rate for a target, or what it takes to serve a rate."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.placement import show_placement
from sim.cli.show import by_policy, notices, progress, say, show, show_json
from sim.cli.study import Config, Jobs, Json, Out, Overrides, Roofline
from sim.cli.study import _chosen as chosen
from sim.cli.study import _load as load

if TYPE_CHECKING:
    from sim.study.capacity.attainment import Target
    from sim.study.capacity.sizing import Sized
    from sim.study.config import Experiment

PLACEMENT_MAX_RATE, PLACEMENT_WIDTH = 16.0, 0.5
"""Defaults of DistServe's search, requests/s per GPU."""


class Algorithm(StrEnum):
    """The placement searches of DistServe."""

    HIGH = "high"
    LOW = "low"


Attainment = Annotated[
    float, typer.Option("--attainment", help="Share of requests that meets the bounds.")
]
EveryClass = Annotated[
    bool, typer.Option("--every-class", help="In each component of the mixture, too.")
]
Rate = Annotated[
    float | None, typer.Option("--rate", help="Find the fewest GPUs for so many requests/s.")
]
Price = Annotated[
    float | None, typer.Option("--price-per-gpu-hour", help="With --rate: print costs.")
]
Policies = Annotated[
    str | None, typer.Option("--policies", help="Names a,b,c; default: the config's list.")
]
Width = Annotated[
    float | None,
    typer.Option(
        "--width",
        help="Bisect to this share of the rate [0.01]; with --placement requests/s per GPU [0.5].",
    ),
]
Placement = Annotated[
    bool, typer.Option("--placement", help="DistServe's search of tp, pp and replicas.")
]
Links = Annotated[
    Algorithm, typer.Option("--algorithm", help="With --placement: links, fast or slow.")
]
PerNode = Annotated[int, typer.Option("--gpus-per-node", help="GPUs that fast links join.")]
MaxRate = Annotated[
    float | None,
    typer.Option("--max-rate", help="With --placement: upper end, requests/s per GPU [16]."),
]


def capacity(
    config: Config,
    overrides: Overrides = None,
    attainment: Attainment = 0.9,
    every_class: EveryClass = False,
    rate: Rate = None,
    price: Price = None,
    policies: Policies = None,
    width: Width = None,
    placement: Placement = False,
    algorithm: Links = Algorithm.HIGH,
    gpus_per_node: PerNode = 8,
    max_rate: MaxRate = None,
    out: Out = None,
    json: Json = False,
    jobs: Jobs = 1,
    roofline: Roofline = False,
) -> None:
    """Find the highest rate at which enough requests meet the bounds; with --rate, the GPUs."""
    _check_options(
        {"--price-per-gpu-hour": price, "--max-rate": max_rate, "--width": width},
        {"--policies": policies, "--every-class": every_class or None, "--out": out},
        placement,
        rate,
    )
    experiment = load(config, overrides, roofline)
    if placement:
        _place(experiment, rate, algorithm, attainment, gpus_per_node, max_rate, width, json)
        return
    from sim.study.capacity.attainment import Target

    if policies is not None:
        experiment = replace(experiment, policies=chosen(experiment, policies))
    target = Target(attainment, every_class)
    if rate is None:
        _highest(experiment, target, width, out, json, jobs)
    else:
        _fewest(experiment, rate, target, gpus_per_node, price, out, json, jobs)


def _check_options(
    numbers: dict[str, float | None],
    others: dict[str, object],
    placement: bool,
    rate: float | None,
) -> None:
    """Refuse options that would be ignored."""
    from sim.types.errors import BadInput

    price = numbers["--price-per-gpu-hour"]
    if price is not None and not 0 <= price < float("inf"):
        raise BadInput(f"--price-per-gpu-hour: {price:g}; valid: 0 or more")
    if price is not None and (placement or rate is None):
        raise BadInput("--price-per-gpu-hour goes with --rate (and without --placement)")
    if numbers["--max-rate"] is not None and not placement:
        raise BadInput("--max-rate goes with --placement")
    if numbers["--width"] is not None and rate is not None and not placement:
        raise BadInput("--width does not go with --rate: instances are counted, not bisected")
    given = [name for name, value in others.items() if value is not None]
    if placement and given:
        raise BadInput(f"{given[0]} does not go with --placement")


def _highest(
    experiment: Experiment,
    target: Target,
    width: float | None,
    out: Path | None,
    json: bool,
    jobs: int,
) -> None:
    from sim.report.capacity import capacity_table, draw_capacity
    from sim.study.capacity.output import capacity_content, none_line, write_capacity
    from sim.study.capacity.search import WIDTH, capacities
    from sim.study.files import output_folder
    from sim.types.errors import SimulationError

    if out is not None:
        output_folder(out)
    with progress("searching") as update:
        found = capacities(experiment, target, WIDTH if width is None else width, jobs, update)
    content = capacity_content(found)
    notices(found.notes)
    notices(by_policy({label: p.notes for label, p in found.policies.items()}))
    if out is not None:
        write_capacity(found, out)
        say(f"wrote {out}, picture: {draw_capacity(out)}")
    if json:
        show_json(content)
    else:
        show(capacity_table(content))
    lines = [line for label in found.policies if (line := none_line(found, label))]
    if len(lines) == len(found.policies):
        raise SimulationError("; ".join(lines))
    notices(lines)


def _fewest(
    experiment: Experiment,
    rate: float,
    target: Target,
    gpus_per_node: int,
    price: float | None,
    out: Path | None,
    json: bool,
    jobs: int,
) -> None:
    from sim.report.capacity import sizes_table
    from sim.study.capacity.output import short_line, sizes_content
    from sim.study.capacity.sizing import Demand, size
    from sim.study.files import output_folder, write_json
    from sim.types.errors import SimulationError

    demand = Demand(rate, target, gpus_per_node)
    if out is not None:
        output_folder(out)
    with progress("sizing") as update:
        sizes = size(experiment, demand, jobs, update)
    content = sizes_content(experiment, demand, sizes, price)
    notices(by_policy({s.choice.label: (*s.notes, *_of_spares(s)) for s in sizes}))
    if out is not None:
        write_json(out / "sizing.json", content)
        say(f"wrote {out}")
    if json:
        show_json(content)
    else:
        show(sizes_table(content))
    lines = [line for s in sizes if (line := short_line(experiment, demand, s))]
    if len(lines) == len(sizes):
        raise SimulationError("; ".join(lines))
    notices(lines)


def _of_spares(sized: Sized) -> tuple[str, ...]:
    return sized.spares.notes if sized.spares else ()


def _place(
    experiment: Experiment,
    rate: float | None,
    algorithm: Algorithm,
    attainment: float,
    gpus_per_node: int,
    max_rate: float | None,
    width: float | None,
    json: bool,
) -> None:
    from sim.study.capacity.placement import Search, configured_rate_per_s, place
    from sim.types.errors import SimulationError

    rate_per_s = configured_rate_per_s(experiment) if rate is None else rate
    most = PLACEMENT_MAX_RATE if max_rate is None else max_rate
    finest = PLACEMENT_WIDTH if width is None else width
    search = Search(rate_per_s, algorithm.value, attainment, gpus_per_node, most, finest)
    with progress("placing") as update:
        found = place(experiment, search, update)
    show_placement(found, json)
    if found.placement is None:
        raise SimulationError(
            f"no layout reaches an attainment of {attainment:g} at {finest:g} requests/s per GPU "
            "or more; lower --attainment or --width, or relax the slo"
        )
