"""One queue for all instances: who is asked, who may wait there, and how requests leave it."""

import numpy as np
import pytest

from policies.continuous import Continuous, ContinuousConfig
from policies.distserve import Distserve, DistserveConfig
from sim.core.misses import MissLimit, TooManyMisses
from sim.core.outages import Outages
from sim.core.simulation import Simulation, simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import (
    Deadlock,
    Decode,
    PlanError,
    Policy,
    Preemption,
    Prefill,
    Request,
    RunToCompletion,
    Trace,
    Wait,
)

COST = AffineCost(prefill_base_s=1.0, decode_base_s=1.0)
"""A prefill takes a second, and so does a decode step."""
FS = 10**15


class Killed(Outages):
    """Failures as listed: for each instance (down, up) in seconds."""

    def __init__(self, *plan):
        self.plan = plan

    def of(self, engine):
        for down_s, up_s in self.plan[engine] if engine < len(self.plan) else ():
            yield round(down_s * FS), round(up_s * FS)


class Scripted(Policy):
    """Decides as a function says; arrivals wait in one queue."""

    name = "scripted"
    queue_scope = "cluster"

    def __init__(self, decide=None):
        self.decide = decide

    def plan(self, view):
        if self.decide is not None:
            return self.decide(view)
        return Prefill(list(view.waiting)[:1]) if view.num_waiting else Decode()

    def route(self, request, cluster):
        assert request.prefilled, "asked at arrival"
        return cluster.decode[0].id


def continuous(**config):
    return Continuous(ContinuousConfig(queue="cluster", **config))


def trace(*rows):
    arrival, prompts, outputs = zip(*rows, strict=True)
    return Trace(np.array(prompts), np.array(outputs), np.array(arrival, dtype=float))


def specs(*blocks, role="mixed", cost=COST, **options):
    return [InstanceSpec(cost, n, 4, role=role, **options) for n in blocks]


def run(requests, instances, policy=None, **options):
    """Return the record; both modes agree."""
    found = []
    for fuse in (True, False):
        how = Settings(fuse, **options)
        found.append(simulate(requests, policy or continuous(max_num_seqs=1), instances, how))
    for name, values in found[0].requests.items():
        np.testing.assert_array_equal(values, found[1].requests[name], err_msg=name)
    return found[0].requests


def test_route_is_asked_after_the_prefill_only():
    instances = specs(100, 100, role="prefill") + specs(100, role="decode")
    found = run(trace((0, 4, 3), (0, 4, 3), (0, 4, 3)), instances, Scripted(_admit_ready))
    assert found["prefill_instance"].tolist() == [0, 1, 0]
    assert found["decode_instance"].tolist() == [2, 2, 2]


def _admit_ready(view):
    if view.num_waiting:
        return Prefill(list(view.waiting)[:1])
    if view.ready:
        return Decode(admit=list(view.ready.values()))
    return Decode() if view.num_decoding else None


def test_a_scope_that_is_none():
    policy = continuous()
    policy.queue_scope = "pool"
    with pytest.raises(ValueError, match=r"queue_scope 'pool'; valid: .*instance.*cluster"):
        simulate(trace((0, 4, 1)), policy, specs(9), Settings())


def test_only_what_fits_every_instance_is_accepted():
    rows = trace((0, 8, 1), (0, 8, 2), (0, 16, 5), (0, 9, 1))
    # 2 blocks of 4 hold 8 tokens, and the last one is never cached.
    assert run(rows, specs(5, 2))["status"].tolist() == ["finished", "rejected"] + 2 * ["rejected"]
    assert run(rows, specs(5, 3))["status"].tolist() == [
        *("finished", "finished", "rejected", "finished"),
    ]


def test_a_prefill_instance_needs_room_for_the_prompt_alone():
    """Where it decodes, the whole has to fit."""
    instances = specs(2, 3, role="prefill") + specs(9, role="decode")
    rows = trace((0, 8, 9), (0, 9, 9), (0, 8, 40))
    policy = Distserve(DistserveConfig())
    policy.queue_scope = "cluster"
    assert run(rows, instances, policy)["status"].tolist() == ["finished", "rejected", "rejected"]


