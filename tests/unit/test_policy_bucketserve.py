"""Decisions of bucketserve and bucketserve-optimal on a bare view."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from policies import load
from policies.base import Decode, Policy, Prefill
from policies.parts.buckets import BucketQueue
from policies.parts.midpoint import BatchLimit
from sim.costs.simple import AffineCost
from sim.types import ClusterInfo, InstanceSample, Request, Snapshot, View
from sim.types.request import DECODING, READY, SWAPPED

NAMES = ["bucketserve", "bucketserve-optimal"]


def make(name: str = "bucketserve", **config: Any) -> Policy:
    cls = load(name)
    return cls(cls.Config(**config))


def view_of(policy: Policy, blocks: int = 1000, role: str = "prefill") -> View:
    cost = AffineCost(prefill_base_s=0.01, prefill_token_s=0.001)
    return View(0, cost, blocks, 16, role=role, waiting=policy.new_queue())


def request(
    id: int, length: int, arrival_s: float, priority: int = 0, task: str = "online"
) -> Request:
    made = Request(id, 0, arrival_s, length)
    made.priority = priority
    made.task = task
    return made


def wait(view: View, *requests: Request) -> None:
    for r in requests:
        r.home = view
        view.waiting.push(r)
        view.num_waiting += 1


def waiting(view: View, *lengths: int) -> None:
    first = view.num_waiting
    wait(view, *(request(first + i, n, float(first + i)) for i, n in enumerate(lengths)))


def take(policy: Policy, view: View) -> list[int]:
    """Ids of the next prefill, asked twice; they leave the queue."""
    plan, again = policy.plan(view), policy.plan(view)
    if plan is None:
        assert again is None
        return []
    assert isinstance(plan, Prefill)
    assert isinstance(again, Prefill)
    assert plan.requests == again.requests
    for r in plan.requests:
        view.waiting.remove(r)
        view.num_waiting -= 1
    return [r.id for r in plan.requests]


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "table"),
    [  # A100-40GB, 26.03 GB of weights, 819,200 B a token: spec/bucketserve.md section 2
        (1065, [119, 59, 29, 14, 7, 3]),
        (4117, [463, 231, 115, 57, 28, 14]),
        (10221, [1149, 574, 287, 143, 71, 35]),
    ],
)
def test_n_max_table(blocks: int, table: list[int]) -> None:
    policy = make()
    m_tok = policy.former.m_tok(view_of(policy, blocks))
    lengths = [128, 256, 512, 1024, 2048, 4096]
    assert [BatchLimit("lmax", n).of_queue(m_tok, 0.0) for n in lengths] == table
    assert [BatchLimit("mean", 1).of_queue(m_tok, float(n)) for n in lengths] == table
    assert [BatchLimit("up", 1).of_bucket(m_tok, 0.0, float(n)) for n in lengths] == table


@pytest.mark.parametrize(
    ("config", "lengths", "batch"),
    [  # 10 blocks of 16 = 160 tokens, 144 safe
        ({}, [40, 40, 40, 40], [0, 1, 2]),  # 3 * 40 = 120, 4 * 40 = 160
        ({}, [10, 20, 60, 5], [0, 1]),  # 2 * 20 = 40, 3 * 60 = 180: stops, skips nobody
        ({}, [72, 1], [0, 1]),  # 2 * 72 = 144 exactly
        ({}, [73, 1], [0]),
        ({"nmax_rule": "sum"}, [16, 32, 48, 32, 17], [0, 1, 2, 3]),  # 128, 145
        ({"padded": False}, [16, 32, 48, 32, 17], [0, 1, 2, 3]),  # auto
        ({"padded": False, "nmax_rule": "padded"}, [16, 32, 48, 32, 17], [0, 1, 2]),  # 4 * 48
        ({"safe_fraction": 1.0}, [40, 40, 40, 40], [0, 1, 2]),  # 4 * 3 blocks: 12 > 10
        ({"safe_fraction": 1.0}, [32, 32, 32, 32, 32], [0, 1, 2, 3, 4]),
        ({"max_batch_tokens": 60}, [20, 20, 20, 20], [0, 1, 2]),
        ({"max_batch_tokens": 60}, [20, 30, 31], [0, 1]),  # 2 * 30
        ({"max_batch_tokens": 60}, [100, 1], [0]),  # longer than the cap: alone
        ({"max_batch_size": 2}, [1, 1, 1], [0, 1]),
        ({}, [150, 1], [0]),  # the held-back share is waived for one that has all to itself
    ],
)
def test_batch_fits_memory(config: dict[str, Any], lengths: list[int], batch: list[int]) -> None:
    policy = make(**config)
    view = view_of(policy, blocks=10)
    waiting(view, *lengths)
    assert take(policy, view) == batch


def test_batch_is_limited_by_what_is_free_now() -> None:
    policy = make()
    view = view_of(policy, blocks=10)
    waiting(view, 30, 30, 30)
    view.free_blocks = 5  # 80 tokens, 72 safe: 2 * 30
    assert take(policy, view) == [0, 1]
    view.free_blocks = 2  # 28 safe
    assert take(policy, view) == []
    view.free_blocks = 3
    assert take(policy, view) == [2]
    wait(view, request(3, 130, 3.0))
    view.free_blocks = 9  # 144 tokens: it would fit, but 129 are safe and somebody else is here
    assert take(policy, view) == []
    view.free_blocks = 10
    assert take(policy, view) == [3]


# -- order and classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "batches"),
    [  # halved at 512: 0 and 2 are long
        ("fcfs", [[0, 2], [1, 3, 4]]),
        ("sjf", [[4, 1, 3], [2, 0]]),
        ("ljf", [[0, 2], [3, 1, 4]]),
    ],
)
def test_bucket_of_the_first_in_order_and_no_mixing(order: str, batches: list[list[int]]) -> None:
    policy = make(order=order, nmax_length=1, max_buckets=2, l_max=1024)
    view = view_of(policy)
    waiting(view, 900, 20, 600, 30, 10)
    assert [take(policy, view), take(policy, view)] == batches
    assert view.num_waiting == 0


def test_one_bucket_in_every_order_at_low_load() -> None:
    for order, batch in [("fcfs", [0, 1, 2]), ("sjf", [1, 2, 0]), ("ljf", [0, 2, 1])]:
        policy = make(order=order, nmax_length=100)
        view = view_of(policy)
        waiting(view, 900, 20, 600)
        assert take(policy, view) == batch


def test_priority_classes_are_strict() -> None:
    policy = make(nmax_length=1, max_buckets=2, l_max=1024)
    view = view_of(policy)
    wait(
        view,
        request(0, 10, 0.0, priority=1),
        request(1, 20, 1.0, priority=1),
        request(2, 900, 2.0, priority=0),
        request(3, 30, 3.0, priority=0),
        request(4, 800, 4.0, priority=2),
    )
    # Class 0 decides: its oldest is 2, a long one; 4 of class 2 fills the batch up.
    assert take(policy, view) == [2, 4]
    assert take(policy, view) == [3, 0, 1]


def test_online_goes_before_offline_which_has_an_order_of_its_own() -> None:
    policy = make(offline_order="sjf", nmax_length=100)
    view = view_of(policy)
    wait(
        view,
        request(0, 50, 0.0, task="offline"),
        request(1, 40, 1.0, task="offline"),
        request(2, 90, 2.0, priority=5),
        request(3, 80, 3.0, priority=5),
    )
    assert [r.id for r in view.waiting] == [2, 3, 1, 0]
    assert take(policy, view) == [2, 3, 1, 0]


def test_requeued_requests_go_first() -> None:
    policy = make(nmax_length=1, max_buckets=2, l_max=1024)
    view = view_of(policy)
    waiting(view, 10, 20, 30)
    for back in (request(8, 700, 0.5), request(9, 15, 0.6)):
        view.waiting.push_front(back)
        view.num_waiting += 1
    assert [take(policy, view) for _ in range(3)] == [[9], [8], [0, 1, 2]]


# -- the monitor ------------------------------------------------------------------------------


def snapshot(time_s: float, rate_per_s: float, mean_len: float) -> Snapshot:
    return Snapshot(time_s, [InstanceSample(0, "prefill", 1, 1, 0, 0, 0)], rate_per_s, mean_len)


def test_mean_length_comes_from_the_monitor_and_decays() -> None:
    policy = make(
        nmax_length="mean", monitor_period_s=2.0, monitor_delay_s=0.5, mean_half_life_s=2.0
    )
    assert (policy.monitor_period_s, policy.monitor_delay_s) == (2.0, 0.5)
    view = view_of(policy)
    waiting(view, 10, 30)
    assert policy.mean_len(view.waiting) == 20.0  # nothing sampled: the queue's own
    policy.on_monitor(snapshot(0.0, 0.0, 0.0))
    assert policy.mean_len(view.waiting) == 20.0
    policy.on_monitor(snapshot(2.0, 2.0, 100.0))  # 4 requests
    assert policy.mean_len(view.waiting) == 100.0
    policy.on_monitor(snapshot(4.0, 1.0, 400.0))  # 2 more; the 4 count as 2
    assert policy.mean_len(view.waiting) == 250.0
    policy.on_monitor(snapshot(6.0, 0.0, 0.0))
    assert policy.mean_len(view.waiting) == 250.0
    policy.new_queue()  # another run
    assert policy.mean_len(view.waiting) == 20.0


def test_monitor_decides_the_merge_test() -> None:
    # 10 blocks: M_tok 144. A mean of 20 makes N_max 7; 6 wait, so one bucket.
    policy = make(nmax_length="up", l_max=64, max_buckets=2)
    view = view_of(policy, blocks=10)
    waiting(view, 40, 10, 10, 10, 10, 40)
    assert isinstance(view.waiting, BucketQueue)
    policy.plan(view)
    assert view.waiting.cuts == [0]
    # The monitor's 30 makes it 4: split at 32 (6 > 144/64 = 2, and 4 of 6 are short). It is seen
    # at the next change of the queue.
    policy.on_monitor(snapshot(1.0, 5.0, 30.0))
    policy.plan(view)
    assert view.waiting.cuts == [0]
    waiting(view, 10)
    policy.plan(view)
    assert view.waiting.lengths() == [0, 32]


def test_monitor_runs_only_if_needed() -> None:
    assert make().monitor_period_s == 0.0
    assert make(nmax_length=4).monitor_period_s == 0.0
    assert make(nmax_length="up").monitor_period_s == 0.1


# -- computed boundaries ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_request_may_fill_an_empty_instance_or_the_safe_share_of_what_is_free(
    name: str,
) -> None:
    for blocks_held, longest in ((0, 1600), (20, 1152)):  # of 100 blocks of 16; 90 % of 80
        for length, fits in ((longest, [0]), (longest + 1, [])):
            policy = make(name)
            view = view_of(policy, blocks=100)
            view.free_blocks -= blocks_held
            waiting(view, length)
            assert take(policy, view) == fits


def test_a_lone_request_in_one_of_several_buckets_merges_them() -> None:
    policy = make(nmax_length=2)
    view = view_of(policy)
    assert isinstance(view.waiting, BucketQueue)
    waiting(view, 10, 10, 10)
    assert take(policy, view) == [0, 1, 2]
    assert len(view.waiting.cuts) > 1
    waiting(view, 3000)
    assert take(policy, view) == [0]
    assert (view.waiting.cuts, policy.operation_counts["merges"]) == ([0], 1)


def test_optimal_computes_nothing_for_a_lone_request() -> None:
    policy = make("bucketserve-optimal")
    view = view_of(policy)
    waiting(view, 10)
    assert take(policy, view) == [0]
    assert policy.operation_counts["programmes"] == 0
    waiting(view, 10, 1000)
    take(policy, view)
    assert policy.operation_counts["programmes"] == 1


def test_optimal_cuts_where_batches_are_cheapest() -> None:
    policy = make("bucketserve-optimal", num_buckets=2, l_max=4096)
    view = view_of(policy)
    waiting(view, 900, 12, 20, 950)
    # [0, 20] and the rest, at once and at any load.
    assert take(policy, view) == [0, 3]
    assert take(policy, view) == [1, 2]
    assert policy.operation_counts["programmes"] == 1
    assert policy.operation_counts["merges"] == 0


def test_optimal_recomputes_when_due_only() -> None:
    policy = make("bucketserve-optimal", num_buckets=2, boundary_period_s=10.0, half_life_s=0.5)
    view = view_of(policy)
    assert isinstance(view.waiting, BucketQueue)
    waiting(view, 10, 10, 10, 1000)
    assert take(policy, view) == [0, 1, 2]
    wait(view, request(10, 400, 4.0))
    policy.plan(view)
    assert policy.operation_counts["programmes"] == 1
    # The last arrival counted was at 3 s: due from 13 s on.
    wait(view, request(11, 420, 12.9))
    policy.plan(view)
    assert policy.operation_counts["programmes"] == 1
    wait(view, request(12, 15, 13.0))
    policy.plan(view)
    assert policy.operation_counts["programmes"] == 2
    before = list(view.waiting.cuts)
    view.now_s = 1000.0  # time alone brings nothing new
    policy.plan(view)
    assert view.waiting.cuts == before


def test_fixed_and_centroid_boundaries() -> None:
    policy = make("bucketserve-optimal", boundaries="fixed", edges=(100, 500))
    view = view_of(policy)
    waiting(view, 99, 100, 499, 500, 4096, 1)
    assert [take(policy, view) for _ in range(3)] == [[0, 5], [1, 2], [3, 4]]
    policy = make("bucketserve-optimal", boundaries="centroid", num_buckets=2)
    view = view_of(policy)
    waiting(view, 10, 30, 30, 1000, 2000)
    # The three short ones weigh about half; their mean is 23: 10 is below it, 30 is not.
    assert [take(policy, view) for _ in range(2)] == [[0], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    "config",
    [
        {"boundaries": "fixed"},
        {"edges": (5,)},
        {"boundaries": "fixed", "edges": (5, 5)},
        {"boundaries": "fixed", "edges": (0,)},
        {"boundaries": "fixed", "edges": (5000,)},
    ],
)
def test_bad_edges(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="edges"):
        make("bucketserve-optimal", **config)


@pytest.mark.parametrize(
    "config", [{"theta": 1.1}, {"nmax_length": 0}, {"nmax_length": "max"}, {"split_side": "long"}]
)
def test_bad_config(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(**config)


# -- the rest ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_decode_side(name: str) -> None:
    policy = make(name, ready_threshold=0.5, max_num_seqs=2)
    pools = [(p.role, p.instances, p.tp) for p in policy.pools(ClusterInfo(4, 1))]
    assert pools == [("prefill", 1, 2), ("decode", 1, 2)]
    view = view_of(policy, blocks=10, role="decode")
    assert policy.plan(view) is None
    incoming = request(0, 50, 0.0)
    incoming.prefilled = 50
    assert policy.can_accept(view, incoming)
    view.free_blocks = 5  # it takes 4 for its next step, and the batch what the phases say
    for growth, fits in ((1, True), (2, False)):
        view.phases[0] = growth
        assert policy.can_accept(view, incoming) is fits
    view.phases[0], view.free_blocks = 0, 10
    view.ready_blocks = 5
    assert not policy.can_accept(view, incoming)
    incoming.state = READY
    view.ready[0] = incoming
    plan = policy.plan(view)
    assert isinstance(plan, Decode)
    assert plan.admit == [incoming]
    incoming.state = DECODING
    view.running[0] = view.ready.pop(0)
    assert policy.victim(view).request is incoming
    assert policy.victim(view).swap


@pytest.mark.parametrize("name", NAMES)
def test_decode_side_recomputes_first_come_and_swaps_in_first(name: str) -> None:
    policy = make(name, l_max=64)
    view = view_of(policy, blocks=10, role="decode")
    for back in (request(1, 30, 1.0), request(2, 40, 0.0)):
        view.waiting.push_front(back)
        view.num_waiting += 1
    assert take(policy, view) == [2]  # 40 + 30 tokens exceed l_max in one step
    swapped = request(5, 20, 0.0)
    swapped.prefilled, swapped.state = 20, SWAPPED
    view.swapped[5] = swapped
    plan = policy.plan(view)
    assert isinstance(plan, Decode)
    assert plan.swap_in == [swapped]


@pytest.mark.parametrize("name", NAMES)
def test_mixed_instance_prefills_within_its_seats(name: str) -> None:
    policy = make(name, max_num_seqs=3)
    view = view_of(policy, role="mixed")
    view.running = {i: request(i, 5, 0.0) for i in (90, 91)}
    view.num_decoding = 2
    waiting(view, 10, 10)
    assert take(policy, view) == [0]
    view.running[92] = request(92, 5, 0.0)
    assert isinstance(policy.plan(view), Decode)


@pytest.mark.parametrize("name", NAMES)
def test_overhead_is_what_happened_since_the_last_batch(name: str) -> None:
    policy = make(name, overhead_us_per_op=10.0)
    view = view_of(policy)
    waiting(view, 10, 10, 10)
    assert policy.overhead_s(view) == pytest.approx(30e-6)
    take(policy, view)
    assert policy.overhead_s(view) == 0.0
    assert make(name).overhead_s(view) == 0.0
