"""Deadline-aware grouping: who can still be in time, in padded batches of least price."""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import Literal

from policies.base import (
    Config,
    Field,
    N,
    Plan,
    Prefill,
    Request,
    View,
    WaitQueue,
    policy,
)
from policies.parts.disaggregated import Disaggregated, fcfs_batch
from policies.parts.grouping import DeadlineQueue, GroupFormer


class DeadlineBatchConfig(Config):
    """Parameters of deadline-aware grouping."""

    order: Literal["edf", "fcfs", "sjf"] = Field(
        "edf", description="who leads: earliest TTFT deadline, arrival or shortest prompt"
    )
    demote_lost: bool = Field(
        True, description="requests that cannot meet their deadline run when nothing else can"
    )
    grouping: Literal["dp", "none"] = Field(
        "dp", description="padded batches: least-price groups, or filled in order"
    )
    shrink: bool = Field(True, description="drop members until the others meet their deadlines")
    max_batch_tokens: int = Field(
        2048, ge=1, description="tokens of a prefill batch, padding included; a prompt may exceed"
    )
    max_batch_size: int = Field(128, ge=1, description="requests in a prefill batch, at most")
    window: int = Field(256, ge=1, description="waiting requests considered per decision, at most")
    age_limit_s: float = Field(
        20.0, ge=0, description="seconds after which the oldest request is due whatever its order"
    )
    age_share: float = Field(
        0.1, gt=0, le=1, description="share of prompt tokens that requests past the age limit get"
    )
    margin_s: float = Field(
        0.0, ge=0, description="seconds before its deadline at which a prefill has to end"
    )
    padded: bool = Field(True, description="pad prefill batches to their longest prompt")
    max_num_seqs: int = Field(256, ge=1, description="requests in a decode batch, at most")
    ready_threshold: float = Field(
        0.05, gt=0, le=1, description="pull while pulled prompts hold less of the decode blocks"
    )


@policy("deadline-batch")
class DeadlineBatch(Disaggregated):
    """Deadline order, demotion of lost requests and least-price groups on the prefill side.

    Idea: a padded batch wastes what its shorter prompts are padded by, and a request that will miss
    its TTFT bound anyway should not make others miss theirs. So run, of the requests that can still
    be in time, the group with the earliest deadline, groups being cut by price.

    Decision rule, at each free prefill slot: (a) candidates are the first `window` waiting requests
    that could meet their bound if run alone now; (b) sort them by length and cut them into groups
    by a dynamic programme: least sum of the cost model's prices, each group at most
    `max_batch_tokens` padded tokens; with `grouping: none`, or on a padding-free engine (`padded:
    false`), fill one batch in order instead, until the next would exceed the tokens or make a
    member late; (c) run the group of the first candidate (`order`); (d) shrink it until those that
    can make their deadlines do: drop the longest while it is not the first candidate, then the
    latest deadline; (e) lost requests run, by the same rule, when no other one fits. The oldest
    request leads a batch once it has waited `age_limit_s` and `1/age_share - 1` times its prompt
    in tokens has gone ahead of it since the last such batch. Decode side: as `distserve`.

    Memory: requests whose blocks are not free are passed by, and the group is shrunk to the free
    blocks; but the oldest request, when due, keeps the instance free until the KV of others has
    left. When nothing of the window fits, some KV is still to leave, which asks again.

    Deviations and assumptions (ours, it has no paper; `reproduction.md` section 8, "EDF+"):
    - It knows prompt lengths, the prefill cost and the TTFT bound; no output length.
    - A request without a bound has an infinite deadline: it is never lost, and behind all others
      with `edf` (`age_limit_s` bounds its wait).
    - `age_share`: with strict priority for all past the age limit, one overload turns EDF into FCFS
      for good; 1 gives that.
    - Only the requests at hand are looked at: a group may make others late.
    - With `first_token: decode` the bound includes transfer and a decode step: see `margin_s`.
    - `padded` must agree with the engine's `padding`. On a mixed pool batches are filled in order.

    Complexity: O(w * k) per decision for w <= `window` candidates and at most k in a group, with
    O(w log w) for sorting; O(log n) per arrival and per request lost.

    Reference: this project. Earliest deadline first: Liu and Layland, J. ACM 20(1), 1973,
    doi:10.1145/321738.321743.
    """

    Config = DeadlineBatchConfig
    assumes = "prompt lengths, TTFT bounds, prefill price"

    def __init__(self, config: DeadlineBatchConfig) -> None:
        super().__init__(config.max_num_seqs, config.ready_threshold, config.padded)
        self.config = config
        self.order = config.order
        self.max_batch_tokens: N = config.max_batch_tokens
        self.max_batch_size: N = config.max_batch_size
        self.former = GroupFormer(
            config.max_batch_tokens,
            config.max_batch_size,
            padded=config.padded,
            by_price=config.grouping == "dp",
            shrink=config.shrink,
            margin_s=config.margin_s,
        )
        self.passed_per_token = 1 / config.age_share - 1

    def new_queue(self) -> WaitQueue:
        """Return a queue in the configured order."""
        latest_start_s = self.former.latest_start_s if self.config.demote_lost else None
        return DeadlineQueue(self.key, latest_start_s)

    def plan(self, view: View) -> Plan | None:
        """Decide the next step of a prefill or a decode instance."""
        batch: list[Request] = []
        if view.role == "prefill":
            if view.num_waiting:
                batch = self._prefill_batch(view)
            return Prefill(batch, self.padded) if batch else None
        if view.num_waiting and not view.swapped:
            batch = fcfs_batch(view, self.max_batch_tokens, self.max_batch_size)
        return self.next_step(view, batch)

    def key(self, request: Request) -> float:
        """Return what the queue is sorted by; ties go by trace row."""
        if self.order == "sjf":
            return request.target_tokens
        if self.order == "fcfs":
            return request.arrival_s
        return request.deadline_s if request.deadline_s >= 0 else inf

    def _prefill_batch(self, view: View) -> list[Request]:
        """Return the group to run; empty when nothing of the window fits."""
        queue = view.waiting
        if not isinstance(queue, DeadlineQueue):
            raise TypeError(f"{self.name} needs its own queue, not {type(queue).__name__}")
        if view.num_waiting == 1:
            request = queue.oldest()
            fits = view.blocks_for(request.target_tokens) <= view.free_blocks
            return [request] if fits else []
        queue.expire(view.now_s)
        oldest = queue.oldest()
        aged = view.now_s - oldest.arrival_s >= self.config.age_limit_s
        if aged and queue.passed_tokens >= self.passed_per_token * oldest.target_tokens:
            if view.blocks_for(oldest.target_tokens) > view.free_blocks:
                return []
            rest = [r for r in self._fitting(view, queue.live) if r is not oldest]
            return self.former.batch(view, [oldest, *rest])
        candidates = self._fitting(view, queue.live) or self._fitting(view, queue.lost)
        return self.former.batch(view, candidates) if candidates else []

    def _fitting(self, view: View, waiting: WaitQueue) -> list[Request]:
        """Return those of the first `window` whose blocks are free."""
        tokens = view.free_blocks * view.block_size
        first = islice(waiting, self.config.window)
        return [request for request in first if request.target_tokens <= tokens]
