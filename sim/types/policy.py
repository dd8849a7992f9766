"""The policy contract (design section 4): a policy is a decision, not a process."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from mypy_extensions import mypyc_attr

from sim.types.drafting import DrafterRules
from sim.types.monitor import Snapshot
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
        sequential: pp > 1 and one batch passes all stages before the next (a layer split).
        profile: step times, as the config names them; None means the cluster's.
    """

    def __init__(
        self,
        role: str,
        instances: N,
        tp: N = 1,
        pp: N = 1,
        gpu: str | None = None,
        sequential: bool = False,
        profile: str | None = None,
    ) -> None:
        self.role = role
        self.instances = instances
        self.tp = tp
        self.pp = pp
        self.gpu = gpu
        self.sequential = sequential
        self.profile = profile


class ClusterInfo:
    """What a policy may know when it lays out its pools.

    Args:
        gpus: number of GPUs.
        min_tp: smallest tensor-parallel degree at which the model fits a GPU of the cluster.
        layers: layers of the model; 0: the figures below are not known.
        layer_bytes: weight bytes of one layer, embeddings spread over all.
        kv_layer_token_bytes: KV bytes of one token in one layer.
        gpu_bytes: bytes of one GPU for weights and KV cache.
        layer_s: seconds to read one layer's weights, the least a step spends in it.
        transfer_s: seconds to hand one token's activations to another GPU.
    """

    def __init__(
        self,
        gpus: N,
        min_tp: N,
        layers: N = 0,
        layer_bytes: float = 0.0,
        kv_layer_token_bytes: float = 0.0,
        gpu_bytes: float = 0.0,
        layer_s: float = 0.0,
        transfer_s: float = 0.0,
    ) -> None:
        self.gpus = gpus
        self.min_tp = min_tp
        self.layers = layers
        self.layer_bytes = layer_bytes
        self.kv_layer_token_bytes = kv_layer_token_bytes
        self.gpu_bytes = gpu_bytes
        self.layer_s = layer_s
        self.transfer_s = transfer_s


@mypyc_attr(allow_interpreted_subclasses=True)
class Router(abc.ABC):
    """Picks one of several instances for a request."""

    @abc.abstractmethod
    def pick(self, request: Request, instances: Sequence[View]) -> View:
        """Return one of `instances` (never empty)."""


class Cluster:
    """All instances, as `route` sees them; the routers are the configured ones.

    `entry` and `decode` list the instances that are up (`View.up`), at arrivals and after prefills;
    who chooses from `instances` must leave out those that are down. A router never meets an empty
    list: while no instance of that kind is up, requests are held by the engine, and prefilled ones
    stay where they are. With `Policy.places_decode`, `route` is asked while any instance is up.
    """

    def __init__(self, instances: Sequence[View], router: Router, decode_router: Router) -> None:
        self.instances = instances
        self.router = router
        self.decode_router = decode_router
        self.update()

    def update(self) -> None:
        """List again which instances are up."""
        self.entry = [i for i in self.instances if i.up and i.role != "decode"]
        self.decode = [i for i in self.instances if i.up and i.role == "decode"]


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy(abc.ABC):
    """Base of all policies.

    Subclasses are constructed with one argument, an object of their `Config`. `plan`, `victim` and
    `can_accept` are pure: the same view gives the same answer, no random numbers, no counting of
    calls.
    """

    Config: ClassVar[type[Any]]
    name: ClassVar[str] = ""
    assumes: ClassVar[str] = ""
    """What it takes as known beyond arrivals and load, for `bucketsim policies`."""

    operation_counts: Mapping[str, N] = MappingProxyType({})
    """How often each operation of the policy ran, for the summary."""
    charges_overhead: bool = False
    """Whether `overhead_s` is asked before every prefill and added to it."""
    uses_predictions: ClassVar[bool] = False
    """Whether it reads `request.predicted_output_len`; else no predictor runs."""
    queue_scope: Literal["instance", "cluster"] = "instance"
    """Where arrivals wait. `cluster`: in one queue of all instances but those that only decode;
    `route` is not asked at arrival, and whichever instance plans first takes them (ties: lowest
    index). It is `view.waiting` of each, `num_waiting` its length. What is preempted goes to its
    front, for any to take. Only requests that fit every such instance are accepted."""
    synchronous: str = ""
    """Why no step of it can be formed while another runs (`engine.async_scheduling`), as the end of
    a sentence; empty: it can. Its plan must then name changes from one step to the next."""
    places_decode: ClassVar[bool] = False
    """Whether `route` is asked at the end of every prefill, whatever the instance's role, and
    `on_leave` for every request that leaves or is put back by a failure."""

    step_tokens: N = 0
    """Tokens of a step, at most, for drafted ones that the engine then drops; 0: no limit."""
    drafters: DrafterRules | None = None
    """How it uses a pool of drafters (`speculative.method: drafter_pool`); None: one a request."""
    monitor_period_s: float = 0.0
    """How often the monitor samples the cluster for `on_monitor`; 0: never."""
    monitor_delay_s: float = 0.0
    """How old a snapshot is when it arrives."""

    def new_queue(self) -> WaitQueue:
        """Return an empty waiting queue of the type this policy wants."""
        return Fifo()

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return the default layout: as many mixed instances as fit.

        A policy that lays out no prefill and decode instances on four GPUs is given none by
        `cluster.pools` either.
        """
        return [Pool("mixed", cluster.gpus // cluster.min_tp, tp=cluster.min_tp)]

    def route(self, request: Request, cluster: Cluster) -> N:
        """Return the id of the instance a request goes to, one that is up.

        Asked at arrival, and when a failure puts the request back (`target_tokens` counts what it
        has emitted, too), unless requests wait in one queue (`queue_scope`); and when a prefill
        instance has prefilled the prompt (`request.prefilled` is not 0 then) for the instance that
        decodes: the same one means that the request stays. With `places_decode` every instance
        asks, after a recompute too.
        """
        if request.prefilled:
            return cluster.decode_router.pick(request, cluster.decode).id
        return cluster.router.pick(request, cluster.entry).id

    def can_accept(self, view: View, request: Request) -> bool:
        """Whether a decode instance pulls the head of its bridge queue now.

        Asked at the instance's step ends and while it is idle. The answer must not turn from no
        to yes while decode steps only shrink the free blocks. A pull in mid-span is no reason to
        ask for a new plan, unless the plan under way has bounds (`max_steps`, `until_s`).
        """
        return view.blocks_for(request.prefilled) <= view.free_blocks - view.growth_blocks

    @abc.abstractmethod
    def plan(self, view: View) -> Plan | None:
        """Decide what the instance does next; None leaves it idle until the next event."""

    def overhead_s(self, view: View) -> float:
        """Return the time the decision for the next prefill itself takes, seconds."""
        return 0.0

    def on_monitor(self, snapshot: Snapshot) -> None:  # noqa: B027
        """Take note of a snapshot. Between two of them `plan` stays pure."""

    def on_leave(self, request: Request) -> None:  # noqa: B027
        """Take note of a request that has left its instances.

        It has finished, was aborted or was rejected, or a failure puts it back: `route` is asked
        again then. Told only with `places_decode`.
        """

    def victim(self, view: View) -> Preemption:
        """Name the request to evict when the batch cannot grow: the last admitted, recomputed."""
        return Preemption(view.running[next(reversed(view.running))])
