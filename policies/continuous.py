"""Continuous (iteration-level) batching as vLLM does it: the V1 and the V0 scheduler."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import model_validator

from policies.base import (
    Config,
    Decode,
    Field,
    Mixed,
    N,
    Plan,
    Policy,
    Preemption,
    Prefill,
    Request,
    View,
    WaitQueue,
    policy,
)
from policies.parts.orders import lowest_rank, ordered_queue

GO_ON: Final = Decode()
V0_ONLY = ("watermark", "token_count", "padded", "max_paddings", "preemption_mode")
V1_ONLY = ("long_prefill_token_threshold",)


class ContinuousConfig(Config):
    """Parameters of continuous batching; names as in vLLM."""

    scheduler: Literal["v1", "v0"] = Field(
        "v1", description="v1: one token budget, chunked prefill; v0: prefill-only steps first"
    )
    order: Literal["fcfs", "sjf", "edf", "priority"] = Field(
        "fcfs",
        description="who waits first: arrival, shortest prompt, earliest TTFT deadline, "
        "or smallest (priority, arrival)",
    )
    queue: Literal["instance", "cluster"] = Field(
        "instance",
        description="waiting requests: routed at arrival, or held in one queue that instances pull "
        "from",
    )
    max_num_seqs: int = Field(256, ge=1, description="requests running at a time, at most")
    max_num_batched_tokens: int = Field(2048, ge=1, description="tokens in one step, at most")
    long_prefill_token_threshold: int = Field(
        0, ge=0, description="tokens of one prompt in one step, at most; 0: no limit (v1)"
    )
    watermark: float = Field(
        0.01, ge=0, lt=1, description="share of KV blocks kept free at admission (v0)"
    )
    token_count: Literal["sum", "padded"] = Field(
        "sum", description="how a prefill batch counts against the budget (v0)"
    )
    padded: bool = Field(False, description="pad prefill batches, as early vLLM did (v0)")
    max_paddings: int | None = Field(
        None,
        ge=0,
        description="padding tokens of a prefill batch, at most; null: no limit; vLLM 0.2-0.3: "
        "256 (v0)",
    )
    preemption_mode: Literal["recompute", "swap"] = Field(
        "recompute", description="what happens to a victim's KV blocks (v0)"
    )

    @model_validator(mode="after")
    def _fits_scheduler(self) -> ContinuousConfig:
        ignored = V0_ONLY if self.scheduler == "v1" else V1_ONLY
        for name in ignored:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning with scheduler: {self.scheduler}"
                )
        return self

    @model_validator(mode="after")
    def _budget_covers_seqs(self) -> ContinuousConfig:
        if self.scheduler == "v1" and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}: every running request takes a token a step"
            )
        return self


@policy("continuous")
class Continuous(Policy):
    """Continuous batching: requests join and leave the batch at every step.

    Decision rule, `v1`: one budget of `max_num_batched_tokens` per step. Running requests first
    (a token for each decode, then unfinished prompts in admission order), then waiting requests
    first come first served while seats, budget and KV blocks remain; prompts are cut into chunks
    to fit. When the KV cache cannot grow, the last admitted request is preempted and recomputed
    from the head of the queue; a step that preempts admits nobody.

    Decision rule, `v0`: if nothing is swapped out and some waiting prompts fit (whole, in order,
    leaving the watermark free), a step with only those prefills; else one decode step. Victims are
    the latest arrivals, recomputed or swapped to host memory; swapped requests come back before any
    new prefill, in order of arrival, while a block to spare for each and the watermark stay free.
    `padded`, `token_count: padded` and `max_paddings: 256` are vLLM 0.2.2 to 0.3: prompts of one
    step are padded to the longest, and the next one has to wait if that would take more than 256
    padding tokens.

    Both take waiting requests by `order`. With `sjf` and `edf` (no deadline: last) preempted
    requests stand in front, as with `fcfs`; with `priority`, as in vLLM, they go back to their rank
    and the victim is the running request of lowest priority, of those the last to arrive. Whatever
    the order, a head of the queue that does not fit holds up the rest.

    Requests wait where the router put them or, with `queue: cluster`, in one queue for all: the
    instance that plans first takes what fits, also what another has preempted.

    With prefix caching both admit a request by what is left of it after the hit; a padded `v0`
    prefill has none.

    Deviations and assumptions: vLLM has a queue per engine; `queue: cluster` stands for a proxy
    that holds requests back until an engine has room. It has `fcfs` and `priority`; `sjf` and `edf`
    are the plain textbook rules, so a long prompt may wait for ever and a deadline already missed
    still comes first. A waiting request of high priority evicts nobody, as in V1. What the engine
    decides in vLLM is an engine setting here: steps formed one ahead (`engine.async_scheduling`),
    admission only of prompts that fit whole (`engine.scheduler_reserve_full_isl`; else the first
    chunk has to fit), the null block (`engine.null_block`). In `v1` all decodes come before
    unfinished prompts, where vLLM walks the running requests in admission order. An unfinished
    prompt is the last admitted, so this is the same step, unless `long_prefill_token_threshold`
    lets prompts be unfinished side by side and the budget runs out: vLLM then leaves out decodes
    that were admitted after them, here it is the chunks that get less.
    In `v0` a prompt longer than the budget runs alone, and the watermark is waived for the head of
    the queue when nothing runs, where vLLM would refuse the prompt for good. `max_num_seqs` 256 and
    2048 tokens are vLLM's class defaults of that era; its entry points choose by GPU.

    Complexity: O(admitted + unfinished prompts) per call.

    Reference: Kwon et al., SOSP 2023, doi:10.1145/3600006.3613165; vLLM documentation (V1).
    """

    Config = ContinuousConfig
    assumes = "nothing (sjf: prompt lengths; edf: TTFT bounds)"

    def __init__(self, config: ContinuousConfig) -> None:
        self.v1 = config.scheduler == "v1"
        self.synchronous = "" if self.v1 else "with scheduler v0 waits for each step's tokens"
        self.order: str = config.order
        self.queue_scope = config.queue
        self.max_num_seqs: N = config.max_num_seqs
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.step_tokens = config.max_num_batched_tokens if self.v1 else 0
        self.chunk_limit: N = config.long_prefill_token_threshold or config.max_num_batched_tokens
        self.watermark = config.watermark
        self.count_padded = config.token_count == "padded"
        self.padded = config.padded
        self.max_paddings: N = -1 if config.max_paddings is None else config.max_paddings
        self.swap = config.preemption_mode == "swap" and not self.v1

    def new_queue(self) -> WaitQueue:
        """Return a queue in the configured order."""
        return ordered_queue(self.order)

    def plan(self, view: View) -> Plan | None:
        """Decide the next step."""
        if not (view.num_waiting or view.prefilling or view.swapped):
            return GO_ON
        if not self.v1:
            return self._plan_v0(view)
        decoding = view.num_decoding
        budget = self.max_num_batched_tokens - view.decode_tokens
        chunks: list[tuple[Request, N]] = []
        room = view.free_blocks - view.growth_blocks
        for request in view.prefilling.values():
            tokens = min(request.target_tokens - request.prefilled, self.chunk_limit, budget)
            if tokens <= 0:
                break
            chunks.append((request, tokens))
            budget -= tokens
            room -= view.blocks_for(request.prefilled + tokens) - request.blocks
        if room >= 0 and budget > 0 and view.num_waiting:
            self._admit_v1(view, chunks, budget, room)
        if chunks:
            return Mixed(chunks, decoding > 0)
        return GO_ON if decoding else None

    def victim(self, view: View) -> Preemption:
        """Evict the last admitted (v1), the latest arrival (v0), or the lowest priority."""
        if self.order == "priority":
            return Preemption(lowest_rank(view.running), self.swap)
        last = view.running[next(reversed(view.running))]
        if not self.v1:
            for request in view.running.values():
                if request.id > last.id:
                    last = request
        return Preemption(last, self.swap)

    # -- V1 ---------------------------------------------------------------------------------

    def _admit_v1(self, view: View, chunks: list[tuple[Request, N]], budget: N, room: N) -> None:
        """Append chunks of waiting requests while seats, budget and blocks remain."""
        seats = self.max_num_seqs - view.num_running
        if seats <= 0:
            return
        size = view.block_size
        limit = self.chunk_limit
        whole = view.reserve_full_isl
        cache = view.prefix_cache
        look = None
        for request in view.waiting:
            if seats <= 0 or budget <= 0:
                return
            left = request.target_tokens
            if cache is not None and look is None and (request.prefix or request.preemptions):
                look = cache.prospect(view.growth_blocks, chunks)
            if look is not None:
                left -= look.cached(request)
            tokens = left
            if tokens > limit:
                tokens = limit
            if tokens > budget:
                tokens = budget
            if whole and tokens < left:
                need = -(-left // size) if look is None else look.needs(request, left)
                if need > room:
                    return
            room -= -(-tokens // size) if look is None else look.admit(request, tokens)
            if room < 0:
                return
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1

    # -- V0 ---------------------------------------------------------------------------------

    def _plan_v0(self, view: View) -> Plan | None:
        if view.swapped:
            back = self._swap_in_v0(view)
            if back:
                return Decode(swap_in=back)
        elif view.num_waiting and view.num_running < self.max_num_seqs:
            batch = self._prefill_v0(view)
            if batch:
                return Prefill(batch, self.padded)
        return GO_ON if view.num_decoding else None

    def _prefill_v0(self, view: View) -> list[Request]:
        seats = self.max_num_seqs - view.num_running
        size = view.block_size
        room = view.free_blocks - int(self.watermark * view.total_blocks)
        cache = None if self.padded else view.prefix_cache
        look = None
        batch: list[Request] = []
        charged = longest = tokens = 0
        for request in view.waiting:
            length = request.target_tokens
            if cache is not None and look is None and (request.prefix or request.preemptions):
                look = cache.prospect(0, [(r, r.target_tokens) for r in batch])
            if look is not None:
                length -= look.cached(request)
            tokens += length
            longest = max(longest, length)
            rectangle = longest * (len(batch) + 1)
            charged = rectangle if self.count_padded else tokens
            room -= -(-length // size) if look is None else look.admit(request, length)
            if room < 0 or (batch and charged > self.max_num_batched_tokens):
                break
            if 0 <= self.max_paddings < rectangle - tokens:
                break
            batch.append(request)
            if len(batch) == seats:
                break
        if not (batch or view.running):
            head = next(iter(view.waiting))
            if view.blocks_for(head.target_tokens) <= view.free_blocks:
                batch.append(head)
        return batch

    def _swap_in_v0(self, view: View) -> list[Request]:
        room = view.free_blocks - view.growth_blocks
        watermark = int(self.watermark * view.total_blocks)
        back: list[Request] = []
        for _, request in sorted(view.swapped.items()):
            held = view.blocks_for(request.prefilled)
            spare = 1 + watermark
            if not (view.running or back):
                spare = view.blocks_to_decode(request.prefilled) - held
            if room < held + spare or view.num_running + len(back) >= self.max_num_seqs:
                break
            room -= view.blocks_to_decode(request.prefilled)
            back.append(request)
        return back
