"""Failures: what is held, who may be sent where, and when times of failure are drawn."""

from itertools import islice

import numpy as np
import pytest

from policies.continuous import Continuous, ContinuousConfig
from policies.distserve import Distserve, DistserveConfig
from policies.splitwise import Splitwise, SplitwiseConfig
from sim.core.executor import Executor
from sim.core.failures import MAX_FUTILE_FAILURES
from sim.core.outages import ExponentialOutages, Outages
from sim.core.simulation import Simulation, simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.study.build import settings
from sim.study.config import resolve
from sim.study.run import compare, failure_seed, replicate, requests_of
from sim.types import BadInput, Deadlock, PlanError, SimulationError, Trace

COST = AffineCost(prefill_base_s=1.0, decode_base_s=1.0)
S = 10**15


class Killed(Outages):
    """Failures as listed: for each engine (down, up) in seconds."""

    def __init__(self, *plan):
        self.plan = plan

    def of(self, engine):
        for down_s, up_s in self.plan[engine] if engine < len(self.plan) else ():
            yield round(down_s * S), round(up_s * S)


def trace(*rows):
    arrival, prompts, outputs = zip(*rows, strict=True)
    return Trace(np.array(prompts), np.array(outputs), np.array(arrival, dtype=float))


def continuous(**config):
    return Continuous(ContinuousConfig(**config))


def run(requests, specs, *plan, policy=None, **options):
    """Return the record; both modes agree."""
    found = []
    for fuse in (True, False):
        how = Settings(fuse, outages=Killed(*plan), **options)
        found.append(simulate(requests, policy or continuous(), specs, how))
    for name, values in found[0].requests.items():
        np.testing.assert_array_equal(values, found[1].requests[name], err_msg=name)
    return found[0]


def one(blocks=100, role="mixed", **options):
    return InstanceSpec(COST, blocks, 4, role=role, kv_token_bytes=10, **options)


# -- where requests go ----------------------------------------------------------------------------


def test_put_back_requests_stand_in_order_of_arrival_before_those_that_came_meanwhile():
    # One seat. A runs, B and C wait; all are put back at 0.5 and D arrives while nothing is up.
    rows = [(0, 1, 1), (0.1, 1, 1), (0.2, 1, 1), (0.7, 1, 1)]
    record = run(trace(*rows), [one()], [(0.5, 2)], policy=continuous(max_num_seqs=1))
    assert record.requests["finish_s"].tolist() == [3, 4, 5, 6]
    assert record.requests["retries"].tolist() == [1, 1, 1, 0]


def test_what_is_too_small_for_the_rest_is_passed_over():
    # Instance 1 holds 5 tokens: A (4 + 4) ran on instance 0, and waits for it although 1 is up.
    record = run(trace((0, 4, 4)), [one(), one(1)], [(1.5, 4)])
    assert record.requests["status"].tolist() == ["finished"]
    assert record.requests["finish_s"].tolist() == [7]  # 4 to 5: token 2, then two steps


def test_a_long_recompute_goes_to_a_decode_instance():
    # 8 tokens fit the prefill instance, not 4 + 5 emitted ones: decode instance 2 prefills them.
    specs = [one(2, "prefill"), one(role="decode"), one(role="decode")]
    policy = Distserve(DistserveConfig(padded=False, ready_threshold=1.0))
    record = run(
        trace((0, 4, 8)), specs, [], [(5.7, 99)], policy=policy, decode_router="round-robin"
    )
    assert record.requests["decode_instance"].tolist() == [2]
    at = record.steps["instance"] == 2
    assert record.steps["prefill_tokens"][at].tolist()[0] == 9


def test_a_client_may_give_up_while_its_request_is_held():
    record = run(trace((0, 1, 1), (0, 1, 9)), [one()], [(1.5, 9)], abort_after_s=3.0)
    assert record.requests["status"].tolist() == ["finished", "aborted"]
    assert record.requests["emitted_tokens"].tolist() == [1, 1]
    assert record.end_s == 3


def test_a_horizon_counts_what_is_held():
    record = run(trace((0, 1, 5), (2, 1, 1)), [one()], [(1.5, 9)], horizon_s=3.0)
    assert record.requests["status"].tolist() == ["unfinished", "unfinished"]
    assert record.outages[0].end_s == 3


