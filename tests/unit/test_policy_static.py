"""Static batching as a pure decision: build a bare view, look at the plan. No SimPy."""

from typing import Any

import pytest
from pydantic import ValidationError

from policies.static import Static, StaticConfig
from sim.costs.simple import AffineCost
from sim.types import Plan, RunToCompletion, View, Wait
from sim.types.request import Request


def static(**config: Any) -> Static:
    return Static(StaticConfig(**config))


def view_at(now_s: float, *arrivals_s: float, retries: int = 0) -> View:
    """A view at `now_s` on which requests that arrived at `arrivals_s` wait."""
    view = View(0, AffineCost(decode_base_s=0.02), 100)
    view.now_s = now_s
    for id, arrival_s in enumerate(arrivals_s):
        request = Request(id, 0, arrival_s, 10)
        request.retries = retries
        view.waiting.push(request)
        view.num_waiting += 1
    return view


def batch(plan: Plan | None) -> list[int]:
    assert isinstance(plan, RunToCompletion)
    return [request.id for request in plan.requests]


def test_nothing_waits():
    assert static().plan(view_at(0.0)) is None


def test_takes_what_is_there_in_order():
    assert batch(static(max_batch_size=4).plan(view_at(5.0, 1.0, 2.0, 3.0))) == [0, 1, 2]


def test_takes_at_most_a_batch():
    assert batch(static(max_batch_size=2).plan(view_at(5.0, 1.0, 2.0, 3.0))) == [0, 1]


def test_waits_until_the_oldest_request_has_waited_long_enough():
    policy = static(max_batch_size=3, fill_timeout_s=2.0)
    plan = policy.plan(view_at(2.5, 1.0, 2.0))
    assert isinstance(plan, Wait)
    assert plan.until_s == 3.0
    assert batch(policy.plan(view_at(3.0, 1.0, 2.0))) == [0, 1]
    assert batch(policy.plan(view_at(3.5, 1.0, 2.0))) == [0, 1]


def test_a_full_batch_does_not_wait():
    policy = static(max_batch_size=2, fill_timeout_s=2.0)
    assert batch(policy.plan(view_at(1.0, 1.0, 1.0))) == [0, 1]


@pytest.mark.parametrize(("retries", "size"), [(0, 8), (1, 4), (2, 2), (3, 1), (4, 1), (16, 1)])
def test_every_out_of_memory_event_halves_the_batch_of_its_oldest_request(retries: int, size: int):
    view = view_at(5.0, *[1.0] * 10, retries=retries)
    assert batch(static(max_batch_size=8).plan(view)) == list(range(size))


def test_a_halved_batch_is_full_earlier():
    view = view_at(1.0, 1.0, 1.0, retries=1)
    assert batch(static(max_batch_size=4, fill_timeout_s=2.0).plan(view)) == [0, 1]


def test_only_the_retries_of_the_head_count():
    view = view_at(5.0, *[1.0] * 8)
    for request in list(view.waiting)[1:]:
        request.retries = 2
    assert len(batch(static(max_batch_size=8).plan(view))) == 8


def test_the_plan_says_how_the_batch_runs():
    plan = static().plan(view_at(5.0, 1.0))
    assert isinstance(plan, RunToCompletion)
    assert (plan.padded, plan.release, plan.finished_rows) == (True, "together", "compute")
    plan = static(padded=False, release="each", finished_rows="skip").plan(view_at(5.0, 1.0))
    assert isinstance(plan, RunToCompletion)
    assert (plan.padded, plan.release, plan.finished_rows) == (False, "each", "skip")


def test_same_view_same_plan():
    view = view_at(5.0, 1.0, 2.0, 3.0)
    policy = static(max_batch_size=2)
    assert batch(policy.plan(view)) == batch(policy.plan(view))
    assert view.num_waiting == len(view.waiting) == 3


@pytest.mark.parametrize(
    "bad",
    [
        {"max_batch_size": 0},
        {"fill_timeout_s": -1.0},
        {"release": "never"},
        {"finished_rows": "drop"},
        {"batch_size": 8},
    ],
)
def test_bad_config(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        StaticConfig(**bad)
