"""Capacity: the highest rate at which a policy reaches its attainment target, with an interval.

* *Of one replication*: its requests are the same at every rate (the gaps are unit gaps divided by
  the rate), so reaching the target is a step function of the rate. Rates are tried from the
  saturation rate up or down until one reaches the target and one above it does not; then the two
  are brought together by bisection, until they are `width` apart relative to the upper. Both ends
  have been run. The capacity is their middle.
* *Of the policy*: mean and Student-t interval of the capacities of the replications. Replication i
  has the same requests under every policy, so differences between policies are paired.
* *Neighbours*: each replication also tries a rate two widths below the lower end and one above the
  upper. When a rate reaches the target above one that misses it, attainment is not monotone: there
  are several crossings, bisection finds one of them, and a note says so.
* *Curve*: at shares of the capacity every replication is run to its end; attainment and the other
  figures there carry intervals.

Runs of the search are ended once too many requests have missed (`attainment`), which
changes no answer. A finite run starts empty and flatters rates that the queue outgrows only later:
where a queue still grows at the capacity, a note says so.

Complexity: about log2(1/width) runs a replication and policy, and those of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.study.build import build
from sim.study.capacity.attainment import (
    ALL,
    ROUNDING,
    Shares,
    Target,
    at_rate,
    attained,
    rated,
    requests_notes,
)
from sim.study.capacity.crossing import LARGEST_STEP, Crossing, Span, crossing
from sim.study.config import Experiment, PolicyChoice
from sim.study.notices import Tally, added, lines_of
from sim.study.run import replicate, requests_of, saturation_rate
from sim.study.statistics.stability import STABLE
from sim.study.statistics.stats import Interval, aggregate, student_t
from sim.study.tasks import Told, calls
from sim.types import BadInput

WIDTH = 0.01
"""Default distance of the ends of a bisection, relative to the upper."""
LEAST_WIDTH = 1e-6

CURVE = (0.5, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
"""Shares of the capacity at which the curve is measured."""

LOWEST, HIGHEST = 1 / 256, 16.0
"""Ends of the search, as shares of the saturation rate."""
FEWEST = 10
"""Requests expected within `duration_s` or the horizon at the lowest rate."""
CLOSE = 1.05
"""First step from the first replication's capacity, where the others begin."""
CLEARLY_BELOW = 0.01
"""A mean attainment so far below the target at the capacity is told."""
LOOKS = tuple(2.0**-k for k in range(0, 9, 2))
"""Shares of the saturation rate that are looked at when no rate reaches the target."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Point:
    """All replications at one rate.

    Attributes:
        rate_per_s: requests per second.
        figures: means and intervals, keys as in `summary.json`.
        notes: what the runs have to tell (`sim.study.notices`).
    """

    rate_per_s: float
    figures: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PolicyCapacity:
    """The capacity of one policy.

    Attributes:
        choice: the policy.
        gpus: GPUs in use.
        instances: instances in use.
        saturation_per_s: requests per second when requests always wait.
        rate_per_s: the capacity, requests per second; 0 where no rate reaches the target.
        crossings: of each replication.
        at_capacity: all replications at the capacity; None where no rate reaches the target.
        curve: by rate, the capacity included.
        best: where no rate reaches the target: the shares at the best rate tried.
        notes: what a reader must be told.
    """

    choice: PolicyChoice
    gpus: int
    instances: int
    saturation_per_s: float
    rate_per_s: Interval
    crossings: tuple[Crossing, ...]
    at_capacity: Point | None
    curve: tuple[Point, ...]
    best: tuple[float, Shares] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Capacities:
    """The capacities of the policies of an experiment.

    Attributes:
        experiment: what was asked about.
        target: what has to be reached.
        width: of the bisections.
        policies: by label, in the order of the experiment.
        differences: label -> paired difference to the first policy, in percent of it.
        notes: what a reader must be told about all of them.
    """

    experiment: Experiment
    target: Target
    width: float
    policies: dict[str, PolicyCapacity]
    differences: dict[str, Interval]
    notes: tuple[str, ...]


def capacities(
    experiment: Experiment,
    target: Target,
    width: float = WIDTH,
    jobs: int = 1,
    progress: Progress | None = None,
    curve: Sequence[float] = CURVE,
) -> Capacities:
    """Return the capacity of every policy of an experiment; its rate does not matter.

    Args:
        experiment: what to run.
        target: what has to be reached.
        width: the ends of a bisection are so close, relative to the upper.
        jobs: local processes.
        progress: told how far it is.
        curve: shares of the capacity at which every replication is run to its end.

    Raises:
        BadInput: there is nothing to judge by, or no rate to vary.
    """
    if not LEAST_WIDTH <= width < 1:
        raise BadInput(f"--width: {width:g} of the rate; valid: {LEAST_WIDTH:g} to below 1")
    notes = tuple(requests_notes(experiment))
    experiment = rated(experiment)
    alone = [replace(experiment, policies=(choice,)) for choice in experiment.policies]
    for e in alone:  # what cannot be laid out is refused before anything runs
        build(e, e.policies[0])
    count = experiment.run.replications
    told = Told(progress, len(alone) * (1 + count * (1 + len({*curve, 1.0}))))
    saturation = list(told(calls(saturation_rate, [(e,) for e in alone], jobs)))
    found = _crossings(alone, target, width, saturation, jobs, told)
    points = _curves(alone, found, sorted({*curve, 1.0}), jobs, told)
    policies = {
        e.policies[0].label: _policy(e, rate, crossings, curve_of, target)
        for e, rate, crossings, curve_of in zip(alone, saturation, found, points, strict=True)
    }
    return Capacities(experiment, target, width, policies, _differences(policies), notes)


# -- searching ----------------------------------------------------------------------------------


def crossing_of(experiment: Experiment, index: int, target: Target, span: Span) -> Crossing:
    """Return where one replication of the only policy crosses its target."""
    least = target.of(requests_of(at_rate(experiment, span.start_per_s), index))

    def reached(rate_per_s: float) -> bool:
        shares = attained(at_rate(experiment, rate_per_s), experiment.policies[0], index, least)
        return shares is not None and shares.reach(least)

    return crossing(reached, span)


def _crossings(
    alone: Sequence[Experiment],
    target: Target,
    width: float,
    saturation: Sequence[float],
    jobs: int,
    told: Told,
) -> list[list[Crossing]]:
    """Return the crossing of every replication of each policy.

    The first replication starts from the saturation rate, the others from where the first crosses.
    """
    wide = [wide_span(e, rate, width) for e, rate in zip(alone, saturation, strict=True)]
    tasks = [(e, 0, target, span) for e, span in zip(alone, wide, strict=True)]
    found = [[first] for first in told(calls(crossing_of, tasks, jobs))]
    tasks = [
        (e, i, target, _near(of[0], span))
        for e, span, of in zip(alone, wide, found, strict=True)
        for i in range(1, e.run.replications)
    ]
    others = told(calls(crossing_of, tasks, jobs))
    for e, of in zip(alone, found, strict=True):
        of += [next(others) for _ in range(1, e.run.replications)]
    return found


def wide_span(experiment: Experiment, saturation_per_s: float, width: float) -> Span:
    """Return where to search for a capacity of which the saturation rate is known only."""
    least = _least_rate(experiment, saturation_per_s)
    start = max(saturation_per_s, least)
    return Span(start, LARGEST_STEP, least, start * HIGHEST, width)


def _least_rate(experiment: Experiment, saturation_per_s: float) -> float:
    """Return the lowest rate worth trying: almost no load, but some requests have to arrive."""
    ends = (experiment.workload.duration_s, experiment.run.horizon_s)
    window_s = min((end for end in ends if end is not None), default=math.inf)
    return max(saturation_per_s * LOWEST, FEWEST / (window_s - experiment.run.warmup_s))


def _near(first: Crossing, span: Span) -> Span:
    if not first.low_per_s or first.open:
        return span
    return replace(span, start_per_s=first.rate_per_s, step=CLOSE)


def figures_at(experiment: Experiment, index: int) -> tuple[dict[str, Any], Tally]:
    """Return summary and tally of one replication of the only policy."""
    found = replicate(experiment, experiment.policies[0], index)
    return found.summary, found.tally


def _curves(
    alone: Sequence[Experiment],
    found: Sequence[Sequence[Crossing]],
    shares: Sequence[float],
    jobs: int,
    told: Told,
) -> list[list[Point]]:
    """Return the points of each policy's curve; none where no rate reaches the target."""
    rates = [[share * _capacity(of).mean for share in shares if _capacity(of).mean] for of in found]
    tasks = [
        (at_rate(e, rate), i)
        for e, of in zip(alone, rates, strict=True)
        for rate in of
        for i in range(e.run.replications)
    ]
    runs = told(calls(figures_at, tasks, jobs))
    return [
        [_point(rate, [next(runs) for _ in range(e.run.replications)]) for rate in of]
        for e, of in zip(alone, rates, strict=True)
    ]


