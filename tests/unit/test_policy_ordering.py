"""Orders of `continuous`: who is admitted first, and who is evicted."""

import random
from typing import Any

import pytest
from policy_views import chunks, decode, ids, view_of, wait
from pydantic import ValidationError

from policies.continuous import Continuous, ContinuousConfig
from policies.parts.orders import ordered_queue
from sim.types import Fifo, Prefill, Request, View

SEATS = {"max_num_seqs": 8, "max_num_batched_tokens": 64}


def continuous(**config: Any) -> Continuous:
    return Continuous(ContinuousConfig(**{**SEATS, **config}))


def crowd(policy: Continuous) -> View:
    """Five waiting requests; what they are ordered by differs."""
    view = view_of(policy)
    wait(view, 0, 9, priority=1, deadline_s=-1.0)
    wait(view, 1, 4, priority=2, deadline_s=3.0)
    wait(view, 2, 9, priority=0, deadline_s=5.0)
    wait(view, 3, 2, priority=1, deadline_s=0.5)
    wait(view, 4, 4, priority=0, deadline_s=3.0)
    return view


EXPECTED = [
    ("fcfs", [0, 1, 2, 3, 4]),
    ("sjf", [3, 1, 4, 0, 2]),  # 2, 4, 4, 9, 9 tokens; ties by arrival
    ("edf", [3, 1, 4, 2, 0]),  # 0.5, 3, 3, 5 s, none
    ("priority", [2, 4, 0, 3, 1]),  # 0, 0, 1, 1, 2
]


@pytest.mark.parametrize(("order", "expected"), EXPECTED)
def test_v1_admits_in_order(order: str, expected: list[int]):
    policy = continuous(order=order)
    plan = policy.plan(crowd(policy))
    assert [id for id, _ in chunks(plan)] == expected


@pytest.mark.parametrize(("order", "expected"), EXPECTED)
def test_v0_admits_in_order(order: str, expected: list[int]):
    policy = continuous(order=order, scheduler="v0")
    plan = policy.plan(crowd(policy))
    assert isinstance(plan, Prefill)
    assert ids(plan.requests) == expected


@pytest.mark.parametrize(("order", "expected"), EXPECTED)
def test_the_budget_goes_to_the_first(order: str, expected: list[int]):
    policy = continuous(order=order, max_num_batched_tokens=10)
    view = crowd(policy)
    lens = {r.id: r.input_len for r in view.waiting}
    plan = chunks(policy.plan(view))
    assert [id for id, _ in plan] == expected[: len(plan)]
    assert sum(tokens for _, tokens in plan) == 10
    assert all(tokens == lens[id] for id, tokens in plan[:-1])


def test_fcfs_keeps_the_plain_queue():
    assert type(continuous().new_queue()) is Fifo


@pytest.mark.parametrize("scheduler", ["v1", "v0"])
def test_a_head_that_does_not_fit_holds_up_the_rest(scheduler: str):
    policy = continuous(order="edf", scheduler=scheduler)
    view = view_of(policy, blocks=4)
    decode(view, 0, 5)
    wait(view, 1, 12, deadline_s=1.0)
    wait(view, 2, 1, deadline_s=2.0)
    plan = policy.plan(view)
    assert plan is not None
    assert not isinstance(plan, Prefill)
    assert not getattr(plan, "chunks", ())


# -- preempted requests -----------------------------------------------------------------------


def requeue(view: View, id: int, tokens: int, priority: int, deadline_s: float) -> None:
    request = Request(id, 0, 0.0, tokens)
    request.priority = priority
    request.deadline_s = deadline_s
    view.waiting.push_front(request)
    view.num_waiting += 1


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("sjf", [9, 3, 1, 4, 0, 2]),
        ("edf", [9, 3, 1, 4, 2, 0]),
        ("priority", [2, 4, 0, 3, 9, 1]),  # at its rank, not in front
    ],
)
def test_where_a_preempted_request_goes(order: str, expected: list[int]):
    view = crowd(continuous(order=order))
    requeue(view, 9, 20, priority=1, deadline_s=9.0)
    assert ids(list(view.waiting)) == expected


@pytest.mark.parametrize(
    ("scheduler", "order", "victim"),
    [
        ("v1", "fcfs", 1),  # the last admitted
        ("v1", "sjf", 1),
        ("v1", "edf", 1),
        ("v0", "fcfs", 4),  # the latest arrival
        ("v0", "sjf", 4),
        ("v1", "priority", 3),  # the largest (priority, arrival)
        ("v0", "priority", 3),
    ],
)
def test_victims(scheduler: str, order: str, victim: int):
    policy = continuous(scheduler=scheduler, order=order)
    view = view_of(policy)
    for id, priority in [(2, 2), (3, 2), (4, 0), (1, 1)]:
        decode(view, id, 5, priority)
    preemption = policy.victim(view)
    assert (preemption.request.id, preemption.swap) == (victim, False)


def test_swap_by_priority():
    policy = continuous(scheduler="v0", order="priority", preemption_mode="swap")
    view = view_of(policy)
    decode(view, 0, 5, priority=1)
    decode(view, 1, 5, priority=0)
    preemption = policy.victim(view)
    assert (preemption.request.id, preemption.swap) == (0, True)


# -- the queues themselves --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["sjf", "edf", "priority"])
def test_queues_against_a_sorted_list(order: str):
    keys = {
        "sjf": lambda r: (r.input_len, r.id),
        "edf": lambda r: (r.deadline_s if r.deadline_s >= 0 else float("inf"), r.id),
        "priority": lambda r: (r.priority, r.id),
    }
    rng = random.Random(0)
    queue = ordered_queue(order)
    held: list[Request] = []
    for id in range(3000):
        request = Request(id, 0, 0.0, rng.randint(1, 30))
        request.priority = rng.randint(-3, 3)
        request.deadline_s = rng.choice([-1.0, 0.0, rng.random()])
        queue.push(request)
        held.append(request)
        if rng.random() < 0.3:
            queue.remove(held.pop(rng.randrange(len(held))))
    assert ids(list(queue)) == ids(sorted(held, key=keys[order]))
    assert (len(queue), queue.tokens) == (len(held), sum(r.input_len for r in held))


def test_unknown_order():
    with pytest.raises(ValidationError):
        ContinuousConfig(order="lifo")  # type: ignore[arg-type]