def test_a_client_that_waits_for_any_gives_up():
    rows = [(0, 4, 3), (0, 4, 3), (1, 4, 9), (1, 4, 9), (1, 4, 1), (3, 4, 1)]
    found = run(trace(*rows), specs(9, 9), abort_after_s=3.5)
    # 2 and 3 are taken at 3; their clients and the waiting 4's go at 4.5, within a step; 5 is next.
    assert found["status"].tolist() == ["finished"] * 2 + ["aborted"] * 3 + ["finished"]
    assert found["emitted_tokens"].tolist() == [3, 3, 2, 2, 0, 1]
    assert found["prefill_start_s"].tolist()[2:4] == [3, 3]
    assert found["prefill_start_s"].tolist()[5] == 5


def test_a_queue_whose_last_client_has_gone():
    def late(view):
        return Wait(3.2) if view.now_s < 3.2 else Prefill(list(view.waiting))

    found = run(trace((0, 4, 1), (1.5, 4, 1)), specs(9, 9), Scripted(late), abort_after_s=3.0)
    assert found["status"].tolist() == ["aborted", "finished"]


def test_who_waits_at_the_horizon_is_unfinished_once():
    found = run(trace(*[(0, 4, 9)] * 5), specs(9, 9, 9), horizon_s=4.0)
    assert found["request_id"].tolist() == [0, 1, 2, 3, 4]
    assert found["status"].tolist() == ["unfinished"] * 5
    assert found["prefill_instance"].tolist() == [0, 1, 2, -1, -1]


def test_while_all_are_down_requests_wait():
    outages = Killed([(0.5, 7)], [(1.5, 6), (6.5, 9)])
    found = run(trace((0, 4, 3), (2, 4, 1), (3, 4, 1)), specs(9, 9), outages=outages)
    # 0 falls at 0.5: the first goes to 1, falls with it at 1.5, and waits in front until 1 is up
    # at 6. There it falls again; 0 comes up at 7 and serves all, 1 does at 9 what is left.
    assert found["status"].tolist() == ["finished"] * 3
    assert found["retries"].tolist() == [3, 0, 0]
    assert found["prefill_start_s"].tolist() == [7, 9, 10]
    assert found["prefill_instance"].tolist() == [0, 1, 0]


def test_an_instance_repaired_into_a_queue_takes_from_it():
    found = run(trace((0, 4, 9), (1, 4, 1)), specs(9, 9), outages=Killed([], [(0.5, 4)]))
    assert found["prefill_start_s"].tolist() == [0, 4]


def test_what_outgrew_the_prefill_instances_is_recomputed_where_it_decodes():
    instances = specs(2, 2, role="prefill") + specs(9, role="decode", kv_token_bytes=1)
    policy = Distserve(DistserveConfig())
    policy.queue_scope = "cluster"
    outages = Killed([], [], [(6.5, 8)])
    found = run(trace((0, 8, 9)), instances, policy, outages=outages)
    # 8 + some emitted tokens are no prompt for 2 blocks.
    assert found["status"].tolist() == ["finished"]
    assert found["retries"].tolist() == [1]


@pytest.mark.parametrize("horizon_s", [None, 50.0])
def test_a_queue_that_nobody_takes_from_is_a_deadlock(horizon_s):
    message = r"instance 0 at .*: 2 requests wait in the shared queue, 0 hold seats"
    for fuse in (True, False):
        with pytest.raises(Deadlock, match=message):
            simulate(
                trace((0, 4, 1), (1, 4, 1)),
                Scripted(lambda view: None),
                specs(9, 9),
                Settings(fuse, horizon_s=horizon_s),
            )


def test_one_that_takes_is_enough_at_the_horizon():
    """Instance 1 takes nothing and sleeps beside a queue, which 0 works off."""
    policy = Scripted(lambda v: Scripted().plan(v) if v.id == 0 else None)
    found = run(trace(*[(0, 4, 9)] * 4), specs(99, 9), policy, horizon_s=3.5)
    assert found["prefill_instance"].tolist() == [0, 0, 0, 0]
    assert found["status"].tolist() == ["unfinished"] * 4


