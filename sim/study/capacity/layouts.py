"""Layouts of instances, judged by their mean attainment over the replications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.study.capacity.attainment import ALL, Target, attained, on_pools
from sim.study.config import Experiment, PoolConfig
from sim.study.run import requests_of
from sim.study.statistics.stats import Interval, student_t

Pools = tuple[PoolConfig, ...]


@dataclass(frozen=True)
class Layout:
    """A layout and what it attains at the rate.

    Attributes:
        pools: the instances.
        reached: whether the mean attainment is at least the target.
        shares: attainment of each replication that was run to its end.
    """

    pools: Pools
    reached: bool
    shares: tuple[float, ...]

    @property
    def gpus(self) -> int:
        """GPUs in use."""
        return sum(pool.instances * pool.tp for pool in self.pools)

    @property
    def instances(self) -> int:
        """Instances in use."""
        return sum(pool.instances for pool in self.pools)

    @property
    def attainment(self) -> Interval:
        """Mean and interval over the replications."""
        return student_t(self.shares)

    def __str__(self) -> str:
        return " + ".join(f"{pool.instances} x {pool.role} tp {pool.tp}" for pool in self.pools)


def judged(experiment: Experiment, pools: Pools, target: Target) -> Layout:
    """Return whether a layout reaches the target, running no more than the answer needs.

    The mean is at least the target if the sum is at least n times it, and what is yet to be run
    adds at most 1 each.
    """
    experiment = on_pools(experiment, pools)
    count = experiment.run.replications
    met: list[Mapping[str, float]] = []
    for index in range(count):
        least = {
            key: count * share - sum(m.get(key, 1.0) for m in met) - (count - 1 - index)
            for key, share in target.of(requests_of(experiment, index)).items()
        }
        shares = attained(experiment, experiment.policies[0], index, least)
        if shares is None or not shares.reach(least):
            return Layout(pools, False, tuple(m[ALL] for m in met))
        met.append(shares.met)
    return Layout(pools, True, tuple(m[ALL] for m in met))


def measured(experiment: Experiment, pools: Pools, target: Target) -> Layout:
    """Return a layout with the attainment of every replication."""
    reached = judged(experiment, pools, target)
    if reached.reached:
        return reached
    shares = []
    for index in range(experiment.run.replications):
        found = attained(on_pools(experiment, pools), experiment.policies[0], index)
        assert found is not None, "runs without a limit are not ended"
        shares.append(found.met[ALL])
    return Layout(pools, False, tuple(shares))
