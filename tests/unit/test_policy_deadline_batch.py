"""`deadline-batch` as a pure decision: every switch, memory, age. No SimPy.

A prefill of n tokens, padding included, takes 10 + n ms; blocks hold 4 tokens.
"""

from typing import Any

import pytest
from pydantic import ValidationError

from policies.deadline_batch import DeadlineBatch, DeadlineBatchConfig
from sim.costs.simple import AffineCost
from sim.types import ClusterInfo, Decode, Plan, Prefill, Request, View
from sim.types.request import READY

PRICES = AffineCost(prefill_base_s=0.010, prefill_token_s=0.001, decode_base_s=0.020)
NOW_S = 1.0


def deadline_batch(**config: Any) -> DeadlineBatch:
    return DeadlineBatch(DeadlineBatchConfig(**config))


def view_of(
    policy: DeadlineBatch,
    *rows: tuple[int, float | None],
    blocks: int = 1000,
    role: str = "prefill",
) -> View:
    view = View(0, PRICES, blocks, 4, role, policy.new_queue())
    view.now_s = NOW_S
    for tokens, due_ms in rows:
        join(view, tokens, due_ms)
    return view


def join(view: View, tokens: int, due_ms: float | None = None, arrival_s: float = NOW_S) -> Request:
    """A request joins the queue."""
    request = Request(view.num_waiting, 0, arrival_s, tokens)
    request.home = view
    if due_ms is not None:
        request.deadline_s = NOW_S + due_ms / 1000
    view.waiting.push(request)
    view.num_waiting += 1
    return request


def batch(plan: Plan | None) -> list[int]:
    assert isinstance(plan, Prefill)
    return [request.id for request in plan.requests]


def decide(*rows: tuple[int, float | None], blocks: int = 1000, **config: Any) -> list[int]:
    policy = deadline_batch(**config)
    return batch(policy.plan(view_of(policy, *rows, blocks=blocks)))


# -- who leads, and the group -----------------------------------------------------------------

# Groups by price: [2, 4, 5] (25 ms) and [18, 20] (50 ms).
FIVE: list[tuple[int, float | None]] = [(4, 182), (20, 183), (5, 44), (18, 300), (2, 186)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [2, 0, 4]),  # 2 is due first; members in order of deadline
        ({"order": "fcfs"}, [0, 2, 4]),
        ({"order": "sjf"}, [4, 0, 2]),
        ({"max_batch_size": 2}, [2, 0]),  # [2] | [4, 5] | [18, 20] costs as much as [2, 4] | [5]
        ({"max_batch_tokens": 10}, [2, 0]),
        ({"max_batch_tokens": 7}, [2]),
        ({"window": 1}, [2]),
        ({"window": 2}, [2, 0]),
    ],
)
def test_the_group_of_the_first(config: dict[str, Any], expected: list[int]):
    assert decide(*FIVE, **config) == expected


def test_the_other_group_when_its_member_leads():
    rows = [(4, 182), (20, 150), (5, 160), (18, 300), (2, 186)]
    assert decide(*rows) == [1, 3]


def test_requests_without_a_bound_come_last():
    assert decide((5, None), (100, 500)) == [1]
    assert decide((5, None), (5, 900), (5, 800)) == [2, 1, 0]
    assert decide((5, None), (100, None)) == [0]  # all without: by trace row


def test_a_prompt_longer_than_the_budget_runs_alone():
    assert decide((3000, None), (10, None)) == [0]
    assert decide((3000, None), (10, None), padded=False) == [0]
    assert decide((10, None), (3000, None), padded=False) == [0]


# -- grouping: none, padding-free -----------------------------------------------------------------


def test_filled_in_order():
    rows = [(10, 900), (30, 901), (10, 902), (10, 903)]
    assert decide(*rows, grouping="none") == [0, 1, 2, 3]
    assert decide(*rows) == [0, 2, 3]  # by price
    # Padded tokens: 10, 60, 90, 120.
    assert decide(*rows, grouping="none", max_batch_tokens=90) == [0, 1, 2]
    assert decide(*rows, grouping="none", max_batch_tokens=89) == [0, 1]
    assert decide(*rows, grouping="none", max_batch_tokens=59) == [0]
    assert decide(*rows, grouping="none", max_batch_size=2) == [0, 1]


