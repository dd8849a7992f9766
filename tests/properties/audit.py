"""A policy under audit: every counter it sees is recomputed naively before every plan.

`audited` makes a subclass of any policy, so what the engine asks of it (victims, routes, hooks to
come) keeps working. Each request's cached tokens are taken from its prompt and what it has emitted,
never from the instance's own bookkeeping.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from knotted import decode_price

from sim.core.blocks import Piece
from sim.core.instance import Instance
from sim.core.spec import Settings
from sim.core.speculation import SpeculativeInstance
from sim.types import (
    Cluster,
    Decode,
    Fifo,
    Mixed,
    Plan,
    Policy,
    Preemption,
    Prefill,
    Request,
    RunToCompletion,
    View,
    to_fs,
)
from sim.types.request import DONE

GROWTHS = (1, 2, 3, 4, 5, 15, 16, 17, 37, 64)
"""Steps at which `growth_over` is compared with brute force."""


@dataclass
class StaticPlan:
    """A run-to-completion batch as it was asked for, and the memory it met.

    Attributes:
        instance: its instance.
        start_s: when.
        plan: the plan.
        ids: rows of the trace.
        lens: prompt lengths charged.
        free_blocks: of the instance.
    """

    instance: int
    start_s: float
    plan: RunToCompletion
    ids: list[int]
    lens: list[int]
    free_blocks: int


class Audit:
    """What was seen during one run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.labels: Counter[str] = Counter()
        self.last_s: dict[int, float] = {}
        self.batches: list[StaticPlan] = []
        self.prices: dict[tuple[int, float], int] = {}
        """(instance, start) to the femtoseconds the first step must last."""


def audited(cls: type[Policy], audit: Audit) -> type[Policy]:
    """Return `cls` with audits around its decisions."""

    def plan(self: Policy, view: View) -> Plan | None:
        assert view.up, "plan() asked of an instance that is down"
        check_view(view, audit)
        before = _fingerprint(view)
        first = cls.plan(self, view)
        second = cls.plan(self, view)
        assert same_plan(first, second), "plan() twice in a row gave different plans"
        assert _fingerprint(view) == before, "plan() changed the view"
        _check_not_stuck(view, first)
        charged = self.charges_overhead and isinstance(first, Prefill)
        _note(view, first, audit, to_fs(self.overhead_s(view)) if charged else 0)
        return first

    def can_accept(self: Policy, view: View, request: Request) -> bool:
        first = cls.can_accept(self, view, request)
        assert cls.can_accept(self, view, request) == first, "can_accept() twice gave two answers"
        audit.labels["a decode pool that is full"] += not first
        return first

    def victim(self: Policy, view: View) -> Preemption:
        first = cls.victim(self, view)
        assert same_plan(first, cls.victim(self, view)), "victim() twice gave different answers"
        audit.prices.pop((view.id, view.now_s), None)
        audit.labels["a victim for growth"] += 1
        return first

    def route(self: Policy, request: Request, cluster: Cluster) -> int:
        for view in cluster.instances:
            assert 0 <= view.free_blocks <= view.total_blocks
        for listed, role in ((cluster.entry, False), (cluster.decode, True)):
            up = [v for v in cluster.instances if v.up and (v.role == "decode") == role]
            assert listed == up
        chosen = cls.route(self, request, cluster)
        assert cluster.instances[chosen].up, "route() to an instance that is down"
        return chosen

    members: dict[str, Any] = {
        "plan": plan,
        "victim": victim,
        "route": route,
        "can_accept": can_accept,
    }
    return type(f"Audited{cls.__name__}", (cls,), members)


# -- the state ------------------------------------------------------------------------------------