def _point(rate_per_s: float, runs: Sequence[tuple[dict[str, Any], Tally]]) -> Point:
    notes = lines_of(added([tally for _, tally in runs]), len(runs))
    return Point(rate_per_s, aggregate([summary for summary, _ in runs]), tuple(notes))


# -- results ------------------------------------------------------------------------------------


def _capacity(crossings: Sequence[Crossing]) -> Interval:
    return student_t([c.rate_per_s for c in crossings])


def _policy(
    experiment: Experiment,
    saturation_per_s: float,
    crossings: Sequence[Crossing],
    curve: Sequence[Point],
    target: Target,
) -> PolicyCapacity:
    setup = build(experiment, experiment.policies[0])
    capacity = _capacity(crossings)
    point = next((p for p in curve if p.rate_per_s == capacity.mean), None)
    return PolicyCapacity(
        choice=experiment.policies[0],
        gpus=setup.gpus,
        instances=len(setup.instances),
        saturation_per_s=saturation_per_s,
        rate_per_s=capacity,
        crossings=tuple(crossings),
        at_capacity=point,
        curve=tuple(curve),
        best=None if point else _best(experiment, saturation_per_s),
        notes=(*setup.notes, *_search_notes(crossings), *_notes_there(point, curve, target)),
    )


def _best(experiment: Experiment, saturation_per_s: float) -> tuple[float, Shares]:
    """Return the rate of the highest attainment, of a few down to almost no load, and shares."""
    looks, least = [], _least_rate(experiment, saturation_per_s)
    for share in LOOKS:
        rate = max(share * saturation_per_s, least)
        shares = attained(at_rate(experiment, rate), experiment.policies[0], 0)
        if shares is not None:
            looks.append((rate, shares))
    return max(looks, key=lambda look: (look[1].met[ALL], -look[0]))