def test_padding_free_counts_the_sum():
    rows = [(10, 900), (30, 901), (10, 902), (10, 903)]
    assert decide(*rows, padded=False) == [0, 1, 2, 3]
    assert decide(*rows, padded=False, max_batch_tokens=50) == [0, 1, 2]
    assert decide(*rows, padded=False, max_batch_tokens=49) == [0, 1]
    policy = deadline_batch(padded=False)
    plan = policy.plan(view_of(policy, *rows))
    assert isinstance(plan, Prefill)
    assert not plan.padded


def test_filling_stops_before_a_member_is_late():
    # 20 ms, 20 + 30 = 50 ms, 60 ms
    rows = [(10, 55), (30, 901), (10, 902)]
    assert decide(*rows, padded=False) == [0, 1]
    assert decide((10, 49), *rows[1:], padded=False) == [0]
    assert decide(*rows, padded=False, shrink=False) == [0, 1, 2]
    # Padded: 20, 70, 100 ms.
    assert decide((10, 70), *rows[1:], grouping="none") == [0, 1]
    assert decide((10, 69), *rows[1:], grouping="none") == [0]


# -- lost requests --------------------------------------------------------------------------------


def test_a_lost_request_waits_for_all_others():
    rows = [(40, 49), (40, 90), (300, 500)]  # alone: 50, 50, 310 ms
    assert decide(*rows) == [1]
    assert decide(*rows, demote_lost=False) == [0, 1]  # 90 ms
    assert decide((40, 49), (40, 89), (300, 500), demote_lost=False) == [0]  # 1 is lost next
    assert decide((40, 49), (300, None)) == [1]


def test_just_in_time_is_in_time():
    assert decide((40, 50), (300, 500)) == [0]
    assert decide((40, 49.99), (300, 500)) == [1]


def test_lost_requests_run_when_nothing_else_is_there():
    assert decide((40, 10), (40, -900)) == [1, 0]
    assert decide((40, 10), (300, -900), order="sjf") == [0]


def test_margin():
    assert decide((40, 59), (300, 500)) == [0]
    assert decide((40, 59), (300, 500), margin_s=0.010) == [1]
    assert decide((40, 61), (300, 500), margin_s=0.010) == [0]


# -- shrinking ------------------------------------------------------------------------------------


def test_the_longest_go_first():
    # [10, 11, 12]: 46 ms; [10, 11]: 32 ms; 10 alone: 20 ms
    rows = [(12, 900), (10, 46), (11, 900)]
    assert decide(*rows) == [1, 0, 2]
    assert decide((12, 900), (10, 45), (11, 900)) == [1, 2]
    assert decide((12, 900), (10, 31), (11, 900)) == [1]
    assert decide((12, 900), (10, 31), (11, 900), shrink=False) == [1, 0, 2]


def test_then_the_latest_when_the_first_is_the_longest():
    # The first is 12 long: 22, 34, 46 ms. 1 is due before 2.
    rows = [(12, 45), (10, 700), (11, 900)]
    assert decide((12, 46), *rows[1:]) == [0, 1, 2]
    assert decide(*rows) == [0, 1]
    assert decide((12, 45), (10, 900), (11, 700)) == [0, 2]
    assert decide((12, 33), *rows[1:]) == [0]


def test_another_member_may_be_the_one_in_a_hurry():
    # By arrival 0 leads; 1 is due at 40 ms: [10, 11] 32 ms, [10, 11, 12] 46 ms.
    assert decide((10, 900), (11, 40), (12, 900), order="fcfs") == [0, 1]


def test_members_that_are_late_anyway_do_not_count():
    # Nobody is demoted: 0 is lost, leads, and does not hold up 1.
    assert decide((10, 5), (11, 40), demote_lost=False) == [0, 1]
    assert decide((10, 5), (11, 31), demote_lost=False) == [0]


# -- memory ---------------------------------------------------------------------------------------


def test_only_what_fits_is_considered():
    # Blocks of 4: 12 tokens take 3, 8 take 2.
    rows = [(12, 100), (8, 200), (8, 300)]
    assert decide(*rows, blocks=2) == [1]
    assert decide(*rows, blocks=4) == [0]  # the group [0, 1, 2] takes 7
    assert decide(*rows, blocks=5) == [0, 1]
    assert decide(*rows, blocks=7) == [0, 1, 2]
    assert decide(*rows, blocks=5, padded=False) == [0, 1]
    assert decide(*rows, blocks=2, padded=False) == [1]


def test_lost_ones_run_when_no_other_fits():
    assert decide((12, 500), (4, 1), blocks=2) == [1]