def test_held_arrivals_that_fit_nowhere_they_are_sent_are_rejected():
    specs = [one(), one(1)]
    record = run(trace((1, 1, 1), (1, 6, 6)), specs, [(0, 5)], [(0, 5)], router="round-robin")
    assert record.requests["status"].tolist() == ["finished", "rejected"]


def test_a_closed_loop_goes_on():
    rows = Trace(np.array([1] * 6), np.array([2] * 6))
    record = run(rows, [one()], [(1.5, 2), (3, 3.5)], concurrency=2)
    assert (record.requests["status"] == "finished").all()
    assert record.requests["retries"].sum() >= 2


def test_lanes_fail_together():
    specs = [one(pipeline=0, stages=2) for _ in range(2)] + [one()]
    rows = [(0, 1, 9)] * 3
    record = run(trace(*rows), specs, [(2.5, 3)])
    assert record.counters["failures"] == 1
    assert [o.instance for o in record.outages] == [0, 1]
    assert record.requests["retries"].tolist() == [1, 1, 0]


def test_failures_go_on_after_the_last_arrival_and_end_with_the_last_request():
    how = Settings(outages=ExponentialOutages(8.0, 1.0, seed=1))
    record = simulate(trace(*[(i, 3, 9) for i in range(40)]), continuous(), [one(), one()], how)
    assert record.counters["failures"] > 2
    assert max(o.start_s for o in record.outages) <= record.end_s
    assert (record.requests["status"] == "finished").all()


class Stubborn(Continuous):
    """Sends everything to the first instance, and decodes on the last."""

    def route(self, request, cluster):
        return len(cluster.instances) - 1 if request.prefilled else 0


@pytest.mark.parametrize(("killed", "what"), [(0, "request 0 to"), (2, "prefilled request 0 to")])
def test_a_policy_that_sends_to_an_instance_that_is_down_is_wrong(killed, what):
    specs = [one(role="prefill"), one(role="prefill"), one(role="decode"), one(role="decode")]
    plan = [[], [], [], []]
    plan[killed + 1 if killed else 0] = [(0.5, 9)]
    with pytest.raises(PlanError, match=f"{what} instance {3 if killed else 0}, which is down"):
        run(trace((0, 1, 3), (0.6, 1, 3)), specs, *plan, policy=Stubborn(ContinuousConfig()))


def test_splitwise_gives_a_prompt_another_token_machine():
    # Machine 1 would decode A; it fails while machine 0 prefills A, and machine 2 decodes it. With
    # both gone A stays.
    specs = [one(role="prefill"), one(role="decode"), one(role="decode")]
    policy = Splitwise(SplitwiseConfig())
    for killed, wanted in ([(0.5, 9)], 2), ([], 1):
        record = run(trace((0, 4, 3)), specs, [], killed, policy=policy)
        assert record.requests["decode_instance"].tolist() == [wanted]
        assert record.requests["retries"].tolist() == [0]
    record = run(trace((0, 4, 3)), specs, [], [(0.5, 9)], [(0.5, 9)], policy=policy)
    assert record.requests["decode_instance"].tolist() == [0]


def test_times_too_short_for_the_work_end_the_run():
    always = [(0.5 + n, 0.6 + n) for n in range(MAX_FUTILE_FAILURES + 10)]
    with pytest.raises(SimulationError, match="failures in a row put requests back"):
        run(trace((0, 1, 2)), [one()], always)


class Lazy(Continuous):
    """Never does anything."""

    def plan(self, view):
        return None


def test_a_policy_that_asks_for_nothing_is_still_found_out():
    with pytest.raises(Deadlock):
        run(trace((0, 1, 2)), [one()], [(5, 6)], policy=Lazy(ContinuousConfig()))


def test_a_device_does_not_fail():
    class Nothing(Executor):
        def look(self):
            pass

        def step(self, chunks, decodes, padded):
            return 1

    with pytest.raises(ValueError, match="no outages"):
        Settings(False, executor=Nothing(), outages=Killed())