def check_view(view: View, audit: Audit) -> None:
    """Recompute everything a policy can read; I2, I5 and I9."""
    assert view.now_s >= audit.last_s.get(view.id, 0.0), "the clock went back"
    audit.last_s[view.id] = view.now_s
    waiting, running = list(view.waiting), list(view.running.values())
    _check_places(view, waiting, running)
    assert all(r in running and r.state == DONE for r in view.leaving)
    decoding = [r for r in running if r.id not in view.prefilling and r.id not in view.paused]
    decoding = [r for r in decoding if r not in view.leaving]
    cached = [r.input_len + view.generated(r) - 1 for r in decoding]
    assert view.num_waiting == len(waiting)
    assert view.waiting.tokens == sum(r.target_tokens for r in waiting)
    assert view.num_running == len(running)
    assert view.num_decoding == len(decoding)
    assert view.kv_tokens == sum(cached)
    everyone = [r for r in running if r not in view.leaving]
    everyone += [*view.swapped.values(), *_moving(view), *_hidden(view)]
    if not shares(view):  # what waits for any instance is nobody's
        everyone += waiting
    assert view.outstanding == len(everyone)
    prompts = [r.input_len for r in everyone]
    assert view.outstanding_tokens == sum(prompts)
    _check_blocks(view, decoding, cached)
    _check_growth(view, decoding, cached)


def shares(view: View) -> bool:
    """Whether the queue of a view is one for all instances."""
    return isinstance(view, Instance) and view.shared is not None


def _hidden(view: View) -> list[Request]:
    """Requests that have arrived and that the scheduler has not seen."""
    inbox = getattr(view, "inbox", None)
    return [] if inbox is None else inbox.hidden()


def _moving(view: View) -> list[Request]:
    """Requests prefilled elsewhere: on the bridge, on the link, or ready to join."""
    places = (view.bridge, getattr(view, "in_transfer", {}), view.ready)
    return [request for place in places for request in place.values()]


def _check_places(view: View, waiting: list[Request], running: list[Request]) -> None:
    """A request is in one place (I9), and knows it."""
    swapped = list(view.swapped.values())
    held = [*running, *swapped, *_moving(view), *_hidden(view)]
    assert {r.home for r in held} <= {view}
    assert {r.home for r in waiting} <= {None if shares(view) else view}
    held += waiting
    assert len({r.id for r in held}) == len(held), "a request is in two places"
    assert view.prefilling.keys() | view.paused.keys() <= view.running.keys()
    assert not view.prefilling.keys() & view.paused.keys()
    if isinstance(view.waiting, Fifo):
        # Put back: in front of those that never ran, who stand as they came.
        fresh = [r.id for r in waiting if not r.preemptions + r.retries + r.failures]
        assert fresh == sorted(fresh)
        assert fresh == [r.id for r in waiting[len(waiting) - len(fresh) :]]
    for request in waiting:
        assert request.blocks == request.prefilled == 0
        assert request.target_tokens == request.input_len + view.generated(request)
    for request in view.prefilling.values():
        assert 0 < request.prefilled < request.target_tokens
    for request in [*view.paused.values(), *swapped]:
        assert request.prefilled == request.input_len + view.generated(request) - 1


