"""Ascendra: most instances work for throughput, a few rescue what would miss its TTFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import inf
from typing import Literal

from policies.base import (
    Cluster,
    Config,
    Decode,
    Field,
    Mixed,
    N,
    Plan,
    Policy,
    Prefill,
    Request,
    View,
    Wait,
    WaitQueue,
    policy,
)
from policies.parts.values import Estimator, ValueQueue

GO_ON = Decode()
Chunks = list[tuple[Request, N]]
Moves = list[tuple[Request, N]]
NOBODY: Moves = []
NO_LIMIT: N = 1 << 60
CHUNKED_PROMPTS: N = 3
"""Prompts that a step of `packing: chunked` looks at (the artifact's alternative solver)."""
TICKET_MEMORY = 0.9
"""Share of a high-priority instance's memory that prompts may hold for it to take an arrival."""
HARD_SEATS_MEMORY = 0.05
"""Free share of memory below which the seat limit of a high-priority instance is a hard one."""


class AscendraConfig(Config):
    """Parameters of Ascendra; the defaults are those of the authors' artifact, PaceServe."""

    high_share: float = Field(
        1 / 3, gt=0, lt=1, description="share of instances with high priority; at least one of each"
    )
    margin_s: float = Field(
        0.7, ge=0, description="seconds left after a predicted first token for a request to stay"
    )
    transfer_s: float = Field(
        0.005, ge=0, description="seconds a moved request is on its way (no KV moves)"
    )
    order: Literal["edf", "sjf", "basic"] = Field(
        "edf", description="value: least slack, shortest prompt, or waiting over bound and prompt"
    )
    packing: Literal["whole", "chunked"] = Field(
        "whole", description="low priority: pass by a prompt that does not fit, or cut it"
    )
    max_num_seqs: int = Field(128, ge=1, description="requests running on an instance")
    max_num_batched_tokens: int = Field(
        8192, ge=1, description="tokens in one step; a longer prompt runs when nothing decodes"
    )
    ticket_seats: float = Field(
        0.5,
        ge=0,
        le=1,
        description="with a smaller share of seats taken high priority takes arrivals",
    )
    enforce: bool = Field(
        False, description="max_num_seqs binds high-priority instances, too, with memory to spare"
    )
    estimate_error: float = Field(
        0.05, ge=0, lt=1, description="largest relative error of predicted step times"
    )
    watermark: float = Field(
        0.01, ge=0, lt=1, description="share of blocks high priority keeps free at admission"
    )
    window: int = Field(
        256, ge=1, description="waiting requests that low priority considers in a step, at most"
    )


@policy("ascendra")
class Ascendra(Policy):
    """Low-priority instances pack by value, high-priority ones take what would miss its TTFT.

    Idea: an engine that works out of arrival order fills its steps better but makes some requests
    late. Run most instances so, predict which waiting requests are going to be late, and send those
    to a few lightly loaded instances while there is time.

    Decision rule, arrival: the next high-priority instance (HP) takes it if nothing waits there, it
    has less than `ticket_seats` of its seats taken and memory to spare; else the next low-priority
    one (LP), both round robin. LP step: all decodes, then whole waiting prompts by falling value,
    passing by what does not fit into `max_num_batched_tokens`, until seats or blocks run out
    (`packing: chunked`: the first three, the last one cut). Of what still waits and never ran,
    requests with now + max(step time, prompt time) + `margin_s` > deadline move to HP instances,
    round robin, and may start there `transfer_s` later. HP step: waiting prompts by falling value,
    those already late last, whole, in a step of their own; if none, a decode step. When the KV
    cache cannot grow the last admitted request is recomputed, first in its queue.

    Value, `edf`: 1/(deadline - now - prompt time), infinite when that is past; requests without a
    bound come last and never move. A single instance is LP and moves nothing.

    Deviations and assumptions (named where paper and artifact are silent or differ):
    - A1 the artifact (PaceServe) is taken for the paper's system; its later arXiv version may cut
      prompts into chunks or value them otherwise (`packing`, `order`).
    - A2 `transfer_s` 5 ms is assumed.
    - A3 step times are the cost model's with an error that depends on the step's tokens, uniform
      within `estimate_error`; the artifact fits regressions on FLOPs and bytes. Its bound of a
      second of peak FLOPs on a step, which rarely binds, is left out.
    - A4 an arrival finds memory to spare when prompts of the instance's requests fill at most 90 %
      of it (the artifact: free KV above 10 %): what a router may read without ending a span.
    - A5 a prompt too long for the budget beside the decodes is passed by until nothing decodes,
      unless it moves; with `chunked` unfinished prompts go before new ones, and new ones are
      admitted if all of them fit.
    - A6 HP keeps a watermark as vLLM V0 does, waived when nothing runs.
    - A7 `margin_s` depends on the model: 0.7 for Llama-3.1-8B, 0.5 for Mistral-7B, 1.0 otherwise,
      about a step of 8,192 tokens. One near the bound moves everything that waits after one step.
    - A8 its admission test (drop what has waited too long) is not modelled; `slo.abort_after_s`
      lets clients give up.

    Complexity: O(admitted + passed by, up to `window` + moved) per call, O(log n) per arrival; with
    `basic` a sort of the queue.

    Reference: Ikram, Li, Elnikety and Bagchi, "Ascendra: Dynamic Request Prioritization for
    Efficient LLM Serving", arXiv:2504.20828; code Mrxiangli/PaceServe.
    """

    Config = AscendraConfig
    assumes = "TTFT bounds, prompt lengths, step times with an error"

    def __init__(self, config: AscendraConfig) -> None:
        self.config = config
        self.whole = config.packing == "whole"
        self.max_num_seqs: N = config.max_num_seqs
        self.max_num_batched_tokens: N = config.max_num_batched_tokens
        self.window: N = config.window
        self.margin_s = config.margin_s
        self.transfer_s = config.transfer_s
        self.watermark = config.watermark
        self.enforce = config.enforce
        self.basic = config.order == "basic"
        self.ticket_seats = config.ticket_seats * config.max_num_seqs
        self.estimator = Estimator(config.estimate_error)
        self.high: list[View] = []
        """High-priority instances, known from the first arrival on."""
        self._high_ids: set[N] = set()
        self._cluster: Cluster | None = None
        self._up: Sequence[View] = ()
        """The instances that were up at the last arrival, in two parts:"""
        self._up_high: list[View] = []
        self._up_low: list[View] = []
        self._arrived_low: N = 0
        self._arrived_high: N = 0
        self._moves: dict[N, tuple[float, N]] = {}
        """When each request was moved last, and which of all moves that was. `plan` writes here
        what it says, so that saying it twice changes nothing."""
        self._moved: N = 0

    @property
    def operation_counts(self) -> Mapping[str, N]:  # type: ignore[override]
        """Moves to high-priority instances, and arrivals that went there at once."""
        return {"moves": self._moved, "high_arrivals": self._arrived_high}

    def new_queue(self) -> WaitQueue:
        """Return a queue by value."""
        return ValueQueue(self.config.order, self.estimator)

    # -- where ------------------------------------------------------------------------------

    def route(self, request: Request, cluster: Cluster) -> N:
        """Return a high-priority instance with a ticket, else the next low-priority one."""
        if self._up is not cluster.entry:
            self._divide(cluster)
        high, low = self._up_high, self._up_low
        if high:
            view = high[self._arrived_high % len(high)]
            if not low or self._has_ticket(view):
                self._arrived_high += 1
                return view.id
        self._arrived_low += 1
        return low[(self._arrived_low - 1) % len(low)].id

    def _divide(self, cluster: Cluster) -> None:
        """Note who has which priority, and who is up."""
        if self._cluster is not cluster:
            self._cluster = cluster
            self.high = self._chosen(cluster.instances)
            self._high_ids = {view.id for view in self.high}
        self._up = cluster.entry
        self._up_high = [view for view in self.high if view.up]
        self._up_low = [view for view in cluster.entry if view.id not in self._high_ids]

    def _chosen(self, instances: Sequence[View]) -> list[View]:
        """Return the last instances: at least one of each priority, if there are two."""
        entry = [view for view in instances if view.role != "decode"]
        count = min(max(round(len(entry) * self.config.high_share), 1), len(entry) - 1)
        return entry[len(entry) - count :]

    def _has_ticket(self, view: View) -> bool:
        if view.num_waiting or len(view.running) >= self.ticket_seats:
            return False
        return view.outstanding_tokens <= TICKET_MEMORY * view.total_blocks * view.block_size

    # -- what -------------------------------------------------------------------------------

    def plan(self, view: View) -> Plan | None:
        """Decide the next step of an instance of either priority."""
        if not (view.num_waiting or view.prefilling):
            return GO_ON
        queue = view.waiting
        if not isinstance(queue, ValueQueue):
            raise TypeError(f"{self.name} needs its own queue, not {type(queue).__name__}")
        queue.now_s = view.now_s
        if view.id in self._high_ids:
            return self._plan_high(view, queue)
        return self._plan_low(view, queue)

    def _plan_low(self, view: View, queue: ValueQueue) -> Plan | None:
        room = view.free_blocks - view.growth_blocks
        if room < 0:  # the engine evicts, and nothing else happens in that step
            return GO_ON
        chunks = self._whole(view, queue, room) if self.whole else self._cut(view, queue, room)
        step: Mixed | Decode = Mixed(chunks, view.num_decoding > 0) if chunks else GO_ON
        moves = NOBODY
        if self.high and (view.prefilling or view.num_waiting > len(chunks)):
            moves = self._at_risk(view, queue, step, chunks)
        if chunks:
            step.move = moves
            return step
        if not view.num_decoding:
            return None
        # Whoever has a bound may have to move after any step; `basic` reorders all the time.
        single = self.basic or (self.high and view.num_waiting > len(queue.front))
        return Decode(max_steps=1 if single else None, move=moves)

    def _whole(self, view: View, queue: ValueQueue, room: N) -> Chunks:
        """Return whole prompts by value, passing by those that the budget has no room for."""
        budget = self.max_num_batched_tokens - view.decode_tokens
        seats = self.max_num_seqs - len(view.running)
        chunks: Chunks = []
        if seats <= 0 or budget <= 0:
            return chunks
        size = view.block_size
        for request in islice(queue.by_value(), self.window):
            tokens = request.target_tokens
            if tokens > budget and (chunks or view.num_decoding):
                continue
            room -= -(-tokens // size)
            if room < 0:
                break
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
            if seats <= 0 or budget <= 0:
                break
        return chunks

    def _cut(self, view: View, queue: ValueQueue, room: N) -> Chunks:
        """Return up to three prompts, unfinished ones first, the last one cut to the budget."""
        budget = self.max_num_batched_tokens - view.decode_tokens
        seats = self.max_num_seqs - view.num_running
        chunks: Chunks = []
        for request in view.prefilling.values():
            room -= view.blocks_for(request.target_tokens) - request.blocks
            tokens = min(request.target_tokens - request.prefilled, budget)
            if tokens > 0 and len(chunks) < CHUNKED_PROMPTS:
                chunks.append((request, tokens))
                budget -= tokens
        for request in queue.by_value():
            room -= view.blocks_for(request.target_tokens)
            if seats <= 0 or budget <= 0 or room < 0 or len(chunks) == CHUNKED_PROMPTS:
                break
            tokens = min(request.target_tokens, budget)
            chunks.append((request, tokens))
            budget -= tokens
            seats -= 1
        return chunks

    def _at_risk(self, view: View, queue: ValueQueue, step: Plan, chunks: Chunks) -> Moves:
        """Return who waits on and is predicted to be late, with the instance to move to."""
        targets = [high.id for high in self.high if high.up]
        if not targets:
            return NOBODY
        tokens = view.decode_tokens
        for _, new in chunks:
            tokens += new
        due_s = view.now_s + self.margin_s
        after_s = due_s + self.estimator.seconds(view.price(step), tokens)
        late: list[Request] = []
        for start_s, _, request in queue.starts.entries():
            if start_s >= after_s:  # nor is anybody behind
                break
            if start_s < due_s or request.deadline_s < after_s:
                late.append(request)
        if not late:
            return NOBODY
        taken = {request.id for request, _ in chunks}
        late = [request for request in late if request.id not in taken]
        turns = [self._turn(request, view.now_s) for request in late]
        return [(r, targets[k % len(targets)]) for r, k in zip(late, turns, strict=True)]

    def _turn(self, request: Request, now_s: float) -> N:
        """Return which move this is of all, counted from 0, and note it."""
        known = self._moves.get(request.id)
        if known is None or known[0] != now_s:
            known = self._moves[request.id] = (now_s, self._moved)
            self._moved += 1
        return known[1]

    # -- high priority ----------------------------------------------------------------------

    def _plan_high(self, view: View, queue: ValueQueue) -> Plan | None:
        """Prefill whole prompts, the late last; else decode, or wait for what is on its way."""
        batch, until_s = self._prompts(view, queue)
        if batch:
            return Prefill(batch)
        if not view.num_decoding:
            return Wait(until_s) if until_s < inf else None
        if self.basic:
            return Decode(max_steps=1)
        until_s = min(until_s, queue.next_late_s())  # then another one comes first
        return Decode(until_s=until_s) if until_s < inf else GO_ON

    def _prompts(self, view: View, queue: ValueQueue) -> tuple[list[Request], float]:
        """Return the prompts to run, and when the next one arrives that is on its way."""
        budget = self.max_num_batched_tokens
        free = view.free_blocks
        seats = NO_LIMIT
        if self.enforce or free < HARD_SEATS_MEMORY * view.total_blocks:
            seats = self.max_num_seqs - len(view.running)
        room = free - int(self.watermark * view.total_blocks) if view.running else free
        size = view.block_size
        batch: list[Request] = []
        until_s = inf
        for request in queue.late_last():
            moved = self._moves.get(request.id)
            if moved is not None:
                here_s = moved[0] + self.transfer_s
                if here_s > view.now_s:
                    until_s = min(until_s, here_s)
                    continue
            tokens = request.target_tokens
            room -= -(-tokens // size)
            if seats <= 0 or room < 0 or (batch and tokens > budget):
                break
            batch.append(request)
            budget -= tokens
            seats -= 1
        return batch, until_s
