"""What a policy sees of an instance: one object each, kept up to date by the engine."""

from __future__ import annotations

from sim.types.costs import CostModel
from sim.types.plans import Decode, Mixed, Plan, Prefill, RunToCompletion
from sim.types.prefix import PrefixCache
from sim.types.queues import Fifo, WaitQueue
from sim.types.request import DECODING, Request
from sim.types.units import FS_PER_S, N


class View:
    """Settled state of one instance. Policies read; only the engine writes.

    The engine's instance *is* a `View`, so nothing is copied before a plan call; a unit test builds
    a bare one. `running` and `prefilling` map request id to request in admission order.

    Decoding requests all advance by one token a step, so each is described by constants relative
    to the instance's step counter `steps`: a request caches `kv_offset + steps` tokens, and needs a
    new block at the steps where that is a multiple of the block size. `phases[kv_offset %
    block_size]` counts them: growth is a look-up, never a loop over the batch. (Where requests
    speculate they advance by more than one, and the phases are what `sim.core.speculation` says.)
    """

    __slots__ = (
        "block_size",
        "bridge",
        "cost",
        "free_blocks",
        "free_swap_blocks",
        "held_blocks",
        "id",
        "kv_tokens",
        "leaving",
        "lookahead",
        "now_s",
        "num_decoding",
        "num_waiting",
        "outstanding",
        "outstanding_tokens",
        "paused",
        "period",
        "phases",
        "preempted_last_step",
        "prefilling",
        "prefix_cache",
        "ready",
        "ready_blocks",
        "reserve_full_isl",
        "role",
        "running",
        "steps",
        "swapped",
        "total_blocks",
        "total_swap_blocks",
        "up",
        "waiting",
    )

    def __init__(
        self,
        id: N,
        cost: CostModel,
        total_blocks: N,
        block_size: N = 16,
        role: str = "mixed",
        waiting: WaitQueue | None = None,
        total_swap_blocks: N = 0,
    ) -> None:
        self.id = id
        self.role = role
        self.cost = cost
        self.block_size = block_size
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks
        self.prefix_cache: PrefixCache | None = None
        """What later requests may find again; None: nothing (`engine.enable_prefix_caching`)."""
        self.total_swap_blocks = total_swap_blocks
        self.free_swap_blocks = total_swap_blocks
        self.now_s = 0.0
        self.waiting: WaitQueue = Fifo() if waiting is None else waiting
        self.num_waiting: N = 0
        self.running: dict[N, Request] = {}
        self.prefilling: dict[N, Request] = {}
        self.leaving: list[Request] = []
        """With `async_scheduling`: in `running`, for they keep seat and blocks until the next step
        is formed, but they get their last token in the step before and take part in no more."""
        self.paused: dict[N, Request] = {}
        self.swapped: dict[N, Request] = {}
        self.bridge: dict[N, Request] = {}
        """Prefilled elsewhere, routed here, not yet accepted; their KV is held at the source.
        Prefilled here: parked until a decode instance is up."""
        self.ready: dict[N, Request] = {}
        """Transferred here, not yet in the batch."""
        self.ready_blocks: N = 0
        """Blocks of ready requests and of those on their way."""
        self.held_blocks: N = 0
        """Blocks of prompts prefilled here whose KV has not left yet."""
        self.num_decoding: N = 0
        self.kv_tokens: N = 0
        """Tokens cached by the decoding requests."""
        self.steps: N = 0
        self.period: N = block_size
        """Steps after which the phases come round."""
        self.phases: list[N] = [0] * block_size
        """Blocks that the batch takes for the step that finds the counter at s, at -s % period."""
        self.lookahead: N = 0
        """Slots beyond its next token that every decoding request holds, for drafted tokens."""
        self.preempted_last_step = False
        self.outstanding: N = 0
        """Requests of this instance that have not left: waiting (not in a queue of all), running or
        swapped."""
        self.outstanding_tokens: N = 0
        """Prompt tokens of the outstanding requests."""
        self.reserve_full_isl = False
        """Whether a prompt may be admitted only if all of it fits (`scheduler_reserve_full_isl`);
        else its first chunk has to. Policies that always want room for the whole do not ask."""
        self.up = True
        """Whether it serves; an instance that has failed holds nothing until it is repaired."""

    @property
    def num_running(self) -> N:
        """Requests that hold a seat: decoding, prefilling, paused or leaving."""
        return len(self.running)

    @property
    def growth_blocks(self) -> N:
        """Blocks the decoding batch needs for its next step."""
        return self.phases[-self.steps % self.period]

    @property
    def decode_tokens(self) -> N:
        """Tokens that the decoding batch puts into its next step: drafted ones count."""
        return self.num_decoding

    def blocks_to_decode(self, tokens: N) -> N:
        """Blocks that a request which caches `tokens` tokens holds in its next decode step."""
        return -(-(tokens + 1 + self.lookahead) // self.block_size)

    def blocks_for(self, tokens: N) -> N:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def blocks_of(self, request: Request) -> N:
        """Blocks a request of this instance holds now."""
        if request.state == DECODING:
            return -(-(request.kv_offset + self.steps) // self.block_size)
        return request.held_blocks

    def generated(self, request: Request) -> N:
        """Tokens the request has emitted so far."""
        if request.state == DECODING:
            return request.emitted + self.steps - request.steps_at_join
        return request.emitted

    def growth_over(self, steps: N) -> N:
        """Blocks the decoding batch takes over its next `steps` steps."""
        size = self.block_size
        cycles = steps // size
        rest = steps - cycles * size
        total = cycles * self.num_decoding
        # The phases form a ring, walked downwards from the next step's.
        last = -self.steps % size + 1
        first = last - rest
        if first < 0:
            return total + sum(self.phases[first:]) + sum(self.phases[:last])
        return total + sum(self.phases[first:last])

    def steps_until_free_below(self, blocks: N) -> N:
        """Steps after which fewer than `blocks` blocks would be free.

        Returns the largest n such that n more decode steps leave at least `blocks` free; a very
        large number when nothing decodes.
        """
        batch = self.num_decoding
        room = self.free_blocks - blocks
        if room < 0 or batch == 0:
            return 0 if room < 0 else 1 << 62
        size = self.block_size
        cycles = room // batch
        steps = cycles * size
        room -= cycles * batch
        phases = self.phases
        at = -self.steps % size
        while room >= phases[at]:  # ends within one turn of the ring: less than a batch is left
            room -= phases[at]
            steps += 1
            at -= 1
        return steps

    def price(self, plan: Plan) -> float:
        """Seconds the first step of `plan` would take (a static batch: its prefill)."""
        batch, kv = self.num_decoding, self.kv_tokens
        if isinstance(plan, Mixed):
            if not plan.decode:
                batch = kv = 0
            new = context = quad = 0
            for request, tokens in plan.chunks:
                new += tokens
                context += tokens + request.prefilled
                quad += tokens * (tokens + 2 * request.prefilled)
            return self.cost.step(len(plan.chunks), new, context, quad, batch, kv) / FS_PER_S
        if isinstance(plan, Prefill | RunToCompletion):
            lens = [r.target_tokens for r in plan.requests]
            if plan.padded:
                lens = [max(lens)] * len(lens)
            new = sum(lens)
            quad = sum(n * n for n in lens)
            return self.cost.step(len(lens), new, new, quad, 0, 0) / FS_PER_S
        if isinstance(plan, Decode) and batch:
            piece = self.cost.decode(batch)
            while piece.next is not None and kv >= piece.kv_end:
                piece = piece.next
            return (piece.base_fs + piece.slope_fs * kv) / FS_PER_S
        return 0.0