def test_nothing_is_in_two_places():
    stranger = Request(7, 0, 0.0, 4)
    with pytest.raises(PlanError, match="request 7 is named twice or is not here"):
        run(trace((0, 4, 1)), specs(9, 9), Scripted(lambda v: Prefill([stranger])))
    with pytest.raises(PlanError, match="request 7 is named twice or does not wait here"):
        run(trace((0, 4, 1)), specs(9, 9), Scripted(lambda v: RunToCompletion([stranger])))
    seen = []

    def steal(view):
        seen.append(view)
        return Prefill([*seen[0].running.values()] or list(view.waiting)[:1])

    with pytest.raises(PlanError, match=r"on instance 1 at .* is not here"):
        run(trace((0, 4, 1), (0, 4, 1)), specs(9, 9), Scripted(steal))


def test_out_of_memory_puts_back_for_all():
    """A batch of two that outgrows its instance; the other, idle, takes one as it crashes."""

    def batch(view):
        if not view.num_waiting:
            return None
        head = next(iter(view.waiting))
        return RunToCompletion(list(view.waiting)[: max(1, 2 >> head.retries)], padded=True)

    rows = trace((0, 8, 9), (0, 8, 9))
    found = run(rows, specs(4, 4), Scripted(batch), oom_restart_s=30.0)
    assert found["retries"].tolist() == [1, 1]
    assert found["prefill_instance"].tolist() == [1, 1]
    # One whose client went meanwhile is not put back, but leaves.
    found = run(rows, specs(4, 4), Scripted(batch), oom_restart_s=30.0, abort_after_s=0.25)
    assert found["status"].tolist() == ["aborted", "aborted"]
    assert found["retries"].tolist() == [1, 1]


def test_a_victim_that_joins_another_batch_is_in_that_one_only():
    """Request 1, the second to join on 0, becomes the second on 1.

    At 9, where it would have been done on 0, it still decodes on 1.
    """

    def decide(view):
        waiting = {r.id: r for r in view.waiting}
        if view.id == 0 and 3 in waiting and 1 in view.running:
            return Decode(preempt=[Preemption(view.running[1])])
        if view.id == 0:
            taken = [r for r in waiting.values() if r.id < 2 and not r.preemptions]
        else:
            moved = 1 in view.running
            taken = [r for r in waiting.values() if r.id == 2 or r.preemptions or moved]
        if taken:
            return Prefill(taken)
        return Decode() if view.num_decoding else None

    rows = trace((0, 4, 9), (0, 4, 9), (0, 4, 9), (4.5, 4, 1))
    found = run(rows, specs(99, 99), Scripted(decide))
    assert found["decode_instance"].tolist() == [0, 1, 1, -1]
    assert found["finish_s"].tolist() == [9, 10, 11, 7]


@pytest.mark.parametrize(("allowed", "ends"), [(3, False), (2, True)])
def test_who_waits_too_long_is_a_miss_once(allowed, ends):
    """The first looks at the queue when it leaves at 3 s: three wait for more than a second."""
    limit = MissLimit([(1000.0, np.inf, np.inf)], [], 0.0, allowed, [allowed])
    limit.until_look = 1
    rows = trace((0, 4, 3), (0, 4, 3), *[(0, 4, 1)] * 3)
    sim = Simulation(rows, continuous(max_num_seqs=1), specs(9, 9), Settings(misses=limit))
    if ends:
        with pytest.raises(TooManyMisses):
            sim.run()
    else:
        sim.run()
        assert limit.missed_of == [3]


def test_the_monitor_shows_the_queue_on_each():
    seen = []

    class Watching(Scripted):
        monitor_period_s = 2.0

        def on_monitor(self, snapshot):
            seen.append([(s.num_waiting, s.waiting_tokens) for s in snapshot.instances])

    def alone(view):
        if view.running:
            return Decode()
        return Prefill(list(view.waiting)[:1]) if view.num_waiting else None

    simulate(trace(*[(0, 4, 3)] * 4), Watching(alone), specs(9, 9), Settings())
    # Two at a time, 3 s each; the sample at time 0 comes before any plan.
    assert seen[:3] == [[(4, 16)] * 2, [(2, 8)] * 2, [(0, 0)] * 2]


def test_a_closed_loop_goes_on():
    found = run(trace(*[(0, 4, 2)] * 7), specs(9, 9), concurrency=3, think_s=0.5)
    assert found["status"].tolist() == ["finished"] * 7
    # Two run, the third waits for the first that is free.
    assert found["arrival_s"].tolist() == [0, 0, 0, 2.5, 2.5, 4.5, 5]
    assert found["prefill_start_s"].tolist() == [0, 0, 2, 2.5, 4, 4.5, 6]
