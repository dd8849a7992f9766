"""Batch service by a semi-Markov decision process: wait or serve, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal

from pydantic import model_validator

from policies.base import (
    ClusterInfo,
    Config,
    Decode,
    Field,
    N,
    Plan,
    Policy,
    Pool,
    Request,
    RunToCompletion,
    View,
    Wait,
    WaitQueue,
    policy,
)
from policies.parts.disaggregated import Disaggregated, fcfs_batch
from policies.parts.smdp_model import ServiceLaw, law_of
from policies.parts.smdp_solver import Table
from policies.parts.smdp_tables import Bands, LawMaker, Power, RatedQueue, Solver, TableBook

MS_PER_S = 1e3
NO_LIMIT: N = 1 << 60
DECODE_MIDDLE = 2.5
"""log2 of the batch at which an A100 draws half way between its decode powers (`decode_min_w`)."""


class ServiceConfig(Config):
    """A service law that is affine in the batch; the defaults are the paper's server."""

    base_ms: float = Field(1.0524, ge=0, description="time of any batch (GoogLeNet, Tesla P4), ms")
    request_ms: float = Field(0.3051, gt=0, description="time of each of its requests, ms")
    base_w: float = Field(18.624, ge=0, description="power during base_ms (19.60 mJ a batch), W")
    request_w: float = Field(
        65.225, ge=0, description="power during request_ms (19.90 mJ a request), W"
    )

    def law(self, max_batch: N, stages: N) -> ServiceLaw:
        """Return the law for batches of up to `max_batch`."""
        base_s, request_s = self.base_ms / MS_PER_S, self.request_ms / MS_PER_S
        return law_of(
            max_batch,
            lambda b: base_s + request_s * b,
            lambda b: base_s * self.base_w + request_s * self.request_w * b,
            stages,
        )


class SmdpConfig(Config):
    """Parameters of the decision process and of the rules it is compared with."""

    applies_to: Literal["static", "prefill"] = Field(
        "static", description="run-to-completion batches, or prefill batches of split pools"
    )
    rule: Literal["smdp", "greedy", "fixed", "limit"] = Field(
        "smdp",
        description="optimal table; whatever waits at once; exactly batch_size; from batch_size on",
    )
    batch_size: int = Field(8, ge=1, description="batch of rule fixed, threshold of rule limit")
    max_batch_size: int = Field(32, ge=1, le=512, description="requests in a batch, at most")
    power_weight_ms: float = Field(
        1.0, ge=0, description="ms of mean response that a watt of mean power is worth (w2/w1)"
    )
    service: ServiceConfig | None = Field(
        None, description="service time and power of a batch; null: from the cost model"
    )
    service_stages: int = Field(
        0, ge=0, le=100, description="spread of service: 0 none, 1 exponential, k Erlang-k"
    )
    mean_input_tokens: int = Field(256, ge=1, description="mean prompt (service from cost model)")
    mean_output_tokens: int = Field(
        128, ge=1, description="mean output (static service from the cost model)"
    )
    prefill_w: float = Field(400.0, ge=0, description="power in prompt steps (A100-80GB SXM), W")
    decode_min_w: float = Field(175.0, ge=0, description="power of decode at batch 1, about, W")
    decode_max_w: float = Field(385.0, ge=0, description="power of decode at large batches, W")
    mean_gap_s: float | None = Field(
        None, gt=0, description="mean seconds between arrivals at an instance; null: estimated"
    )
    load_bands: int = Field(9, ge=1, le=99, description="tables, for loads k/(bands+1)")
    smoothing: float = Field(
        0.02, gt=0, le=1, description="weight of the last gap in the estimated mean gap"
    )
    max_wait_s: float = Field(
        5.0, gt=0, description="seconds after which the oldest request is served regardless"
    )
    max_waiting: int = Field(
        128, ge=1, le=2048, description="largest queue told apart in the table"
    )
    overflow_cost_ms: float = Field(
        100.0, ge=0, description="abstract cost rate of queues beyond it, ms"
    )
    tolerance_ms: float = Field(
        0.01, gt=0, description="span of the last change in relative value iteration, ms"
    )
    padded: bool = Field(True, description="pad prompts to the longest of the batch")
    release: Literal["together", "each"] = Field(
        "together", description="when a finished row's result leaves (static)"
    )
    finished_rows: Literal["compute", "skip"] = Field(
        "compute", description="whether finished rows are charged to the batch's end (static)"
    )
    max_num_seqs: int = Field(256, ge=1, description="requests in a decode batch, at most")
    ready_threshold: float = Field(
        0.05, gt=0, le=1, description="pull while pulled prompts hold less of the decode blocks"
    )

    @model_validator(mode="after")
    def _fits(self) -> SmdpConfig:
        if self.max_waiting < self.max_batch_size:
            raise ValueError(
                f"max_waiting={self.max_waiting} must be at least "
                f"max_batch_size={self.max_batch_size}"
            )
        if self.rule in ("fixed", "limit") and self.batch_size > self.max_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} must be at most max_batch_size={self.max_batch_size}"
            )
        return self