def _search_notes(crossings: Sequence[Crossing]) -> list[str]:
    count, notes = len(crossings), []
    if any(c.open for c in crossings):
        notes.append(
            f"{sum(c.open for c in crossings)} of {count} replications reach the target at every "
            "rate tried: the capacity is at least what is given; more requests would bring the "
            "system to its limits (workload.num_requests)"
        )
    lacking = sum(not c.low_per_s for c in crossings)
    if 0 < lacking < count:
        notes.append(f"{lacking} of {count} replications reach the target at no rate: they count 0")
    uneven = [i for i, c in enumerate(crossings) if not c.monotone]
    if uneven:
        notes.append(_uneven(uneven[0], crossings, len(uneven)))
    if count == 1:
        notes.append("one replication gives no interval; raise run.replications")
    return notes


def _notes_there(point: Point | None, curve: Sequence[Point], target: Target) -> list[str]:
    """Return what the runs at the capacity and around it say about it."""
    if point is None:
        return []
    notes = [f"at its capacity, {note}" for note in point.notes]
    notes += growth_notes(point.figures, "at its capacity")
    goal = target.attainment
    share = {p.rate_per_s: lowest_share(p.figures, target.every_class) for p in (*curve, point)}
    mean = share[point.rate_per_s]
    if mean < goal - CLEARLY_BELOW:
        held = [rate for rate, reached in share.items() if reached >= goal - ROUNDING]
        rate = f"{max(held):.4g} requests/s, the highest tried," if held else "no rate tried"
        notes.append(
            f"at the capacity, a mean over replications, the mean attainment is {mean:.4g}, below "
            f"{goal:.4g}: it falls steeply; {rate} reaches it on average"
        )
    return notes


def lowest_share(figures: Mapping[str, Any], every_class: bool) -> float:
    """Return the mean attainment that a target is about: of all, or of the worst class, too."""
    classes = figures["classes"].get("source", {}).values() if every_class else ()
    return float(min(of["slo_attainment"] for of in (figures, *classes)))


def growth_notes(figures: Mapping[str, Any], where: str) -> list[str]:
    """Return what to say when the queue still grew at the end of the runs."""
    if figures["saturation"] == STABLE:
        return []
    return [
        f"{where} the queue grows to the end ({figures['saturation']}): a longer run would be "
        "worse; raise workload.num_requests"
    ]


def _uneven(index: int, crossings: Sequence[Crossing], count: int) -> str:
    tried = crossings[index].tried
    missed = min(rate for rate, reached in tried if not reached)
    reached = max(rate for rate, reached in tried if reached)
    return (
        f"attainment is not monotone in {count} of {len(crossings)} replications (replication "
        f"{index} misses the target at {missed:.4g} requests/s and reaches it at {reached:.4g}): "
        "the capacity is one of several crossings"
    )


def _differences(policies: Mapping[str, PolicyCapacity]) -> dict[str, Interval]:
    base, *others = policies.values()
    ours = [c.rate_per_s for c in base.crossings]
    if not min(ours):
        return {}
    return {
        p.choice.label: student_t(
            [(c.rate_per_s / rate - 1) * 100 for c, rate in zip(p.crossings, ours, strict=True)]
        )
        for p in others
    }
