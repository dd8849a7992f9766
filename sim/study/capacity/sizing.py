"""The fewest GPUs that serve a rate: how many instances, the P:D split, tp of each pool.

A layout reaches the target when the mean over the replications of the attainment at the rate does
(with `every_class` in each class), on the same requests for every layout. Its replications are run
one after the other, none beyond the one that settles the answer.

* *Instances of one role*: for each tp the number is galloped up or down from rate over saturation
  rate, then bisected: the number found reaches the target, one less misses it.
* *Split roles*: first each role alone, beside `AMPLE` instances of the other with the largest tp:
  what it needs at least, for each tp. Then pairs of pools from those numbers upwards, by GPUs; of
  the first number of GPUs with a pair that reaches the target, the pair with the highest
  attainment.

More instances are taken to help. The answer and the layouts with one instance less are then run to
their ends: their attainments carry intervals, and one that reaches the target with less is told.
With `engine.failures` the answer is found as if nothing failed, then spare instances are added
(`spares`). Pipelines are not searched (`--placement` does), and neither `cluster.count`
nor `cluster.pools` matters.

Complexity: a few layouts for each tp and role, then a few pairs, each `run.replications` runs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from policies import load
from sim.costs.catalogue import gpu_named, model_named
from sim.costs.memory import TP_CHOICES
from sim.study.build import build
from sim.study.capacity.attainment import (
    Shares,
    Target,
    at_rate,
    attained,
    on_pools,
    rated,
    requests_notes,
)
from sim.study.capacity.layouts import Layout, Pools, judged, measured
from sim.study.capacity.search import growth_notes
from sim.study.capacity.spares import Spares, never_failing, spares
from sim.study.config import Experiment, PolicyChoice, PoolConfig
from sim.study.notices import added, lines_of
from sim.study.policy_facts import policy_facts
from sim.study.run import replicate, saturation_rate
from sim.study.statistics.stats import aggregate
from sim.study.tasks import Told, calls
from sim.types import BadInput, SimulationError

AMPLE = 256
"""Instances of the role that is not judged."""
MOST_INSTANCES = 1024
"""Of one role; more are not tried."""
MOST_PAIRS = 200
"""Pairs of pools run before the search gives up."""

Role = Literal["mixed", "prefill", "decode"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Demand:
    """What has to be served.

    Attributes:
        rate_per_s: requests per second.
        target: what has to be reached at that rate.
        gpus_per_node: GPUs an instance may have.
    """

    rate_per_s: float
    target: Target
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_s < math.inf:
            raise BadInput(f"--rate: {self.rate_per_s:g} requests/s; valid: above 0")
        if self.gpus_per_node < 1:
            raise BadInput(f"--gpus-per-node: {self.gpus_per_node}; valid: 1 or more")


@dataclass(frozen=True)
class Least:
    """What one role needs at least, or why it cannot be.

    Attributes:
        role: of the instances.
        tp: of each.
        instances: the fewest that reach the target; 0: none do.
        reason: why a layout cannot be run; "" if it can.
    """

    role: Role
    tp: int
    instances: int
    reason: str = ""


@dataclass(frozen=True)
class Sized:
    """The answer for one policy.

    Attributes:
        choice: the policy.
        best: the layout with the fewest GPUs; None if none reaches the target.
        fewer: it with one instance less, of each role.
        others: other layouts that reach the target: for other tp, or on as many GPUs.
        needs: what was found for each role and tp alone.
        figures: means and intervals of the layout at the rate, keys as in `summary.json`.
        short: where none reaches the target: what `AMPLE` instances of each role attain.
        notes: what a reader must be told.
        spares: the layout under failures; None where nothing fails.
    """

    choice: PolicyChoice
    best: Layout | None
    fewer: tuple[Layout, ...]
    others: tuple[Layout, ...]
    needs: tuple[Least, ...]
    figures: Mapping[str, Any] | None
    short: Shares | None
    notes: tuple[str, ...]
    spares: Spares | None


def size(
    experiment: Experiment, demand: Demand, jobs: int = 1, progress: Progress | None = None
) -> tuple[Sized, ...]:
    """Return the fewest GPUs for a rate, for every policy of an experiment.

    Args:
        experiment: workload, bounds, GPU, model and policies; its layout and rate do not matter.
        demand: what has to be served.
        jobs: local processes.
        progress: told how far it is.

    Raises:
        BadInput: there is nothing to judge by, or no layout can be run.
    """
    model_named(experiment.cluster.model), gpu_named(experiment.cluster.gpu)
    notes = requests_notes(experiment)
    experiment = at_rate(rated(experiment), demand.rate_per_s)
    alone = [replace(experiment, policies=(choice,)) for choice in experiment.policies]
    sizes = [tp for tp in TP_CHOICES if tp <= demand.gpus_per_node]
    tasks = [(e, demand, role, tp) for e in alone for role in _roles(e) for tp in sizes]
    told = Told(progress, len(tasks) + len(alone))
    needs = told(calls(least_of, tasks, jobs))
    of_each = [[next(needs) for _ in _roles(e) for _ in sizes] for e in alone]
    for e, found in zip(alone, of_each, strict=True):
        if all(need.reason for need in found):
            raise BadInput(f"{e.policies[0].label}: no layout can be tried: {found[0].reason}")
    final = [(e, demand, found, notes) for e, found in zip(alone, of_each, strict=True)]
    return tuple(told(calls(sized, final, jobs)))


def fewest(reaches: Callable[[int], bool], start: int, most: int) -> int:
    """Return the least number in [1, most] that reaches, where more never reach less; 0: none.

    The number returned has been tried, and the one below it.
    """
    low, high, step, at = 0, most + 1, 1, min(max(start, 1), most)
    while high - low > 1:
        if reaches(at):
            high = at
            at = max(high - step, low + 1)
        else:
            low = at
            at = min(low + step, high - 1)
        step *= 2
        if low and high <= most:
            at = (low + high) // 2
    return high if high <= most else 0


# -- one role -----------------------------------------------------------------------------------


def _roles(experiment: Experiment) -> tuple[Role, ...]:
    split = "prefill" in policy_facts(load(experiment.policies[0].name)).roles.split("+")
    return ("prefill", "decode") if split else ("mixed",)


def _pool(role: Role, instances: int, tp: int) -> PoolConfig:
    return PoolConfig(role=role, instances=instances, tp=tp, pp=1, gpu=None)


def least_of(experiment: Experiment, demand: Demand, role: Role, tp: int) -> Least:
    """Return the fewest instances of a role that reach the target, beside ample others."""
    experiment = never_failing(experiment)
    try:
        ample = _ample(experiment, demand, _roles(experiment))

        def pools(instances: int) -> Pools:
            return tuple(_pool(role, instances, tp) if p.role == role else p for p in ample)

        one = saturation_rate(on_pools(experiment, pools(1)))
        start = min(math.ceil(demand.rate_per_s / one), MOST_INSTANCES)
        found = fewest(
            lambda n: judged(experiment, pools(n), demand.target).reached, start, MOST_INSTANCES
        )
    except (BadInput, SimulationError) as error:
        return Least(role, tp, 0, str(error))
    return Least(role, tp, found)


def _ample(experiment: Experiment, demand: Demand, roles: Sequence[Role]) -> Pools:
    """Return so many instances of each role that nobody waits, of the largest tp that can be."""
    reason: BadInput | None = None
    for tp in sorted((tp for tp in TP_CHOICES if tp <= demand.gpus_per_node), reverse=True):
        pools = tuple(_pool(role, AMPLE, tp) for role in roles)
        try:
            build(on_pools(experiment, pools), experiment.policies[0])
        except BadInput as error:
            reason = reason or error
            continue
        return pools
    assert reason is not None, "gpus_per_node is at least 1"
    raise reason


# -- the whole layout ---------------------------------------------------------------------------


def sized(
    experiment: Experiment, demand: Demand, needs: Sequence[Least], notes: Sequence[str]
) -> Sized:
    """Return the answer for the only policy, from what its roles need alone."""
    failing, experiment = experiment, never_failing(experiment)
    able = [need for need in needs if need.instances]
    if _roles(experiment) == ("mixed",):
        found = [
            judged(experiment, (_pool("mixed", need.instances, need.tp),), demand.target)
            for need in able
        ]
    else:
        found = _pairs(experiment, demand, able)
    ranked = sorted(found, key=lambda layout: (layout.gpus, -layout.attainment.mean))
    best, others = (ranked[0], ranked[1:]) if ranked else (None, [])
    fewer = [
        measured(experiment, pools, demand.target) for pools in (_fewer(best.pools) if best else ())
    ]
    told, figures = [*notes], None
    if best is not None:
        figures, notices = _figures(on_pools(experiment, best.pools))
        told += build(on_pools(experiment, best.pools), experiment.policies[0]).notes
        told += _sizing_notes(experiment, demand, best, fewer)
        told += [f"at the rate, {notice}" for notice in notices]
        told += growth_notes(figures, "at the rate")
    return Sized(
        choice=experiment.policies[0],
        best=best,
        fewer=tuple(fewer),
        others=tuple(others),
        needs=tuple(needs),
        figures=figures,
        short=None if best else attained(_plenty(experiment, demand), experiment.policies[0], 0),
        notes=tuple(told),
        spares=spares(failing, best.pools, demand.target) if best else None,
    )


def _figures(experiment: Experiment) -> tuple[Mapping[str, Any], list[str]]:
    """Return means and intervals over the replications, and what their runs have to tell."""
    choice, count = experiment.policies[0], experiment.run.replications
    runs = [replicate(experiment, choice, i) for i in range(count)]
    notices = lines_of(added([r.tally for r in runs]), count)
    return aggregate([r.summary for r in runs]), notices


def _plenty(experiment: Experiment, demand: Demand) -> Experiment:
    """Return the experiment on `AMPLE` instances of every role."""
    return on_pools(experiment, _ample(experiment, demand, _roles(experiment)))


def _fewer(pools: Pools) -> Iterator[Pools]:
    """Yield the layouts with one instance less, where one is left."""
    for at, pool in enumerate(pools):
        if pool.instances > 1:
            less = pool.model_copy(update={"instances": pool.instances - 1})
            yield (*pools[:at], less, *pools[at + 1 :])


def _pairs(experiment: Experiment, demand: Demand, able: Sequence[Least]) -> list[Layout]:
    """Return the pairs of pools on the fewest GPUs that reach the target."""
    by_role = [[need for need in able if need.role == role] for role in ("prefill", "decode")]
    heap: list[tuple[int, int, int, int, int]] = []
    seen = set()

    def push(p: int, p_tp: int, d: int, d_tp: int) -> None:
        if (p, p_tp, d, d_tp) not in seen:
            seen.add((p, p_tp, d, d_tp))
            heapq.heappush(heap, (p * p_tp + d * d_tp, p, p_tp, d, d_tp))

    for one, two in product(*by_role):
        push(one.instances, one.tp, two.instances, two.tp)
    found: list[Layout] = []
    for _ in range(MOST_PAIRS):
        if not heap or (found and heap[0][0] > found[0].gpus):
            break
        _, p, p_tp, d, d_tp = heapq.heappop(heap)
        pools = (_pool("prefill", p, p_tp), _pool("decode", d, d_tp))
        layout = judged(experiment, pools, demand.target)
        if layout.reached:
            found.append(layout)
        else:
            push(p + 1, p_tp, d, d_tp)
            push(p, p_tp, d + 1, d_tp)
    return found


def _sizing_notes(
    experiment: Experiment, demand: Demand, best: Layout, fewer: Sequence[Layout]
) -> list[str]:
    notes, goal = [], demand.target.attainment
    interval = best.attainment
    if interval.low < goal:
        notes.append(
            f"{best}: the mean attainment {interval.mean:.1%} reaches {goal:.1%}, the lower end "
            f"of its interval, {interval.low:.1%}, does not: more replications would tell"
        )
    for layout in fewer:
        if layout.reached:
            notes.append(
                f"attainment is not monotone in the instances: {layout} reaches the target, too"
            )
    count = experiment.cluster.count
    if best.gpus > count:
        notes.append(f"the layout has {best.gpus} GPUs; cluster.count, {count}, is no limit here")
    return notes
