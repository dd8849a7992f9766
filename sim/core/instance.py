"""One engine instance in time: asks the policy, runs steps, ends spans.

Consecutive decode steps of an unchanged batch are one event (a *span*): it ends at the next finish,
when the KV cache cannot grow, at a knot of the cost model, where the plan says, or at the end of
the step in which something arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import simpy

from sim.core.inbox import Inbox
from sim.core.loop import COMPILED, heappop, heappush, steps_to_cover
from sim.core.records import DECODE, MIXED, PACK_STEP, PREFILL
from sim.core.refusals import MAX_EMPTY_PLANS, bad_chunk, no_plan
from sim.core.seats import Seats
from sim.core.static import StaticBatch
from sim.core.timers import instance_timer
from sim.types import (
    FS_PER_S,
    Decode,
    Mixed,
    N,
    Plan,
    Policy,
    Prefill,
    Request,
    RunToCompletion,
    Wait,
    to_fs,
    to_fs_ceil,
)
from sim.types.request import BRIDGED, PREFILLING, READY, WAITING

if TYPE_CHECKING:
    from sim.core.simulation import Simulation
    from sim.core.spec import InstanceSpec

IDLE: Final = 0
STEPPING: Final = 1
STATIC: Final = 2
RESTARTING: Final = 3
DOWN: Final = 4


class Instance(Seats):
    """The machinery behind a policy's `View`."""

    __slots__ = (
        "aborts",
        "activity",
        "batch",
        "chunks",
        "cut",
        "end_fs",
        "extrapolated",
        "first_fs",
        "fuse",
        "increment_fs",
        "kind",
        "n_steps",
        "padded_tokens",
        "padding",
        "pipeline",
        "plans",
        "prefill_requests",
        "prefill_tokens",
        "pull_fs",
        "pull_step",
        "pulls_within",
        "row",
        "settled",
        "start_fs",
        "static",
        "timer",
    )

    def __init__(
        self, id: N, spec: InstanceSpec, policy: Policy, sim: Simulation, env: simpy.Environment
    ) -> None:
        super().__init__(id, spec, policy, sim)
        self.pipeline = sim.pipeline_of(spec)
        # A lane's step depends on the other lanes: nothing to fuse.
        self.fuse = sim.settings.fuse_steps and self.pipeline is None
        self.padding = sim.settings.padding
        self.timer = instance_timer(env, self)
        self.activity = IDLE
        self.end_fs = -1
        """When the timer is due; a firing at any other time is superseded."""
        self.pull_fs = -1
        """When the span under way stops to pull from the bridge; it goes on after that."""
        self.pull_step: N = 0
        """The step of the span that ends then."""
        self.aborts: list[Request] = []
        if self.lag or sim.settings.note_queued:
            self.inbox = Inbox(self, self.lag == 1, sim.requests)
        self.static: StaticBatch | None = None
        self.plans: N = 0

        # The span under way.
        self.row: N = 0
        """Where its row stands in the log."""
        self.start_fs = 0
        self.first_fs = 0
        self.increment_fs = 0
        self.n_steps: N = 0
        self.settled: N = 0
        """Steps of the span that are accounted for already."""
        self.pulls_within = False
        """Whether nothing bounds its plan, so that a pull does not end it."""
        self.batch: N = 0
        self.cut = False
        self.chunks: Sequence[tuple[Request, N]] = ()
        self.kind = DECODE
        self.prefill_requests: N = 0
        self.prefill_tokens: N = 0
        self.padded_tokens: N = 0
        self.extrapolated = False

    # -- events -----------------------------------------------------------------------------

    def fire(self, now: int) -> None:
        """A step, a span or a wait has ended, or the idle instance was woken."""
        if now != self.end_fs and (now != self.pull_fs or not self._pull_within(now)):
            return
        self.end_fs = self.pull_fs = -1
        if self.executor is not None:
            self.executor.look()
        if self.activity == STEPPING:
            self._settle(now, self.n_steps)
            if self.inbox is not None:
                last_fs = self.first_fs + self.increment_fs * (self.n_steps - 1)
                self.inbox.formed_fs = now - last_fs
        elif self.static is not None and not self.static.advance(now):
            return
        self.activity = IDLE
        if self.aborts:
            for request in self.aborts:
                self.apply_abort(request, now)
            self.aborts = []
        if self.pipeline is not None and self.pipeline.free_fs[0] > now:
            self.end_fs = self.pipeline.free_fs[0]
            self.timer.at(self.end_fs)
            return
        self.now_s = now / FS_PER_S
        if self.bridge:
            self.pull(now)
        if self.inbox is None:
            self.decide(now)
        else:
            self.inbox.decide(now)

    def busy(self) -> bool:
        """Whether a step or a static batch is under way, or it restarts."""
        return self.activity in (STEPPING, STATIC, RESTARTING)

    def wake(self, now: int) -> None:
        """Something changed: plan at this instant if idle, else when the step under way ends."""
        if self.activity == IDLE:
            if self.end_fs != now and (
                self.num_waiting or self.running or self.bridge or self.ready or self.swapped
            ):
                self.end_fs = now
                self.timer.at(now)
        elif self.activity == STEPPING and self.n_steps > 1 and not self.cut:
            self.cut = True
            self._end_span_after(self.steps_by(now) + self.lag)

    def bridged(self, now: int) -> None:
        """A prefilled request has joined the bridge: pull when the step under way ends.

        A pull ends the span only if its plan has bounds, which free blocks may move.
        """
        if self.activity != STEPPING or not self.pulls_within or self.cut:
            self.wake(now)
            return
        step = self.steps_by(now)
        if step < self.n_steps:
            self.pull_step = step
            self.pull_fs = self.start_fs + self.span_fs(step)
            self.timer.at(self.pull_fs)

    def _pull_within(self, now: int) -> bool:
        """Pull in mid-span, at the end of a step; True if the batch cannot grow any further."""
        step = self.pull_step
        self._account(step)
        self.pull_fs = -1
        self.now_s = now / FS_PER_S
        self.pull(now)
        left = self.n_steps - step
        if self.free_blocks < self.batch * (left // self.block_size + 1):
            left = min(left, self.steps_until_free_below(0))
            if left == 0:
                self.n_steps = step
                self.log.shorten(self.row, step)
                return True
            self._end_span_after(step + left)
        return False

    def abort(self, request: Request, now: int) -> None:
        """The client has gone: drop a waiting request now, a running one at the step's end."""
        request.aborted = True
        if self.inbox is None or not self.inbox.abort(request, now):
            if request.state in (WAITING, BRIDGED, READY):
                self.apply_abort(request, now)
            else:
                self.aborts.append(request)
        self.wake(now)

    def asleep(self) -> bool:
        """Whether it is idle with no timer set: only an event from outside can wake it."""
        return self.activity == IDLE and self.end_fs < 0

    def settle_at(self, now: int, failed: bool = False) -> int:
        """The run or, `failed`, the instance stops: account for the steps that ended before `now`.

        Returns what the step under way has taken, in femtoseconds.
        """
        if self.static is not None:
            return now - self.static.settle_at(now, failed)
        if self.activity != STEPPING:
            return 0
        ended = self.start_fs
        steps = self.steps_by(now) - 1
        if steps > 0:
            ended += self.span_fs(steps)
            self.log.shorten(self.row, steps)
            self._settle(ended, steps)
        else:
            self._forget_span()
        return now - ended

    def _forget_span(self) -> None:
        """Let the log forget the span under way: not even its first step has ended."""
        self.log.shorten(self.row, 0)
        for request in self.decoding() if self.batch else ():
            joined = request.steps_at_join == self.steps
            if joined and request.last_token_fs < self.start_fs >= request.first_token_fs:
                self.log.gaps_fs.remove(self.start_fs + self.first_fs - request.last_token_fs)

    def go_down(self, now: int) -> int:
        """Fail; return what the step under way had taken, in femtoseconds."""
        lost_fs = self.settle_at(now, failed=True)
        self.activity = DOWN
        self.up = False
        self.end_fs = self.pull_fs = -1
        self.chunks = ()
        self.aborts = []
        if self.static is not None:
            for request in self.running.values():
                request.first_token_fs = -1
            self.static = None
        return lost_fs

    def come_up(self) -> None:
        """Be repaired: idle and empty."""
        self.activity = IDLE
        self.up = True

    def restart(self, now: int) -> None:
        """Be away for the restart time, with nothing running."""
        self.static = None
        self.activity = RESTARTING
        self.end_fs = now + max(to_fs(self.sim.settings.oom_restart_s), 1)
        self.timer.at(self.end_fs)

    def steps_ended(self, now: int) -> N:
        """Decode steps that have ended before `now` and are not accounted for yet."""
        if self.activity != STEPPING or not self.batch:
            return 0
        return max(self.steps_by(now) - 1 - self.settled, 0)

    def steps_by(self, now: int) -> N:
        """Steps of the span under way, at least one, after which it is `now` or later."""
        return steps_to_cover(now - self.start_fs, self.first_fs, self.increment_fs)

    def span_fs(self, steps: N) -> int:
        """What the first `steps` steps of the span under way last, in femtoseconds."""
        return steps * self.first_fs + self.increment_fs * (steps * (steps - 1) // 2)

    # -- deciding ---------------------------------------------------------------------------

    def decide(self, now: int, ahead: bool = False) -> bool:
        """Ask for a plan that takes time (True); `ahead`: one that eviction has emptied waits."""
        empty = 0
        while self.running or self.num_waiting or self.swapped or self.ready:
            self.plans += 1
            try:
                plan = self.policy.plan(self)
            except TypeError as error:
                raise no_plan(self, error) from error
            if plan is None:
                return False
            if isinstance(plan, Decode):
                took_time = self._decode(plan, now)
            elif isinstance(plan, Mixed):
                for preemption in plan.preempt:
                    self.preempt(preemption, now)
                if plan.move:
                    self.move(plan.move, now)
                took_time = self._chunked(plan.chunks, plan.decode, False, now)
            elif isinstance(plan, Prefill):
                chunks = [(r, r.target_tokens - r.prefilled) for r in plan.requests]
                if self.sim.charges_overhead:
                    self.delay_fs += to_fs(self.policy.overhead_s(self))
                padded = self.padding == "batch" or (plan.padded and self.padding == "policy")
                took_time = self._chunked(chunks, False, padded, now)
            else:
                took_time = self._execute(plan, now)
            if took_time:
                self.preempted_last_step = self.preempting
                self.preempting = False
                return True
            if ahead and self.preempting:
                return False
            empty += 1
            if empty == MAX_EMPTY_PLANS:
                raise self.broken(f"{empty} plans in a row ran nothing")
        return False

    def _execute(self, plan: Plan, now: int) -> bool:
        """Carry out one of the rarer plans; False if it ran nothing."""
        if isinstance(plan, RunToCompletion):
            if self.lag:
                raise self.broken("RunToCompletion() is not planned a step ahead")
            self.activity = STATIC
            batch = StaticBatch(self, plan, now)
            if self.activity == STATIC:  # it may have run out of memory at once
                self.static = batch
            return True
        if isinstance(plan, Wait):
            # Not before an arrival at that very time, nor before a float shows it.
            until = max(to_fs_ceil(plan.until_s), to_fs(plan.until_s))
            if until <= now:
                raise self.broken(f"Wait(until_s={plan.until_s}) is not after now")
            self.end_fs = until
            self.timer.at(until)
            return True
        raise self.broken(f"plan() returned {type(plan).__name__}, which is no plan")

    # -- decode steps -----------------------------------------------------------------------

    def _decode(self, plan: Decode, now: int) -> bool:
        single = plan.changes
        if plan.admit:
            for request in plan.admit:
                self.admit_ready(request)
            if self.bridge:
                self.pull(now)
            if not single and (self.ready or not plan.at_once):
                return False
        if single:
            self.change_batch(plan, now)
        if self.phases[-self.steps % self.period] > self.free_blocks:
            self.make_room([], True, now)
            single = True
        if not self.num_decoding:
            if single:
                return False
            raise self.broken("Decode() with nothing to decode")
        limit = 1
        if self.fuse and not single and not self.delay_fs:
            heap = self.finishing
            ends, seq, request = heap[0]
            while request.seq != seq:
                heappop(heap)
                ends, seq, request = heap[0]
            limit = ends - self.steps
        if not plan.bounded:
            self._launch_decode(now, limit)
            self.pulls_within = limit > 1
            return True
        if plan.max_steps is not None and plan.max_steps < limit:
            limit = max(plan.max_steps, 1)
        self._launch_decode(now, limit)
        self.pulls_within = False
        if plan.until_s is not None and self.n_steps > 1:
            self._end_span_after(self.steps_by(to_fs_ceil(plan.until_s)))
        return True

    def _launch_decode(self, now: int, limit: N) -> bool:
        """Start up to `limit` steps of the present batch; True: that takes time."""
        batch = self.num_decoding
        kv = self.kv_tokens
        piece = (self.batch_cost or self.cost).decode(batch)
        while kv >= piece.kv_end and piece.next is not None:
            piece = piece.next
        first = piece.base_fs + piece.slope_fs * kv
        if self.executor is not None:
            first = self.executor.step((), self.decoding(), False)
        if limit > 1:
            if self.free_blocks < batch * (limit // self.block_size + 1):
                limit = min(limit, self.steps_until_free_below(0))
            if piece.next is not None:
                limit = min(limit, -((kv - piece.kv_end) // batch))
        if self.delay_fs:
            first += self.delay_fs
            self.delay_fs = 0
        self.extrapolated = piece.extrapolated
        if self.kind != DECODE:
            self.kind = DECODE
            self.prefill_requests = self.prefill_tokens = self.padded_tokens = 0
        increment = piece.slope_fs * batch
        rest = (limit - 1) * first + increment * (limit * (limit - 1) // 2)
        self._launch(now, limit, first, rest, increment, batch)
        return True

    def _launch(self, now: int, steps: N, first: int, rest: int, increment: int, batch: N) -> None:
        """Start `steps` steps in which `batch` requests decode.

        The first lasts `first`, the others together `rest`, each `increment` longer than the last.
        """
        if self.pipeline is not None:
            first = self.pipeline.enter(now, first) - now
        self.activity = STEPPING
        self.start_fs = now
        self.first_fs = first
        self.increment_fs = increment
        self.n_steps = steps
        self.settled = 0
        self.batch = batch
        self.cut = False
        lead = veterans = odd = 0
        if batch:
            if self.last_emit_fs != now:  # the batch has stood still
                veterans = batch - len(self.joiners)
                if veterans:
                    lead = now - self.last_emit_fs
            if self.joiners:
                odd = self._note_joiners(now)
        rows = self.log.rows
        self.row = len(rows)
        rows += PACK_STEP(
            self.now_s,
            first,
            increment,
            lead,
            self.kv_tokens + self.partial_tokens,
            steps,
            self.id,
            self.prefill_requests,
            self.prefill_tokens,
            self.padded_tokens,
            batch,
            batch,
            veterans,
            odd,
            self.num_waiting,
            self.kind,
            self.extrapolated,
        )
        self.end_fs = now + first + rest
        timer = self.timer
        if COMPILED:
            timer.at(self.end_fs)
        else:  # the same, without the call
            heappush(timer.events, (self.end_fs, timer.priority, next(timer.serial), timer))

    def _end_span_after(self, steps: N) -> None:
        """Let the span under way end earlier, if `steps` is less than it has."""
        if steps < self.n_steps:
            self.n_steps = steps
            self.log.shorten(self.row, steps)
            self.end_fs = self.start_fs + self.span_fs(steps)
            self.timer.at(self.end_fs)

    def _note_joiners(self, now: int) -> N:
        """Note the first gaps of those that emitted their last token before now; return how many.

        Those whose first token is due in this step count as well.
        """
        odd = 0
        for request in self.joiners:
            if request.first_token_fs < 0:
                request.first_token_fs = now + self.first_fs
                odd += 1
            elif request.last_token_fs != now:
                self.log.gaps_fs.append(now - request.last_token_fs + self.first_fs)
                odd += 1
        self.joiners.clear()
        return odd

    # -- steps with prompt chunks -----------------------------------------------------------

    def _chunked(
        self, chunks: Sequence[tuple[Request, N]], decode: bool, padded: bool, now: int
    ) -> bool:
        """Run one step with prompt chunks (and, with `decode`, the decoding batch)."""
        growth = self.phases[-self.steps % self.period] if decode else 0
        if (growth > self.free_blocks or self.prefilling) and (
            self.running_need(chunks, decode) > self.free_blocks
        ):
            chunks = list(chunks)
            self.make_room(chunks, decode, now)
            growth = self.phases[-self.steps % self.period] if decode else 0
        if not chunks:
            return decode and self.num_decoding > 0 and self._launch_decode(now, 1)
        if self.pool is not None and not padded:
            chunks = self.pool.start(chunks, growth)
        new = context = quad = longest = 0
        room = self.free_blocks
        size = self.block_size
        stamp = self.plans
        for request, tokens in chunks:
            cached = request.prefilled
            total = cached + tokens
            if (
                (request.home is not self and not self.has(request))
                or request.stamp == stamp
                or request.state > PREFILLING
                or tokens < 1
                or total > request.target_tokens
            ):
                raise bad_chunk(self, request, tokens)
            request.stamp = stamp
            blocks = -(-total // size)
            room -= blocks - request.held_blocks
            request.held_blocks = blocks
            if request.state == WAITING:
                self.admit(request, now)
            new += tokens
            context += total
            quad += tokens * (tokens + 2 * cached)
            if total > longest:
                longest = total
        if room < growth:
            raise self.broken(f"the step needs {growth - room} KV blocks more than are free")
        batch, kv = (self.num_decoding, self.kv_tokens) if decode else (0, 0)
        self.free_blocks = room
        self.chunks = chunks
        self.kind = MIXED if batch else PREFILL
        self.prefill_tokens = charged = new
        self.prefill_requests = count = len(chunks)
        if padded:
            charged = context = count * longest
            quad = count * longest * longest
        self.padded_tokens = charged
        self.extrapolated = self.cost.extrapolates(charged, batch)
        first = (self.batch_cost or self.cost).step(count, charged, context, quad, batch, kv)
        if self.executor is not None:
            first = self.executor.step(chunks, self.decoding() if batch else (), padded)
        self._launch(now, 1, first + self.delay_fs, 0, 0, batch)
        self.delay_fs = 0
        return True

    # -- the end of steps -------------------------------------------------------------------

    def _settle(self, now: int, steps: N) -> None:
        """Account for `steps` steps of the span under way."""
        batch = self.batch
        if batch:
            self.last_emit_fs = now
            self._account(steps)
        if self.chunks:
            self._end_chunks(now)
        if not batch:
            return
        heap = self.finishing
        while heap and heap[0][0] <= self.steps:
            _, seq, request = heappop(heap)
            if request.seq == seq:
                self.quit(request)
                if self.lag:
                    self.leaving.append(request)
                else:
                    self.release(request)
                self.sim.leave(request, self, now, request.emitted)

    def _account(self, step: N) -> None:
        """Let the batch have grown until the end of the span's step `step` (from 1)."""
        steps = step - self.settled
        if steps == 1:
            self.free_blocks -= self.phases[-self.steps % self.period]
        elif steps:
            self.free_blocks -= self.growth_over(steps)
        self.settled = step
        self.steps += steps
        self.kv_tokens += steps * self.batch

    def _end_chunks(self, now: int) -> None:
        prefilling = self.prefilling
        for request, tokens in self.chunks:
            before = request.prefilled
            request.prefilled = total = before + tokens
            begun = before and request.id in prefilling
            if total < request.target_tokens:
                prefilling[request.id] = request
                self.partial_tokens += tokens if begun else total
                continue
            if begun:
                del prefilling[request.id]
                self.partial_tokens -= before
            self.first_token(request, now)
        self.chunks = ()