@policy("smdp")
class Smdp(Disaggregated):
    """Wait or serve, and how many, from a table that minimises response time and power.

    Idea: a larger batch costs less time and energy a request, but its requests wait for one
    another. When arrivals are Poisson and service depends on the batch alone, the best trade is a
    semi-Markov decision process over the number waiting, solved ahead of time.

    Decision rule: at each completion and, while idle, at each arrival, look up how many of the s
    waiting requests to serve; none means to wait for the next arrival, but no longer than until
    the oldest has waited `max_wait_s`. The table minimises mean response + `power_weight_ms` * mean
    power; it is found by relative value iteration over s = 0..`max_waiting` and one overflow state.
    One table per load band (load: arrivals * l(B)/B for the largest batch B); the band follows the
    smoothed gap between arrivals and changes when another band's centre has been passed.
    `rule: greedy | fixed | limit` look up the rules it is compared with.

    What is served: `applies_to: static`, a run-to-completion batch; `prefill`, a prefill batch on a
    split pool, decode side as `distserve`. Continuous batching is not offered: its service is no
    batch renewal. (On a mixed pool `prefill` looks its tables up all the same.)

    Service law: given (`service`), or from the instance's cost model at the mean lengths: prefill
    of the mean prompt; static batches decode for the mean of the longest output. Energy is the
    time in a phase times its power; idle power is not counted.

    Deviations and assumptions (named where the paper, as known to us, is silent):
    - A1 `service` defaults, 32, 128, 100 and 0.01 are recalled from the paper, not checked; the
      weight of power is the user's knob. Watts times ms stand for mJ, so that weights keep their
      meaning when all times are scaled.
    - A2 `overflow_cost_ms` has no published guidance; results do not depend on it (overflow is
      rarer than 1e-10 up to load 0.9).
    - A3 service is deterministic; `service_stages` gives exponential and Erlang. Which other
      families the journal version uses is not known.
    - A4 `max_wait_s` is ours: without it the last requests of a finite run would wait for ever.
    - A5 bands, smoothing and hysteresis are ours; before two arrivals the lowest band is used.
      `mean_gap_s` gives one table for exactly that rate, short of load 1. A load beyond the bands
      gets the nearest, counted (`policy_below_bands`, `policy_above_bands`).
    - A6 outputs are taken as exponential when the longest of a batch is estimated; powers default
      to an A100-80GB: 400 W in prompts, logistic from 175 to 385 W in decode (Splitwise's and
      vLLM's fleet simulators); they are those of an instance, all its GPUs together.
    - Out of memory and retries: as `static`. Prefill batches are cut to the free blocks.

    Complexity: O(batch) per call; a table takes 5 to 30 ms (B 32, 130 states), once per band.

    Reference: Xu, Sun, Zhou and Niu, "SMDP-Based Dynamic Batching for Efficient Inference on
    GPU-Based Platforms", ICC 2023, arXiv:2301.12865; journal version arXiv:2501.02181.
    """

    Config = SmdpConfig
    assumes = "service law, arrival rate (estimated), mean lengths"

    def __init__(self, config: SmdpConfig) -> None:
        super().__init__(config.max_num_seqs, config.ready_threshold, config.padded)
        self.config = config
        self.static = config.applies_to == "static"
        self.synchronous = "runs static batches" if self.static else ""
        self.max_batch_size: N = config.max_batch_size
        self.max_wait_s = config.max_wait_s
        self.book = table_book(config)

    @staticmethod
    def decision_tables(config: SmdpConfig) -> tuple[str, list[tuple[float, Table]]]:
        """Return what is decided without an instance: a title, and loads with their tables.

        The service law is the one given; if none is, the paper's server.
        """
        service = config.service or ServiceConfig()
        law = service.law(config.max_batch_size, config.service_stages)
        bands = Bands(law, table_book(config).solver, config.load_bands)
        server = "given service" if config.service else "GoogLeNet on a P4"
        title = f"rule {config.rule}, {server}, {config.power_weight_ms:g} ms a watt"
        if config.mean_gap_s is not None:
            rate = 1 / config.mean_gap_s
            if law.load(rate) < 1:
                return title, [(law.load(rate), bands.solver.table(law, rate))]
        return title, [(bands.load(b), bands.table(b)) for b in range(config.load_bands)]

    @property
    def operation_counts(self) -> Mapping[str, N]:  # type: ignore[override]
        """Arrivals at a load that no table is for, below or above all of them."""
        return {"below_bands": self.book.below, "above_bands": self.book.above}

    def new_queue(self) -> WaitQueue:
        """Return a queue that sees the arrival rate."""
        return RatedQueue(self.book)

    def pools(self, cluster: ClusterInfo) -> Sequence[Pool]:
        """Return mixed instances, or one prefill and one decode instance."""
        return Policy.pools(self, cluster) if self.static else super().pools(cluster)

    def plan(self, view: View) -> Plan | None:
        """Look up how many to serve."""
        if not self.static:
            return self._plan_prefill(view)
        head = next(iter(view.waiting), None)
        if head is None:
            return None
        serve = self._to_serve(view)
        if not serve:
            return Wait(head.arrival_s + self.max_wait_s)
        most = max(self.max_batch_size >> head.retries, 1)
        batch = list(islice(view.waiting, min(serve, most)))
        return RunToCompletion(
            batch, self.config.padded, self.config.release, self.config.finished_rows
        )

    def _to_serve(self, view: View) -> N:
        """Return how many of the waiting requests to serve now; at least one waits."""
        queue = view.waiting
        if not isinstance(queue, RatedQueue):
            raise TypeError(f"{self.name} needs its own queue, not {type(queue).__name__}")
        table = queue.table(view.cost)
        serve = table[min(view.num_waiting, len(table) - 1)]
        if not serve and view.now_s >= next(iter(queue)).arrival_s + self.max_wait_s:
            serve = min(view.num_waiting, self.max_batch_size)
        return serve

    def _plan_prefill(self, view: View) -> Plan | None:
        """Decide the next step of a prefill or a decode instance."""
        batch: list[Request] = []
        due_s = -1.0
        if view.num_waiting and not view.swapped:
            serve = self.max_batch_size
            if view.role != "decode":
                serve = self._to_serve(view)
            if serve:
                batch = fcfs_batch(view, NO_LIMIT, serve)
            else:
                due_s = next(iter(view.waiting)).arrival_s + self.max_wait_s
        plan = self.next_step(view, batch)
        if due_s < 0:
            return plan
        if plan is None:
            return Wait(due_s)
        if isinstance(plan, Decode) and not (plan.changes or plan.admit):
            return Decode(until_s=due_s)
        return plan


def table_book(config: SmdpConfig) -> TableBook:
    """Return laws and tables as a config wants them."""
    most = config.max_batch_size
    service = config.service
    maker = LawMaker(
        None if service is None else service.law(most, config.service_stages),
        most,
        config.mean_input_tokens,
        config.mean_output_tokens if config.applies_to == "static" else 0,
        Power(config.prefill_w, config.decode_min_w, config.decode_max_w, DECODE_MIDDLE),
        config.service_stages,
    )
    solver = Solver(
        config.rule,
        config.batch_size,
        config.power_weight_ms / MS_PER_S,
        config.max_waiting,
        config.overflow_cost_ms / MS_PER_S,
        config.tolerance_ms / MS_PER_S,
    )
    return TableBook(maker, solver, config.load_bands, config.smoothing, config.mean_gap_s or 0.0)