def test_without_failures_nobody_pays():
    sim = Simulation(trace((0, 1, 1)), continuous(), [one()], Settings())
    assert sim.failures is None
    assert sim.entry is sim.instances[0]
    assert sim.run().outages == []


# -- when ---------------------------------------------------------------------------------------


def test_exponential_times():
    outages = ExponentialOutages(100.0, 5.0, seed=3)
    times = np.array(list(islice(outages.of(0), 4000)), dtype=float) / S
    down, up = times.T
    between = down - np.concatenate([[0.0], up[:-1]])
    # 4,000 exponential draws: the mean is known to 1.6 % (one standard error).
    assert between.mean() == pytest.approx(100, rel=0.06)
    assert (up - down).mean() == pytest.approx(5, rel=0.06)
    assert between.std() == pytest.approx(100, rel=0.1)
    assert (np.diff(times.ravel()) > 0).all()


def test_every_engine_has_its_own_times_and_they_scale():
    outages = ExponentialOutages(100.0, 5.0, seed=3)
    first = list(islice(outages.of(0), 3))
    assert first == list(islice(ExponentialOutages(100.0, 5.0, seed=3).of(0), 3))
    assert first != list(islice(outages.of(1), 3))
    assert first != list(islice(ExponentialOutages(100.0, 5.0, seed=4).of(0), 3))
    twice = list(islice(ExponentialOutages(200.0, 10.0, seed=3).of(0), 3))
    assert np.allclose(twice, 2 * np.array(first, dtype=float), rtol=1e-12)


# -- in a study -----------------------------------------------------------------------------------

STUDY = {
    "cluster": {"gpu": "a100-80gb", "count": 2, "model": "opt-13b"},
    "policy": ["continuous", "static", "distserve"],
    "workload": {
        "source": "alpaca",
        "num_requests": 60,
        "arrivals": {"process": "poisson", "rate": 4},
    },
    "engine": {"failures": {"mtbf_s": 5.0, "repair_s": 1.0}, "max_model_len": 2048},
    "run": {"replications": 2},
}


def test_policies_see_the_same_failures():
    found = compare(resolve(STUDY, "here")).results
    firsts = {result.replications[0].record.outages[0].start_s for result in found}
    assert len(firsts) == 1
    for result in found:
        assert result.summary["failures"] > 0
        assert 0 < result.summary["downtime_frac"] < 1
        assert result.summary["completed"] == 60
        assert any("failures of instances" in note for note in result.notes)
    a, b = found[0].replications
    assert a.record.outages[0].start_s != b.record.outages[0].start_s


def test_failures_are_off_by_default_and_without_a_seed():
    experiment = resolve({**STUDY, "engine": {}, "policy": "continuous"}, "here")
    done = replicate(experiment, experiment.policies[0], 0)
    assert done.record.outages == []
    assert (done.summary["failures"], done.summary["downtime_frac"]) == (0, 0)
    experiment = resolve({**STUDY, "policy": "continuous"}, "here")
    requests, policy = requests_of(experiment, 0), continuous()
    assert settings(experiment, policy, requests, 0).outages is None
    how = settings(experiment, policy, requests, 0, failure_seed(experiment, 0))
    assert isinstance(how.outages, ExponentialOutages)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mtbf_s": 0, "repair_s": 1}, "engine.failures.mtbf_s: .*greater than or equal to 0.001"),
        ({"mtbf_s": 1e12, "repair_s": 1}, "engine.failures.mtbf_s: .*less than or equal to"),
        ({"mtbf_s": 9, "repair_s": -1}, "engine.failures.repair_s: .*greater than or equal to"),
        ({"mtbf_s": 9, "repair_s": float("nan")}, "engine.failures.repair_s: .*finite"),
        ({"mtbf_s": 9}, "engine.failures.repair_s is missing"),
        ({"mtbf_s": 9, "repair_s": 1, "mttr_s": 2}, "unknown key 'engine.failures.mttr_s'"),
        ({"mtbf_s": 9, "repiar_s": 1}, "did you mean 'repair_s'"),
    ],
)
def test_bad_failures(section, message):
    with pytest.raises(BadInput, match=message):
        resolve({**STUDY, "engine": {"failures": section}}, "here")
