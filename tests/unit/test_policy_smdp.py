"""The policy on bare views: what it looks up, for whom it waits, whom it serves."""

import pytest
from policy_views import decode, goes_on, ids, ready, view_of, wait
from pydantic import ValidationError

from policies import load
from sim.types import ClusterInfo, Decode, Prefill, RunToCompletion, Wait

FAST = {"service": {"base_ms": 1000.0, "request_ms": 100.0}, "max_batch_size": 4, "max_waiting": 8}


def smdp(**config):
    cls = load("smdp")
    return cls(cls.Config(**FAST | config))


def waiting(policy, count, role="mixed", blocks=100):
    view = view_of(policy, blocks, role=role)
    for id in range(count):
        wait(view, id, 8)
    return view


@pytest.mark.parametrize(("config", "served"), [
    ({"rule": "greedy"}, [0, 1, 2, 3, 4, 4]),
    ({"rule": "fixed", "batch_size": 2}, [0, 0, 2, 2, 2, 2]),
    ({"rule": "limit", "batch_size": 3}, [0, 0, 0, 3, 4, 4]),
])  # fmt: skip
def test_rules(config, served):
    policy = smdp(**config)
    for count, wanted in enumerate(served):
        plan = policy.plan(waiting(policy, count))
        if wanted:
            assert isinstance(plan, RunToCompletion)
            assert ids(plan.requests) == list(range(wanted))
        elif count:
            assert isinstance(plan, Wait)
            assert plan.until_s == 5.0
        else:
            assert plan is None


def test_a_given_rate_has_its_own_table():
    """Power that is dear makes it wait, and a load near 1 makes it wait longer."""
    cheap, dear = smdp(mean_gap_s=1, power_weight_ms=0), smdp(mean_gap_s=1, power_weight_ms=1e4)
    assert isinstance(cheap.plan(waiting(cheap, 1)), RunToCompletion)
    assert isinstance(dear.plan(waiting(dear, 1)), Wait)


def test_a_load_of_one_and_more_takes_the_highest_band():
    policy = smdp(mean_gap_s=0.01)
    assert isinstance(policy.plan(waiting(policy, 4)), RunToCompletion)
    assert policy.operation_counts == {"below_bands": 0, "above_bands": 1}


def test_nobody_waits_longer_than_max_wait():
    policy = smdp(rule="limit", batch_size=4, max_wait_s=2.0)
    view = waiting(policy, 3)
    view.now_s = 1.99
    assert policy.plan(view).until_s == 2.0
    view.now_s = 2.0
    assert ids(policy.plan(view).requests) == [0, 1, 2]


def test_a_batch_that_ran_out_of_memory_is_halved():
    policy = smdp(rule="greedy")
    view = waiting(policy, 4)
    next(iter(view.waiting)).retries = 1
    assert ids(policy.plan(view).requests) == [0, 1]


def test_prefill_batches_of_split_pools():
    policy = smdp(applies_to="prefill", rule="limit", batch_size=2)
    assert [p.role for p in policy.pools(ClusterInfo(4, 1))] == ["prefill", "decode"]
    view = waiting(policy, 1, "prefill")
    assert policy.plan(view).until_s == 5.0
    view = waiting(policy, 6, "prefill", blocks=5)  # two blocks each
    plan = policy.plan(view)
    assert isinstance(plan, Prefill)
    assert ids(plan.requests) == [0, 1]
    view.free_blocks = 1
    assert policy.plan(view) is None  # KV that is to leave asks again


def test_the_decode_side_asks_no_table():
    policy = smdp(applies_to="prefill", rule="limit", batch_size=4)
    view = view_of(policy, role="decode")
    pulled = ready(view, 1, 8)
    assert policy.plan(view).admit == [pulled]
    del view.ready[1]
    decode(view, 2, 8)
    assert goes_on(policy.plan(view))
    wait(view, 3, 8)  # preempted, to be recomputed
    assert ids(policy.plan(view).requests) == [3]


def test_on_a_mixed_pool_prefill_batches_wait_beside_decodes():
    policy = smdp(applies_to="prefill", rule="limit", batch_size=2)
    view = waiting(policy, 1)
    decode(view, 7, 8)
    plan = policy.plan(view)
    assert isinstance(plan, Decode)
    assert plan.until_s == 5.0


def test_default_pools_are_mixed():
    (pool,) = smdp().pools(ClusterInfo(4, 2))
    assert (pool.role, pool.instances) == ("mixed", 2)


@pytest.mark.parametrize(("config", "message"), [
    ({"max_waiting": 3}, "max_waiting=3 must be at least max_batch_size=4"),
    ({"rule": "fixed", "batch_size": 5}, "batch_size=5 must be at most max_batch_size=4"),
    ({"mean_gap_s": 0}, "greater than 0"),
    ({"service": {"request_ms": 0}}, "greater than 0"),
    ({"power_weight_ms": -1}, "greater than or equal to 0"),
])  # fmt: skip
def test_what_cannot_be(config, message):
    with pytest.raises(ValidationError, match=message):
        smdp(**config)


def test_tables_to_draw():
    cls = load("smdp")
    title, tables = cls.decision_tables(cls.Config())
    assert title == "rule smdp, GoogLeNet on a P4, 1 ms a watt"
    assert [round(load, 1) for load, _ in tables] == [round(0.1 * k, 1) for k in range(1, 10)]
    assert [next(s for s, a in enumerate(t) if a) for _, t in tables][::2] == [2, 4, 7, 8, 7]
    rate = 0.5 * 32 / (1.0524 + 32 * 0.3051) * 1e3
    title, [(load_, _)] = cls.decision_tables(cls.Config(mean_gap_s=1 / rate))
    assert load_ == pytest.approx(0.5)
    service = {"base_ms": 1, "request_ms": 1}
    title, tables = cls.decision_tables(cls.Config(service=service, mean_gap_s=1e-6))
    assert "given service" in title
    assert len(tables) == 9
