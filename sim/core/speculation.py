"""Instances whose requests speculate: K tokens are drafted a step, those accepted come at once.

A *round* is a request's part in one decode step: with n of K drafted tokens accepted it emits
n + 1 tokens and caches as many. What each round of a request would accept is drawn from its own
stream (`sim.core.acceptance`), so all its rounds are known when it joins the batch: their tokens
and blocks go into rings that the step counter walks, and a step costs the same for any batch.
Another K keeps the draws and cuts them elsewhere: the rings are laid again when K changes.

Steps of a span differ in length. They are priced and logged one by one, which is why both ways of
running give the same rows; what a span saves is the event and the plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify
from typing import TYPE_CHECKING, Final

import numpy as np
import simpy
from numpy.typing import NDArray

from sim.core.acceptance import Tokens
from sim.core.instance import Instance
from sim.core.loop import heappop, heappush
from sim.core.records import DECODE, MIXED, PACK_STEP
from sim.core.spec import Speculation
from sim.types import FOREVER, FS_PER_S, BadInput, CostModel, DecodePiece, N, Plan, Policy, Request
from sim.types.request import DECODING

if TYPE_CHECKING:
    from sim.core.simulation import Simulation
    from sim.core.spec import InstanceSpec

SPAN: Final = 8
"""Steps priced ahead at most: an arrival makes most of a longer span for nothing."""
FIRST_PERIOD: Final = 1024
"""Rounds that the rings hold at first; they double when a request needs more."""


class DraftedCost(CostModel):
    """A cost model whose decode steps draft and verify as many tokens as the instance does now.

    Args:
        cost: prices steps of any number of drafted tokens.
        speculation: how many, by batch.
        step_tokens: tokens of a step, at most: drafted ones that do not fit are dropped, from every
            request alike; 0: no limit.
    """

    def __init__(self, cost: CostModel, speculation: Speculation, step_tokens: N) -> None:
        self.cost = cost
        self.speculation = speculation
        self.step_tokens = step_tokens
        self._chosen: N = speculation.k_max
        self._drafts: dict[N, N] = {}
        self._pieces: dict[N, DecodePiece] = {}

    def choose(self, k: N) -> None:
        """Let a request draft at most `k` tokens, whatever the batch."""
        if k != self._chosen:
            self._chosen = k
            self._drafts.clear()
            self._pieces.clear()

    def drafts(self, batch: N) -> N:
        """Return how many tokens a step of `batch` requests drafts for each."""
        k = self._drafts.get(batch)
        if k is None:
            k = min(self.speculation.k_by_batch(batch), self._chosen)
            if self.step_tokens:
                k = max(0, min(k, self.step_tokens // batch - 1))
            self._drafts[batch] = k
        return k

    def decode(self, batch: N) -> DecodePiece:
        """Return the first piece for a batch of `batch` decoding requests (memoised)."""
        piece = self._pieces.get(batch)
        if piece is None:
            piece = self._pieces[batch] = self.cost.verify(batch, self.drafts(batch))
        return piece

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        """Price a step that holds prompt chunks, in femtoseconds."""
        if not batch:
            return self.cost.step(chunks, new, context, quad, 0, 0)
        drafts = self.drafts(batch)
        return self.cost.verify_step(chunks, new, context, quad, batch, kv, drafts)

    def extrapolates(self, new: N, batch: N) -> bool:
        """Whether a step with `new` chunk tokens and `batch` decodes leaves the fitted range."""
        return self.cost.extrapolates(new + batch * self.drafts(batch) if batch else new, batch)


class Rounds:
    """The rounds of a request from one step on, under one K, until nothing is left to emit.

    Args:
        since: the step counter before the first of them.
        done: rounds that the request has had before.
        emitted: tokens it had emitted then since it joined the batch.
        cached: tokens it cached then.
        held: blocks it held then.
        left: tokens it had to emit then.
        tokens: tokens that each round would emit by the draws alone.
        total: those and the ones of all rounds before, the request's first rounds included.
        before: of `total`, what does not count here.
        alone: what the first round would emit beside a first token, which comes alone.
    """

    __slots__ = (
        *("alone", "before", "cached", "done", "emitted", "growth", "held", "left", "over"),
        *("since", "tokens", "total"),
    )

    def __init__(
        self,
        since: N,
        done: N,
        emitted: N,
        cached: N,
        held: N,
        left: N,
        tokens: Tokens,
        total: Tokens,
        before: N,
        alone: N,
    ) -> None:
        self.since = since
        self.done = done
        self.emitted = emitted
        self.cached = cached
        self.held = held
        self.left = left
        self.tokens = tokens
        self.total = total
        self.before = before
        self.alone = alone
        self.over: N = int(total[-1]) - before - left
        """What the last round would emit beyond that."""
        self.growth: list[N] = []
        """The rounds that take another block, in order."""

    def tokens_by(self, steps: N) -> N:
        """Tokens emitted from `since` until the step counter was `steps`."""
        elapsed = steps - self.since
        return min(int(self.total[elapsed - 1]) - self.before, self.left) if elapsed else 0

    def blocks_by(self, steps: N) -> N:
        """Blocks held when the step counter is `steps`."""
        return self.held + bisect_left(self.growth, steps - self.since)


class SpeculativeInstance(Instance):
    """An instance that drafts and verifies: overrides what assumes a token a step and request."""

    __slots__ = (
        "accepted",
        "ahead",
        "choose_at",
        "control",
        "draft_tokens",
        "drafted",
        "drafts",
        "ends",
        "queue_at_start",
        "rounds",
        "spec_rounds",
        "speculation",
    )

    def __init__(
        self, id: N, spec: InstanceSpec, policy: Policy, sim: Simulation, env: simpy.Environment
    ) -> None:
        super().__init__(id, spec, policy, sim, env)
        speculation = sim.settings.speculation
        assert speculation is not None
        if spec.ctas is not None or spec.cascade_attention:
            raise BadInput(
                "speculative: attention of rows of several tokens is priced by its sums only; "
                "valid: engine.attention fitted or balanced, no engine.cascade_attention"
            )
        self.speculation = speculation
        self.control = speculation.new_control(spec.cost)
        self.drafted = DraftedCost(spec.cost, speculation, sim.step_tokens)
        self.cost = self.drafted
        self.lookahead = speculation.k_max
        self.max_tokens = min(
            self.max_tokens, self.total_blocks * self.block_size + 1 - self.lookahead
        )
        self.choose_at: N = 0
        """The step counter at which a controller chooses K again."""
        self.drafts: N = 0
        """K of the rings."""
        self.period = FIRST_PERIOD
        self.phases = [0] * self.period
        self.ahead: NDArray[np.int32] = np.zeros(self.period, np.int32)
        """Tokens that the batch emits in the step that finds the counter at s, at s % period."""
        self.rounds: dict[N, Rounds] = {}
        """Of every decoding request."""
        self.ends: list[int] = []
        """When each step of a longer span ends, in femtoseconds after its start."""
        self.queue_at_start: N = 0
        """Requests that waited when the span began."""
        self.spec_rounds: N = 0
        self.draft_tokens: N = 0
        self.accepted: N = 0

    # -- what a policy sees -----------------------------------------------------------------

    @property
    def decode_tokens(self) -> N:
        """Tokens that the decoding batch puts into its next step: drafted ones count."""
        batch = self.num_decoding
        return batch * (1 + self.drafted.drafts(batch)) if batch else 0

    def blocks_of(self, request: Request) -> N:
        """Blocks a request of this instance holds now."""
        if request.state == DECODING:
            return self.rounds[request.id].blocks_by(self.steps)
        return request.held_blocks

    def generated(self, request: Request) -> N:
        """Tokens the request has emitted so far."""
        if request.state != DECODING:
            return request.emitted
        rounds = self.rounds[request.id]
        return request.emitted + rounds.emitted + rounds.tokens_by(self.steps)

    def growth_over(self, steps: N) -> N:
        """Blocks the decoding batch takes over its next `steps` steps."""
        period = self.period
        return sum([self.phases[-(self.steps + n) % period] for n in range(min(steps, period))])

    def steps_until_free_below(self, blocks: N) -> N:
        """Steps after which fewer than `blocks` blocks would be free, if before the next finish."""
        room = self.free_blocks - blocks
        if room < 0 or not self.num_decoding:
            return 0 if room < 0 else FOREVER
        for n in range(self._steps_to_finish()):
            room -= self.phases[-(self.steps + n) % self.period]
            if room < 0:
                return n
        return FOREVER

    # -- the rings --------------------------------------------------------------------------

    def join(self, request: Request, cached: N) -> None:
        """Add a request that caches `cached` tokens to the decoding batch."""
        request.state = DECODING
        request.steps_at_join = self.steps
        request.decode_instance = self.id
        self.joins += 1
        request.seq = self.joins
        self.kv_tokens += cached
        self.num_decoding += 1
        self.joiners.append(request)
        self.speculation.acceptance.joins(request.id, self.num_decoding)
        done = self.sim.rounds_done.get(request.id, 0)
        ends = self._lay(request, done, 0, cached, request.held_blocks)
        heappush(self.finishing, (ends, request.seq, request))

    def quit(self, request: Request) -> N:
        """Take a request out of the decoding batch; return the tokens it caches."""
        rounds = self.rounds.pop(request.id)
        if self.steps - rounds.since == len(rounds.tokens):  # it has had the last
            cached = rounds.cached + rounds.left
            request.held_blocks = rounds.held + len(rounds.growth)
        else:
            cached = rounds.cached + rounds.tokens_by(self.steps)
            request.held_blocks = rounds.blocks_by(self.steps)
            self._turn(rounds, self.steps - rounds.since, -1)
        if self.steps == request.steps_at_join:
            self.joiners.remove(request)
        else:
            self._note(request, rounds, cached - rounds.cached)
        request.seq = -1
        self.kv_tokens -= cached
        self.num_decoding -= 1
        return cached

    def note_emitted(self, request: Request) -> None:
        """Count the tokens and rounds of a request of the batch that has failed."""
        if self.steps != request.steps_at_join:
            rounds = self.rounds[request.id]
            self._note(request, rounds, rounds.tokens_by(self.steps))

    def _note(self, request: Request, rounds: Rounds, tokens: N) -> None:
        """Count the tokens, `tokens` of them in `rounds`, and rounds of a request that leaves."""
        request.emitted += rounds.emitted + tokens
        request.last_token_fs = self.last_emit_fs
        if tokens < rounds.left:
            self.sim.rounds_done[request.id] = rounds.done + self.steps - rounds.since
        else:
            self.sim.rounds_done.pop(request.id, None)

    def wipe(self) -> None:
        """Hold nothing: the instance has failed, and its requests have been taken from it."""
        super().wipe()
        self.rounds.clear()
        self.ahead[:] = 0

    def _lay(self, request: Request, done: N, emitted: N, cached: N, held: N) -> N:
        """Lay a request's rounds into the rings; return the step counter at its last token.

        Args:
            request: which.
            done: its rounds before.
            emitted: tokens it has emitted since it joined the batch.
            cached: tokens it caches.
            held: blocks it holds.
        """
        left = self.output_len[request.id] - request.emitted - emitted
        draw = self.speculation.acceptance.emitted
        tokens, total = draw(request.id, self.drafts, done + left // 3 + 1)
        before = int(total[done - 1]) if done else 0
        alone = 0
        if not request.emitted + emitted:  # nothing can be drafted before the first token
            alone = int(tokens[done]) - 1
            before += alone
        while total[-1] < before + left:  # seldom
            more = (before + left - int(total[-1])) // 2 + 1
            tokens, total = draw(request.id, self.drafts, len(total) + more)
        ends = int(total.searchsorted(before + left)) + 1
        if done or ends < len(tokens):
            tokens, total = tokens[done:ends], total[done:ends]
        laid = Rounds(self.steps, done, emitted, cached, held, left, tokens, total, before, alone)
        self._find_growth(laid)
        self.rounds[request.id] = laid
        if ends - done >= self.period:
            self._widen(ends - done)
        self._turn(laid, 0, 1)
        return self.steps + ends - done

    def _find_growth(self, rounds: Rounds) -> None:
        """Find the rounds that take another block."""
        size = self.block_size
        # The next block is taken by the first round before which more than `limit` was emitted.
        limit = rounds.held * size - (rounds.cached + 1 + self.lookahead)
        while limit < 0:
            rounds.growth.append(0)
            limit += size
        before = rounds.before
        last = before + rounds.tokens_by(rounds.since + len(rounds.total) - 1)
        if before + limit < last:
            limits = np.arange(before + limit, last, size, dtype=np.int32)
            rounds.growth += (rounds.total.searchsorted(limits, "right") + 1).tolist()

    def _turn(self, rounds: Rounds, elapsed: N, sign: N) -> None:
        """Add what the rounds after the first `elapsed` bring to the rings, or take it out.

        Some must be left.
        """
        ring, period = self.ahead, self.period
        tokens = rounds.tokens[elapsed:] if sign > 0 else -rounds.tokens[elapsed:]
        at, count = self.steps % period, len(tokens)
        view = ring[at : at + count]
        fits = len(view)
        view += tokens[:fits]
        if count > fits:
            view = ring[: count - fits]
            view += tokens[fits:]
        if not elapsed and rounds.alone:
            ring[at] -= sign * rounds.alone
        if rounds.over:
            ring[(at + count - 1) % period] -= sign * rounds.over
        phases, start = self.phases, -rounds.since % period
        for later in rounds.growth[bisect_left(rounds.growth, elapsed) :]:
            phases[start - later] += sign  # below 0 the ring comes round by itself

    def _widen(self, rounds: N) -> None:
        """Make the rings longer than `rounds`."""
        old, steps = self.period, self.steps
        phases, ahead = self.phases, self.ahead
        while self.period <= rounds:
            self.period *= 2
        self.phases = [0] * self.period
        self.ahead = np.zeros(self.period, np.int32)
        for step in range(steps, steps + old):
            self.phases[-step % self.period] = phases[-step % old]
            self.ahead[step % self.period] = ahead[step % old]

    def _redraft(self) -> None:
        """Lay the rings again if the batch has now another K."""
        drafts = self.drafted.drafts(self.num_decoding)
        if drafts == self.drafts:
            return
        self.drafts = drafts
        self.finishing = []
        for request in self.decoding():
            rounds = self.rounds[request.id]
            had = rounds.tokens_by(self.steps)
            held = rounds.blocks_by(self.steps)
            done = rounds.done + self.steps - rounds.since
            self._turn(rounds, self.steps - rounds.since, -1)
            ends = self._lay(request, done, rounds.emitted + had, rounds.cached + had, held)
            self.finishing.append((ends, request.seq, request))
        heapify(self.finishing)

    def _steps_to_finish(self) -> N:
        """Decode steps to the next finish."""
        heap = self.finishing
        while heap[0][2].seq != heap[0][1]:
            heappop(heap)
        return heap[0][0] - self.steps

    # -- steps ------------------------------------------------------------------------------

    def decide(self, now: int, ahead: bool = False) -> bool:
        """Let a controller choose K where it is due, then plan."""
        if self.control is not None and self.num_decoding and self.steps >= self.choose_at:
            self.drafted.choose(self.control.choose(self.num_decoding, self.kv_tokens))
            self.choose_at = self.steps + self.control.window
        return super().decide(now, ahead)

    def bridged(self, now: int) -> None:
        """A prefilled request has joined the bridge: pull when the step under way ends."""
        self.wake(now)

    def steps_by(self, now: int) -> N:
        """Steps of the span under way, at least one, after which it is `now` or later."""
        if self.n_steps == 1:
            return super().steps_by(now)
        return bisect_left(self.ends, now - self.start_fs) + 1

    def span_fs(self, steps: N) -> int:
        """What the first `steps` steps of the span under way last, in femtoseconds."""
        return self.ends[steps - 1]

    def _execute(self, plan: Plan, now: int) -> bool:
        took_time = super()._execute(plan, now)
        if self.static is not None:
            raise self.broken("RunToCompletion() runs a batch that drafts no tokens")
        return took_time

    def _launch_decode(self, now: int, limit: N) -> bool:
        self._redraft()
        if limit > 1:
            limit = min(limit, SPAN, self._steps_to_finish())
            if self.control is not None:
                limit = min(limit, max(self.choose_at - self.steps, 1))
        batch = self.num_decoding
        piece = self.cost.decode(batch)
        while self.kv_tokens >= piece.kv_end and piece.next is not None:
            piece = piece.next
        self._price_ahead(piece, limit)
        self.kind = DECODE
        self.extrapolated = piece.extrapolated
        self.prefill_requests = self.prefill_tokens = self.padded_tokens = 0
        first = self.ends[0] + self.delay_fs
        self.delay_fs = 0
        self._launch(now, len(self.ends), first, self.ends[-1] - self.ends[0], 0, batch)
        return True

    def _price_ahead(self, piece: DecodePiece, limit: N) -> None:
        """Price up to `limit` steps of the batch, while memory lasts and the piece holds."""
        kv = self.kv_tokens
        end = piece.base_fs + piece.slope_fs * kv
        self.ends = [end]
        if limit == 1:
            return
        step, period, phases = self.steps, self.period, self.phases
        room = self.free_blocks - phases[-step % period]
        at = step % period
        ahead: list[N] = self.ahead[at : at + limit - 1].tolist()  # less where the ring comes round
        for tokens in ahead:
            step += 1
            room -= phases[-step % period]
            kv += tokens
            if room < 0 or (kv >= piece.kv_end and piece.next is not None):
                return
            end += piece.base_fs + piece.slope_fs * kv
            self.ends.append(end)

    def _launch(self, now: int, steps: N, first: int, rest: int, increment: int, batch: N) -> None:
        if batch and self.kind == MIXED:
            self._redraft()
        self.queue_at_start = self.num_waiting
        super()._launch(now, steps, first, rest, 0, batch)

    # -- the end of steps -------------------------------------------------------------------

    def _settle(self, now: int, steps: N) -> None:
        """Account for `steps` steps of the span under way, each as if it had run alone."""
        if len(self.ends) > 1:
            self.log.shorten(self.row, 1)
        if steps > 1:
            self._log_further(steps)
        super()._settle(now, 1)

    def _log_further(self, steps: N) -> None:
        """Account for all of the span's steps but the last, and log all but the first."""
        batch, ends, rows = self.batch, self.ends, self.log.rows
        for step in range(1, steps):
            self._account(1)
            self.first_fs = ends[step] - ends[step - 1]
            rows += PACK_STEP(
                (self.start_fs + ends[step - 1]) / FS_PER_S,
                self.first_fs,
                0,
                0,
                self.kv_tokens + self.partial_tokens,
                1,
                self.id,
                0,
                0,
                0,
                batch,
                batch,
                0,
                0,
                self.queue_at_start,
                self.kind,
                self.extrapolated,
            )

    def _account(self, step: N) -> None:
        """Let the batch have grown by one step."""
        batch, drafts, period = self.batch, self.drafts, self.period
        at = self.steps % period
        tokens = int(self.ahead[at])
        self.ahead[at] = 0
        at = -self.steps % period
        blocks = self.phases[at]
        if blocks:
            self.free_blocks -= blocks
            self.phases[at] = 0
        self.kv_tokens += tokens
        self.steps += 1
        if drafts:
            self.spec_rounds += batch
            self.draft_tokens += batch * drafts
            self.accepted += tokens - batch
        if self.control is not None:
            self.control.note(batch, drafts, tokens - batch)


def speculation_counts(instances: Sequence[Instance]) -> dict[str, N]:
    """Return how much was drafted and accepted; nothing where nobody speculates.

    `spec_rounds`: rounds with a drafted token; `draft_tokens`: tokens drafted and verified in them;
    `accepted_tokens`: those of them that were emitted.
    """
    counts: dict[str, N] = {}
    for instance in instances:
        if isinstance(instance, SpeculativeInstance):
            for name, count in (
                ("spec_rounds", instance.spec_rounds),
                ("draft_tokens", instance.draft_tokens),
                ("accepted_tokens", instance.accepted),
            ):
                counts[name] = counts.get(name, 0) + count
    return counts
