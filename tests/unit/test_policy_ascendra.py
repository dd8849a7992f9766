"""Ascendra's decisions on bare views."""

import pytest
from policy_views import chunks, decode, goes_on, half_prefilled, ids, view_of, wait
from pydantic import ValidationError

from policies import load
from policies.parts.values import Estimator
from sim.costs.simple import AffineCost
from sim.types import Cluster, ClusterInfo, Decode, Mixed, Prefill, Wait

TOKEN_S = 0.01


def setup(instances=3, blocks=100, **config):
    """Views of a policy that knows its cluster; 10 ms a prompt token, 20 ms a decode step."""
    cls = load("ascendra")
    policy = cls(cls.Config(**{"estimate_error": 0.0, "margin_s": 0.1} | config))
    views = [view_of(policy, blocks, i) for i in range(instances)]
    for view in views:
        view.cost = AffineCost(0.0, TOKEN_S, 0.02)
    cluster = Cluster(views, None, None)
    return policy, views, cluster


def arrive(policy, cluster, id=900):
    stranger = wait(view_of(policy), id, 4)
    return policy.route(stranger, cluster)


def known(policy, cluster):
    """Let it see the cluster without leaving a trace."""
    arrive(policy, cluster)
    policy._arrived_high = policy._arrived_low = 0


def test_arrivals_go_round():
    policy, (a, b, high), cluster = setup(max_num_seqs=4)
    assert arrive(policy, cluster) == high.id
    decode(high, 1, 4)
    assert arrive(policy, cluster) == high.id  # one of four seats
    decode(high, 2, 4)
    assert [arrive(policy, cluster) for _ in range(3)] == [a.id, b.id, a.id]
    del high.running[2]
    wait(high, 3, 4)
    assert arrive(policy, cluster) == b.id  # something waits there


def test_without_tickets_high_priority_takes_no_arrival():
    policy, (a, b, high), cluster = setup(ticket_seats=0)
    assert [arrive(policy, cluster) for _ in range(2)] == [a.id, b.id]
    policy, (a, _, high), cluster = setup(ticket_seats=0.02, max_num_seqs=100)
    for id, wanted in ((1, high), (2, high), (3, a)):
        assert arrive(policy, cluster) == wanted.id
        decode(high, id, 4)


def test_no_ticket_when_memory_is_short():
    policy, (a, _, high), cluster = setup()
    high.outstanding_tokens = 361  # of 400
    assert arrive(policy, cluster) == a.id


def test_instances_that_are_down_are_passed_over():
    policy, (a, b, high), cluster = setup()
    high.up = False
    cluster.update()
    assert [arrive(policy, cluster) for _ in range(2)] == [a.id, b.id]
    a.up = b.up = False
    high.up = True
    cluster.update()
    wait(high, 1, 4)
    assert arrive(policy, cluster) == high.id


@pytest.mark.parametrize(("count", "share", "high"), [
    (1, 1 / 3, 0), (2, 1 / 3, 1), (3, 1 / 3, 1), (3, 0.67, 2), (6, 1 / 3, 2), (4, 0.99, 3),
])  # fmt: skip
def test_how_many_have_high_priority(count, share, high):
    policy, _, cluster = setup(count, high_share=share)
    arrive(policy, cluster)
    assert [v.id for v in policy.high] == list(range(count))[count - high :]


def test_low_priority_passes_by_what_does_not_fit():
    policy, (low, *_), cluster = setup(max_num_batched_tokens=50)
    known(policy, cluster)
    decode(low, 1, 4)
    wait(low, 2, 30, deadline_s=9)
    wait(low, 3, 30, deadline_s=8)
    wait(low, 4, 19, deadline_s=10)
    assert chunks(policy.plan(low)) == [(3, 30), (4, 19)]


def test_drafted_tokens_count_against_the_budget(monkeypatch):
    policy, (low, *_), cluster = setup(max_num_batched_tokens=50)
    known(policy, cluster)
    decode(low, 1, 4)
    wait(low, 2, 48, deadline_s=9)
    assert chunks(policy.plan(low)) == [(2, 48)]
    monkeypatch.setattr(type(low), "decode_tokens", 4)
    assert isinstance(policy.plan(low), Decode)


def test_a_prompt_beyond_the_budget_runs_when_nothing_decodes():
    policy, (low, *_), cluster = setup(max_num_batched_tokens=50)
    known(policy, cluster)
    wait(low, 1, 60, deadline_s=90)
    assert chunks(policy.plan(low)) == [(1, 60)]
    decode(low, 2, 4)
    plan = policy.plan(low)
    assert isinstance(plan, Decode)
    assert plan.max_steps == 1  # it may have to move after any step


