"""N+1: how many spare instances a rate needs when instances fail (`engine.failures`).

The layout is found as if nothing failed (`sizing`). Then its replications are run with
failures, on the same requests and the same failure times per instance: without a spare, with one
spare instance of each role (N+1), and with more, by GPUs, until the mean attainment reaches the
target.

A run sees few failures when it is short beside the mean time to failure: a note gives the number
to be expected.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.study.capacity.attainment import Target, on_pools
from sim.study.capacity.layouts import Layout, Pools, judged, measured
from sim.study.config import Experiment
from sim.study.run import requests_of

MOST_LAYOUTS = 50
"""Layouts tried before the search for spares gives up."""
FEW_FAILURES = 20
"""Failures over all replications below which the attainment under failures is a matter of luck."""


@dataclass(frozen=True)
class Spares:
    """Layouts under failures.

    Attributes:
        availability: share of the time an instance is up.
        without: the layout that is enough when nothing fails.
        one_each: it with one spare instance of each role.
        enough: the layout with the fewest spare GPUs that reaches the target; None: none tried.
        notes: what a reader must be told.
    """

    availability: float
    without: Layout
    one_each: Layout
    enough: Layout | None
    notes: tuple[str, ...]


def never_failing(experiment: Experiment) -> Experiment:
    """Return the experiment without failures."""
    return replace(experiment, engine=experiment.engine.model_copy(update={"failures": None}))


def spares(experiment: Experiment, pools: Pools, target: Target) -> Spares | None:
    """Return what layouts around `pools` attain under failures; None if nothing fails."""
    failures = experiment.engine.failures
    if failures is None:
        return None
    without = measured(experiment, pools, target)
    plus = tuple(p.model_copy(update={"instances": p.instances + 1}) for p in pools)
    enough = without if without.reached else _enough(experiment, pools, target)
    return Spares(
        availability=failures.mtbf_s / (failures.mtbf_s + failures.repair_s),
        without=without,
        one_each=measured(experiment, plus, target),
        enough=None if enough is None else measured(experiment, enough.pools, target),
        notes=tuple(_notes(experiment, pools, failures.mtbf_s, failures.repair_s)),
    )


def _enough(experiment: Experiment, pools: Pools, target: Target) -> Layout | None:
    """Return the layout with the fewest GPUs that reaches the target, `pools` and more."""
    start = tuple(pool.instances for pool in pools)
    heap: list[tuple[int, tuple[int, ...]]] = []
    seen = {start}

    def push(counts: Sequence[int]) -> None:
        """Add the layouts with one instance more."""
        for at in range(len(pools)):
            more = tuple(n + (k == at) for k, n in enumerate(counts))
            if more not in seen:
                seen.add(more)
                gpus = sum(n * pool.tp for n, pool in zip(more, pools, strict=True))
                heapq.heappush(heap, (gpus, more))

    push(start)
    for _ in range(MOST_LAYOUTS):
        _, counts = heapq.heappop(heap)
        wanted = tuple(
            pool.model_copy(update={"instances": n}) for n, pool in zip(counts, pools, strict=True)
        )
        layout = judged(experiment, wanted, target)
        if layout.reached:
            return layout
        push(counts)
    return None


def _notes(experiment: Experiment, pools: Pools, mtbf_s: float, repair_s: float) -> list[str]:
    arrival_s = requests_of(on_pools(experiment, pools), 0).arrival_s
    assert arrival_s is not None, "rated() has seen to it"
    instances = sum(pool.instances for pool in pools)
    expected = float(arrival_s[-1]) / (mtbf_s + repair_s) * instances
    total = expected * experiment.run.replications
    if total >= FEW_FAILURES:
        return []
    return [
        f"{total:.2g} failures are to be expected in all replications together: too few to tell; "
        "raise workload.num_requests or run.replications"
    ]