def _check_blocks(view: View, decoding: list[Request], cached: list[int]) -> None:
    """Used + free = total, on the GPU and in the swap space (I2)."""
    size = view.block_size
    spare = -(-view.lookahead // size)  # blocks that hold drafted tokens only, at most
    for request, tokens in zip(decoding, cached, strict=True):
        assert 0 <= request.blocks - -(-tokens // size) <= spare
    partial = [*view.prefilling.values(), *view.paused.values()]
    for request in [*partial, *view.swapped.values()]:
        assert 0 <= request.blocks - -(-request.prefilled // size) <= spare
    used = sum(r.blocks for r in view.running.values())
    assert view.free_blocks >= 0
    pulled = [*getattr(view, "in_transfer", {}).values(), *view.ready.values()]
    assert view.held_blocks >= 0
    assert view.ready_blocks >= sum(r.blocks for r in view.ready.values())
    assert bool(pulled) or not view.ready_blocks
    used += view.held_blocks + view.ready_blocks
    if isinstance(view, Instance) and view.pool is not None:
        used -= view.pool.spare_copies()
        check_pool(view)
    assert used + view.free_blocks == view.total_blocks
    swapped = sum(r.blocks for r in view.swapped.values())
    assert view.free_swap_blocks >= 0
    assert swapped + view.free_swap_blocks == view.total_swap_blocks
    assert getattr(view, "partial_tokens", 0) == sum(r.prefilled for r in partial)


def check_pool(view: Instance) -> None:
    """The pool's list of free blocks is whole, and what it knows is held or free, each once."""
    pool = view.pool
    assert pool is not None
    pool.sync()
    listed, piece = 0, pool.ends.after
    free: set[Piece] = set()
    while piece is not pool.ends:
        assert piece.after.before is piece
        assert piece.refs == 0
        listed += piece.ahead + piece.hi - piece.lo
        free.add(piece)
        piece = piece.after
    assert listed == pool.listed <= view.free_blocks
    known = [(node, piece) for node, pieces in pool.nodes.items() for piece in pieces]
    assert all(piece.node == node and piece.lo < piece.hi for node, piece in known)
    assert {piece for _, piece in known if not piece.refs} == free
    refs = sum((piece.hi - piece.lo) * piece.refs for _, piece in known)
    assert refs == sum(held[-1][1] for held in pool.holding.values())


def _check_growth(view: View, decoding: list[Request], cached: list[int]) -> None:
    """Phases, growth and `steps_until_free_below` against brute force."""
    if isinstance(view, SpeculativeInstance):
        _check_drafted_growth(view, decoding, cached)
        return
    size = view.block_size
    rests = Counter([tokens % size for tokens in cached])
    phases = [view.phases[(phase - view.steps) % size] for phase in range(size)]
    assert phases == [rests[phase] for phase in range(size)]
    assert view.growth_blocks == rests[0]
    alike = tuple(rests.items())  # full blocks grow with nobody

    def growth(steps: int) -> int:
        grown = 0
        for rest, count in alike:
            grown += count * (-(-(rest + steps) // size) - (rest > 0))
        return grown

    assert view.growth_over(0) == 0
    for steps in GROWTHS:
        assert view.growth_over(steps) == growth(steps)
    free = view.free_blocks
    for blocks in (0, 1, free // 2, free, free + 1):
        steps = view.steps_until_free_below(blocks)
        if free < blocks:
            assert steps == 0
        elif not cached:
            assert steps > 10**9
        else:
            assert free - growth(steps) >= blocks > free - growth(steps + 1)


def _check_drafted_growth(
    view: SpeculativeInstance, decoding: list[Request], cached: list[int]
) -> None:
    """The next step's blocks hold the next token of each request and `lookahead` drafted ones."""
    needed = [-(-(tokens + 1 + view.lookahead) // view.block_size) for tokens in cached]
    held = [request.blocks for request in decoding]
    growth = sum(max(need - has, 0) for need, has in zip(needed, held, strict=True))
    assert view.growth_blocks == view.growth_over(1) == growth
    free = view.free_blocks
    assert (view.steps_until_free_below(free) == 0) == (growth > 0)
    assert view.steps_until_free_below(free + 1) == 0
    assert view.decode_tokens >= view.num_decoding


# -- the plan -------------------------------------------------------------------------------------


def _fingerprint(view: View) -> tuple[Any, ...]:
    return (
        view.now_s,
        view.free_blocks,
        view.free_swap_blocks,
        view.num_decoding,
        view.steps,
        sorted(r.id for r in view.waiting),  # a queue may reorder itself by the clock
        [(r.id, r.prefilled, r.blocks, r.preemptions) for r in view.running.values()],
    )


def _check_not_stuck(view: View, plan: Plan | None) -> None:
    """Nothing runs, no blocks are in use: a queue that is not empty gets a plan or a Wait (I6)."""
    if plan is None and not view.running and view.free_blocks == view.total_blocks:
        assert view.num_waiting + len(view.swapped) == 0, "an idle instance, a queue, no plan"


def same_plan(a: object, b: object) -> bool:
    """Whether two plans (or parts of plans) say the same."""
    if a is b:
        return True
    if isinstance(a, Request) or isinstance(b, Request):
        return False
    if isinstance(a, Plan | Preemption):
        slots = type(a).__slots__
        return type(a) is type(b) and all(
            same_plan(getattr(a, name), getattr(b, name)) for name in slots
        )
    if isinstance(a, list | tuple):
        return (
            isinstance(b, list | tuple)
            and len(a) == len(b)
            and all(x is y or same_plan(x, y) for x, y in zip(a, b, strict=True))
        )
    return a == b


def _note(view: View, plan: Plan | None, audit: Audit, overhead_fs: int) -> None:
    """Remember what the step must cost, and which cases came up."""
    key = (view.id, view.now_s)
    audit.prices.pop(key, None)
    price_fs = expected_price(view, plan, audit.settings)
    if price_fs is not None:
        audit.prices[key] = price_fs + getattr(view, "delay_fs", 0) + overhead_fs
    labels = audit.labels
    labels[f"plan {type(plan).__name__}"] += 1
    labels["a partial prompt"] += bool(view.prefilling or view.paused)
    labels["a seat kept one step longer"] += bool(view.leaving)
    if isinstance(view, Instance) and view.shared is not None and len(view.shared.members) > 1:
        labels["one queue of all instances"] += bool(view.num_waiting)
        up = all(member.up for member in view.shared.members)
        labels["one queue, an instance is down"] += not up
    if isinstance(plan, Decode | Mixed):
        labels["a waiting request moves"] += bool(plan.move)
    if isinstance(plan, Decode):
        labels["a partial prompt"] += bool(plan.pause)
    if isinstance(plan, RunToCompletion):
        ids = [r.id for r in plan.requests]
        lens = charged_lens(plan, audit.settings)
        batch = StaticPlan(view.id, view.now_s, plan, ids, lens, view.free_blocks)
        audit.batches.append(batch)
    if isinstance(plan, Mixed):
        labels["a chunked prompt"] += any(n < r.target_tokens for r, n in plan.chunks)
    if isinstance(plan, Decode):
        labels["a pause"] += bool(plan.pause)
        labels["a swap-in"] += bool(plan.swap_in)
        labels["a pulled request joins"] += bool(plan.admit)


def charged_lens(plan: Prefill | RunToCompletion, settings: Settings) -> list[int]:
    """Return the prompt lengths that are charged: padded or as they are."""
    lens = [r.target_tokens for r in plan.requests]
    padded = plan.padded if settings.padding == "policy" else settings.padding == "batch"
    return [max(lens)] * len(lens) if padded else lens


def _may_hit(plan: Plan | None) -> bool:
    """Whether prompts may begin where the cache ends, so that the plan does not say how long."""
    requests: list[Request] = []
    if isinstance(plan, Mixed):
        requests = [r for r, _ in plan.chunks]
    elif isinstance(plan, Prefill):
        requests = list(plan.requests)
    return any(not r.prefilled and (r.prefix or r.preemptions) for r in requests)


def expected_price(view: View, plan: Plan | None, settings: Settings) -> int | None:
    """Return the femtoseconds of the plan's first step, by the definitions of `CostModel`.

    None where the plan first changes the batch, or nothing runs.
    """
    cost = view.cost
    if isinstance(view, Instance) and view.pool is not None and _may_hit(plan):
        return None
    if isinstance(plan, Decode):
        if plan.at_once and not plan.changes:
            tokens = view.kv_tokens + sum(r.prefilled for r in plan.admit)
            return decode_price(cost, view.num_decoding + len(plan.admit), tokens)
        if plan.changes or not view.num_decoding:
            return None
        price = decode_price(cost, view.num_decoding, view.kv_tokens)
        assert to_fs(view.price(plan)) == to_fs(price / 1e15)
        return price
    if isinstance(plan, Mixed):
        if plan.preempt or not plan.chunks:
            return None
        lens = [(n, n + r.prefilled) for r, n in plan.chunks]
        batch, kv = (view.num_decoding, view.kv_tokens) if plan.decode else (0, 0)
    elif isinstance(plan, Prefill | RunToCompletion) and plan.requests:
        lens = [(tokens, tokens) for tokens in charged_lens(plan, settings)]
        batch = kv = 0
    else:
        return None
    new, context = sum(n for n, _ in lens), sum(end for _, end in lens)
    quad = sum(n * (2 * end - n) for n, end in lens)
    return cost.step(len(lens), new, context, quad, batch, kv)