def test_who_is_predicted_to_be_late_moves():
    """A step of 30 tokens lasts 0.32 s: deadlines before 0.42 are at risk, 0.43 is not."""
    policy, (low, _, high), cluster = setup(max_num_batched_tokens=31)
    known(policy, cluster)
    decode(low, 1, 4)
    first = wait(low, 2, 30, deadline_s=0.35)
    late = wait(low, 3, 10, deadline_s=0.41)
    wait(low, 4, 10, deadline_s=0.43)
    for _ in range(2):  # saying it twice changes nothing
        plan = policy.plan(low)
        assert isinstance(plan, Mixed)
        assert ids([r for r, _ in plan.chunks]) == [first.id]
        assert plan.move == [(late, high.id)]
    assert policy.operation_counts["moves"] == 1


def test_moves_go_round():
    policy, (low, *high), cluster = setup(3, high_share=0.67, max_num_batched_tokens=20)
    known(policy, cluster)
    for id in range(4):
        wait(low, id, 20, deadline_s=0.2 + id / 100)
    plan = policy.plan(low)
    assert [to for _, to in plan.move] == [high[0].id, high[1].id, high[0].id]


def test_chunked_takes_three_prompts_at_most():
    policy, (low, *_), cluster = setup(packing="chunked", max_num_batched_tokens=50)
    known(policy, cluster)
    half_prefilled(low, 1, 30, 20)
    for id, tokens in ((2, 10), (3, 100), (4, 5)):
        wait(low, id, tokens, deadline_s=9 + id)
    assert chunks(policy.plan(low)) == [(1, 10), (2, 10), (3, 30)]


def test_high_priority_runs_the_late_last():
    policy, (*_, high), cluster = setup(max_num_batched_tokens=45)
    known(policy, cluster)
    high.now_s = 1.0
    wait(high, 1, 20, deadline_s=1.1)  # 0.2 s: late
    wait(high, 2, 20, deadline_s=3.0)
    wait(high, 3, 20, deadline_s=2.0)
    plan = policy.plan(high)
    assert isinstance(plan, Prefill)
    assert ids(plan.requests) == [3, 2]


def test_high_priority_waits_for_what_is_on_its_way():
    policy, (low, _, high), cluster = setup(transfer_s=0.5, max_num_batched_tokens=20)
    known(policy, cluster)
    wait(low, 1, 20, deadline_s=0.2)
    late = wait(low, 2, 20, deadline_s=0.3)
    assert policy.plan(low).move == [(late, high.id)]
    low.waiting.remove(late)
    late.home = high
    high.waiting.push(late)
    high.num_waiting = 1
    plan = policy.plan(high)
    assert isinstance(plan, Wait)
    assert plan.until_s == 0.5
    decode(high, 7, 4)
    assert policy.plan(high).until_s == pytest.approx(0.1)  # then it is late: another may be first
    high.now_s = 0.5
    assert ids(policy.plan(high).requests) == [2]


def test_seats_of_high_priority_are_soft():
    for enforce, wanted in ((False, True), (True, False)):
        policy, (*_, high), cluster = setup(max_num_seqs=1, enforce=enforce)
        known(policy, cluster)
        decode(high, 1, 4)
        wait(high, 2, 4, deadline_s=9)
        assert isinstance(policy.plan(high), Prefill) == wanted


def test_value_orders():
    order = {}
    for name in ("edf", "sjf", "basic"):
        policy, (low, *_), cluster = setup(order=name)
        known(policy, cluster)
        wait(low, 1, 10, deadline_s=9)
        wait(low, 2, 5, deadline_s=99)
        wait(low, 3, 20, deadline_s=1)
        wait(low, 4, 1)
        order[name] = [r for r, _ in chunks(policy.plan(low))]
    assert order["edf"] == [3, 1, 2, 4]
    assert order["sjf"] == [4, 2, 1, 3]
    assert order["basic"] == [2, 1, 3, 4]


def test_one_instance_moves_nothing():
    policy, (low,), cluster = setup(1, max_num_batched_tokens=20)
    known(policy, cluster)
    decode(low, 1, 4)
    wait(low, 2, 30, deadline_s=0.01)
    assert goes_on(policy.plan(low))


def test_estimates_are_off_by_a_share():
    estimator = Estimator(0.1)
    found = [estimator.seconds(1.0, n) for n in range(2000)]
    assert 0.9 <= min(found) < 0.91
    assert 1.09 < max(found) < 1.1
    assert sum(found) / 2000 == pytest.approx(1.0, abs=0.01)
    assert Estimator(0.0).seconds(2.0, 7) == 2.0


def test_layout_and_bounds():
    cls = load("ascendra")
    (pool,) = cls(cls.Config()).pools(ClusterInfo(6, 2))
    assert (pool.role, pool.instances, pool.tp) == ("mixed", 3, 2)
    for bad in ({"high_share": 1.0}, {"margin_s": -1}, {"order": "fifo"}):
        with pytest.raises(ValidationError):
            cls.Config(**bad)
