"""What a simulated cluster is made of: plain values, filled in by `sim.study`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sim.core.acceptance import Acceptance
from sim.core.attention import Ctas
from sim.core.drafting import Controller
from sim.core.executor import Executor
from sim.core.misses import MissLimit
from sim.core.outages import Outages
from sim.core.predictors import LengthPredictor
from sim.core.routers import PrefixRouting
from sim.types import BadInput, CostModel, N

MOST_DRAFTS: Final = 64
"""Tokens a request drafts in a round, at most."""


class InstanceSpec:
    """What an instance is made of.

    Args:
        cost: prices its steps.
        total_blocks: KV blocks of `block_size` tokens.
        role: `mixed`, `prefill` or `decode`.
        max_model_len: longest prompt + output it serves, in tokens.
        total_swap_blocks: blocks of host memory that swapped requests may fill.
        swap_s_per_block: seconds to copy one block between GPU and host, one way.
        max_step_tokens: prompt tokens of a static batch whose activations fit; 0: any number.
        kv_token_bytes: KV bytes of one token, for transfers.
        pipeline: lanes with the same number >= 0 share the stages of one engine; -1: no lane.
        stages: pipeline stages that the lanes share.
        gpu: name, for reports.
        tp: tensor-parallel degree, for reports.
        ctas: attention is dealt out to them in whole rows; None: evenly, as in the fit.
        cascade_attention: decodes read blocks that they share once (`enable_prefix_caching`).
    """

    def __init__(
        self,
        cost: CostModel,
        total_blocks: N,
        block_size: N = 16,
        role: str = "mixed",
        max_model_len: N = 1 << 40,
        total_swap_blocks: N = 0,
        swap_s_per_block: float = 0.0,
        max_step_tokens: N = 0,
        kv_token_bytes: N = 0,
        pipeline: N = -1,
        stages: N = 1,
        gpu: str = "",
        tp: N = 1,
        ctas: Ctas | None = None,
        cascade_attention: bool = False,
    ) -> None:
        self.cost = cost
        self.total_blocks = total_blocks
        self.block_size = block_size
        self.role = role
        self.max_model_len = max_model_len
        self.total_swap_blocks = total_swap_blocks
        self.swap_s_per_block = swap_s_per_block
        self.max_step_tokens = max_step_tokens
        self.kv_token_bytes = kv_token_bytes
        self.pipeline = pipeline
        self.stages = stages
        self.gpu = gpu
        self.tp = tp
        self.ctas = ctas
        self.cascade_attention = cascade_attention


class Speculation:
    """Speculative decoding of a run.

    Args:
        k_max: most tokens a request drafts in a round.
        table: from a batch size on -> K of its requests, 0 to `k_max`; nothing is drafted below the
            first entry.
        acceptance: what the target accepts, of up to `k_max` tokens.
        control: makes what chooses K while the run goes on, for the prices of an instance; the
            table is its upper bound. None: the table decides.

    Raises:
        BadInput: a number is out of range.
    """

    def __init__(
        self,
        k_max: N,
        table: Mapping[N, N],
        acceptance: Acceptance,
        control: Callable[[CostModel], Controller] | None = None,
    ) -> None:
        if not 0 <= k_max <= MOST_DRAFTS:
            raise BadInput(f"speculation: k_max {k_max}: expected 0 to {MOST_DRAFTS} tokens")
        for batch, drafts in table.items():
            if batch < 1 or not 0 <= drafts <= k_max:
                raise BadInput(
                    f"speculation: batch {batch}: {drafts} tokens; expected batches of 1 and more, "
                    f"and 0 to {k_max} tokens"
                )
        self.k_max = k_max
        self.acceptance = acceptance
        self.control = control
        self._batches = sorted(table)
        self._drafts = [table[batch] for batch in self._batches]

    def k_by_batch(self, batch: N) -> N:
        """Return how many tokens each of `batch` requests drafts."""
        at = bisect_right(self._batches, batch)
        return self._drafts[at - 1] if at else 0

    def new_control(self, cost: CostModel) -> Controller | None:
        """Return what chooses K of an instance with these prices; None: nothing does."""
        return None if self.control is None else self.control(cost)


class Settings:
    """How the engine runs.

    Args:
        fuse_steps: one event for many equal-batch decode steps; False runs step by step with
            identical records.
        padding: `none` (padding-free engine), `batch` (every prompt batch padded) or `policy`
            (as the plan says).
        router: name of the router.
        router_seed: seed of its random choices.
        abort_after_s: the client gives up so many seconds after arrival; None never.
        horizon_s: stop at this simulated time; None runs until all requests have left.
        oom_restart_s: how long an instance is away after an out-of-memory event.
        concurrency: closed loop: requests in flight; None means open arrivals.
        think_s: closed loop: pause between a request's end and the next one's arrival.
        decode_router: name of the router after prefill, when roles are split.
        link_bytes_per_s: bandwidth of a link between a prefill and a decode instance, one way.
        link_latency_s: time before the first byte of a transfer.
        link_shared: all transfers share one link, instead of one for each pair of instances.
        link_overlap: share of a transfer hidden behind the prefill.
        ttft_slo_s: TTFT bound of each source of the trace, by index; -1 none; empty: no bounds.
        e2e_slo_s: end-to-end bound likewise.
        predictor: tells policies an output length; None tells 0.
        executor: runs the steps for real, with `fuse_steps` off; None: they are priced.
        misses: ends the run once too many requests have missed a bound; None: it runs on.
        outages: when instances fail and are repaired; None: never.
        async_scheduling: steps are formed one ahead of the one that runs (`sim.core.inbox`).
        note_queued: `queued_s` is when the scheduler saw a request, not when it arrived; always so
            with `async_scheduling`.
        reserve_full_isl: tells policies to admit a prompt only if all of it fits, not its first
            chunk.
        first_step_s: the first step of an instance, and the first after a repair, lasts so much
            longer.
        first_token: `prefill` (the first token leaves when the prompt is done) or `decode` (the
            decode instance emits it after the transfer and one step, as vLLM's P/D proxy does).
        speculation: drafts tokens and verifies them, several a step; None: a token a step.
        loop: event loop: `fast`, or `simpy` for the stock one; identical records.
        enable_prefix_caching: blocks can be found again by requests that begin alike, and by those
            that were preempted.
        prefix_routing: parameters of the router `prefix`.
    """

    def __init__(
        self,
        fuse_steps: bool = True,
        padding: str = "policy",
        router: str = "round-robin",
        router_seed: int = 0,
        abort_after_s: float | None = None,
        horizon_s: float | None = None,
        oom_restart_s: float = 30.0,
        concurrency: N | None = None,
        think_s: float = 0.0,
        decode_router: str = "shortest-queue",
        link_bytes_per_s: float = 300e9,
        link_latency_s: float = 0.0,
        link_shared: bool = False,
        link_overlap: float = 0.0,
        first_token: str = "prefill",
        async_scheduling: bool = False,
        note_queued: bool = False,
        reserve_full_isl: bool = False,
        first_step_s: float = 0.0,
        enable_prefix_caching: bool = False,
        prefix_routing: PrefixRouting | None = None,
        ttft_slo_s: Sequence[float] = (),
        e2e_slo_s: Sequence[float] = (),
        predictor: LengthPredictor | None = None,
        executor: Executor | None = None,
        misses: MissLimit | None = None,
        outages: Outages | None = None,
        speculation: Speculation | None = None,
        loop: str = "fast",
    ) -> None:
        _check(executor, fuse_steps, async_scheduling, enable_prefix_caching, outages, speculation)
        self.fuse_steps = fuse_steps
        self.padding = padding
        self.router = router
        self.router_seed = router_seed
        self.abort_after_s = abort_after_s
        self.horizon_s = horizon_s
        self.oom_restart_s = oom_restart_s
        self.concurrency = concurrency
        self.think_s = think_s
        self.decode_router = decode_router
        self.links = (link_bytes_per_s, link_latency_s, link_shared, link_overlap)
        self.first_token = first_token
        self.async_scheduling = async_scheduling
        self.note_queued = note_queued
        self.reserve_full_isl = reserve_full_isl
        self.first_step_s = first_step_s
        self.enable_prefix_caching = enable_prefix_caching
        self.prefix_routing = prefix_routing or PrefixRouting()
        self.ttft_slo_s = ttft_slo_s
        self.e2e_slo_s = e2e_slo_s
        self.predictor = predictor
        self.executor = executor
        self.misses = misses
        self.outages = outages
        self.speculation = speculation
        self.loop = loop

    def padded(self, wanted: bool) -> bool:
        """Whether a prompt batch is padded on this engine."""
        return wanted if self.padding == "policy" else self.padding == "batch"


def _check(
    executor: Executor | None,
    fuse_steps: bool,
    async_scheduling: bool,
    enable_prefix_caching: bool,
    outages: Outages | None,
    speculation: Speculation | None,
) -> None:
    """Refuse what does not go together, and what a real device does not do."""
    if speculation is not None and (executor is not None or async_scheduling):
        raise ValueError("speculation: not with an executor, nor with async_scheduling")
    if executor is None:
        return
    if fuse_steps:
        raise ValueError("an executor runs step by step: fuse_steps must be False")
    if async_scheduling:
        raise ValueError("an executor's steps are formed when the last has ended: not ahead")
    if outages is not None:
        raise ValueError("an executor's device does not fail on demand: no outages")
    if enable_prefix_caching:
        raise ValueError("an executor computes every prompt: no prefix caching")