def test_nothing_fits():
    policy = deadline_batch()
    assert policy.plan(view_of(policy, (12, 100), blocks=2)) is None
    assert policy.plan(view_of(policy)) is None


# -- age ------------------------------------------------------------------------------------------


def test_the_oldest_leads_when_due():
    policy = deadline_batch(age_limit_s=0.5, age_share=0.25)
    view = view_of(policy)
    join(view, 10, -400, arrival_s=0.5)  # lost
    for _ in range(4):
        join(view, 10, 900, arrival_s=0.9)
    join(view, 500, 901, arrival_s=0.9)
    assert batch(policy.plan(view)) == [1, 2, 3, 4]
    for request in list(view.waiting)[:2]:
        view.waiting.remove(request)
    assert batch(policy.plan(view)) == [3, 4]  # 20 tokens have passed it, not 3 x 10
    view.waiting.remove(next(iter(view.waiting)))
    assert batch(policy.plan(view)) == [0, 4]
    view.now_s = 0.99
    assert batch(policy.plan(view)) == [4]


def test_the_age_limit_holds_for_every_order():
    # A long prompt under sjf, and one without a bound under edf.
    for order in ("sjf", "edf"):
        policy = deadline_batch(order=order, age_limit_s=0.5, age_share=1.0)
        view = view_of(policy)
        join(view, 900, arrival_s=0.5)
        join(view, 10, 500, arrival_s=0.9)
        assert batch(policy.plan(view)) == [0]
        view.now_s = 0.99
        assert batch(policy.plan(view)) == [1]


def test_the_oldest_keeps_the_instance_free_when_due():
    policy = deadline_batch(age_limit_s=0.5, age_share=1.0)
    view = view_of(policy, blocks=3)
    join(view, 16, -400, arrival_s=0.4)
    join(view, 4, 500, arrival_s=0.9)
    assert policy.plan(view) is None
    view.free_blocks = 4
    assert batch(policy.plan(view)) == [0]


# -- the rest -------------------------------------------------------------------------------------


def test_same_view_same_plan():
    for config in ({}, {"padded": False}, {"grouping": "none"}, {"age_limit_s": 0.0}):
        policy = deadline_batch(**config)
        view = view_of(policy, (40, 10), *FIVE)
        assert batch(policy.plan(view)) == batch(policy.plan(view))
        assert len(view.waiting) == 6


def test_decode_side_as_distserve():
    policy = deadline_batch(max_num_seqs=2, ready_threshold=0.5)
    view = view_of(policy, role="decode", blocks=10)
    assert policy.plan(view) is None
    request = Request(7, 0, 0.0, 8)
    request.state, request.prefilled, request.held_blocks = READY, 8, 2
    view.ready[7] = request
    plan = policy.plan(view)
    assert isinstance(plan, Decode)
    assert list(plan.admit) == [request]
    other = Request(8, 0, 0.0, 8)
    other.prefilled = 8
    view.free_blocks, view.ready_blocks = 8, 4
    assert policy.can_accept(view, other)
    view.ready_blocks = 5
    assert not policy.can_accept(view, other)
    view.running[7] = request
    assert policy.victim(view).request is request
    assert policy.victim(view).swap


def test_preempted_requests_are_recomputed_in_order():
    policy = deadline_batch()
    view = view_of(policy, role="decode")
    for id, tokens in ((3, 12), (5, 8)):
        request = Request(id, 0, 0.0, tokens)
        request.home = view
        view.waiting.push_front(request)
        view.num_waiting += 1
    assert batch(policy.plan(view)) == [5, 3]


def test_it_needs_its_own_queue():
    view = View(0, PRICES, 100, 4, "prefill")
    join(view, 5)
    with pytest.raises(TypeError, match="its own queue, not Fifo"):
        deadline_batch().plan(view)


def test_pools():
    pools = deadline_batch().pools(ClusterInfo(4, 1))
    assert [(p.role, p.instances, p.tp) for p in pools] == [("prefill", 1, 2), ("decode", 1, 2)]


@pytest.mark.parametrize(
    "bad",
    [
        {"order": "lifo"},
        {"grouping": "greedy"},
        {"window": 0},
        {"age_share": 0},
        {"age_share": 1.5},
        {"age_limit_s": -1},
        {"max_batch_tokens": 0},
        {"theta": 0.5},
    ],
)
def test_bad_config(bad: dict[str, Any]):
    with pytest.raises(ValidationError):
        DeadlineBatchConfig(**bad)
