"""The policy contract (design section 4): a policy is a decision, not a process."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

from sim.types.plans import Plan, Preemption
from sim.types.queues import Fifo, WaitQueue
from sim.types.request import Request
from sim.types.units import N
from sim.types.view import View


class Pool:
    """Instances of one role.

    Args:
        role: `mixed`, `prefill` or `decode`.
        instances: how many.
        tp: tensor-parallel degree of each.
        pp: pipeline stages of each.
        gpu: GPU name; None means the cluster's.
    """

    def __init__(
        self, role: str, instances: N, tp: N = 1, pp: N = 1, gpu: str | None = None
    ) -> None:
        self.role = role
        self.instances = instances
        self.tp = tp
        self.pp = pp
        self.gpu = gpu


class ClusterInfo:
    """What a policy may know when it lays out its pools.

    Args:
        gpus: number of GPUs.
        min_tp: smallest tensor-parallel degree at which the model fits a GPU of the cluster.
    """

    def __init__(self, gpus: N, min_tp: N) -> None:
        self.gpus = gpus
        self.min_tp = min_tp


class Router(abc.ABC):
    """Picks one of several instances for a request."""

    @abc.abstractmethod
    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return one of `instances` (never empty)."""


class Cluster:
    """All instances, as `route` sees them; `router` is the configured one."""

    def __init__(self, instances: Sequence[View], router: Router) -> None:
        self.instances = instances
        self.router = router


class Policy(abc.ABC):
    """Base of all policies.

    Subclasses are constructed with one argument, an object of their `Config`. `plan`, `victim` and
    `can_accept` are pure: the same view gives the same answer, no random numbers, no counting of
    calls.
    """

    Config: ClassVar[type[Any]]
    name: ClassVar[str] = ""

    def new_queue(self) -> WaitQueue:
        """Return an empty waiting queue of the type this policy wants."""
        return Fifo()

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return the default layout: as many mixed instances as fit."""
        return [Pool("mixed", cluster.gpus // cluster.min_tp, tp=cluster.min_tp)]

    def route(self, request: Request, cluster: Cluster) -> N:
        """Return the id of the instance a newly arrived request goes to."""
        return cluster.router.pick(request, cluster.instances).id

    @abc.abstractmethod
    def plan(self, view: View) -> Plan | None:
        """Decide what the instance does next; None leaves it idle until the next event."""

    def victim(self, view: View) -> Preemption:
        """Name the request to evict when the batch cannot grow: the last admitted, recomputed."""
        return Preemption(view.running[next(reversed(view.running))])
