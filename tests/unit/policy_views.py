"""Bare views for unit tests of policies: no SimPy, no engine."""

from collections.abc import Sequence

from sim.costs.simple import AffineCost
from sim.types import Decode, Mixed, Plan, Policy, Request, View
from sim.types.request import DECODING, PREFILLING, READY

BLOCK = 4


def view_of(policy: Policy, blocks: int = 100, id: int = 0, role: str = "mixed") -> View:
    cost = AffineCost(decode_base_s=0.02)
    return View(id, cost, blocks, BLOCK, role, policy.new_queue())


def wait(view: View, id: int, tokens: int, priority: int = 0, deadline_s: float = -1.0) -> Request:
    """A request of `tokens` prompt tokens joins the queue."""
    request = Request(id, 0, 0.0, tokens)
    request.home = view
    request.priority = priority
    request.deadline_s = deadline_s
    view.waiting.push(request)
    view.num_waiting += 1
    return request


def decode(view: View, id: int, cached: int, priority: int = 0) -> Request:
    """A request that has cached `cached` tokens is in the decoding batch."""
    request = Request(id, 0, 0.0, cached)
    request.home = view
    request.priority = priority
    request.state = DECODING
    request.prefilled = cached
    request.kv_offset = cached - view.steps
    request.steps_at_join = view.steps
    view.phases[request.kv_offset % BLOCK] += 1
    view.kv_tokens += cached
    view.num_decoding += 1
    view.running[id] = request
    view.free_blocks -= view.blocks_for(cached)
    return request


def half_prefilled(view: View, id: int, tokens: int, done: int) -> Request:
    """A request that has `done` of its `tokens` prompt tokens cached."""
    request = Request(id, 0, 0.0, tokens)
    request.home = view
    request.state = PREFILLING
    request.prefilled = done
    request.held_blocks = view.blocks_for(done)
    view.running[id] = view.prefilling[id] = request
    view.free_blocks -= request.held_blocks
    return request


def ready(view: View, id: int, cached: int) -> Request:
    """A request whose `cached` tokens have been transferred here."""
    request = Request(id, 0, 0.0, cached)
    request.home = view
    request.state = READY
    request.prefilled = cached
    request.held_blocks = view.blocks_for(cached)
    view.ready[id] = request
    view.ready_blocks += request.held_blocks
    view.free_blocks -= request.held_blocks
    return request


def chunks(plan: Plan | None) -> list[tuple[int, int]]:
    """(request, tokens) of a plan with prompt chunks."""
    assert isinstance(plan, Mixed)
    assert not plan.preempt
    return [(request.id, tokens) for request, tokens in plan.chunks]


def ids(requests: Sequence[Request]) -> list[int]:
    return [request.id for request in requests]


def goes_on(plan: Plan | None) -> bool:
    """The plan changes nothing: one more decode step, or many."""
    return (
        isinstance(plan, Decode)
        and not (plan.changes or plan.admit)
        and plan.max_steps is None
        and plan.until_s is None
    )
