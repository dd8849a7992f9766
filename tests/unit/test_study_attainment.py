"""Judging one run: the same shares as its summary, the same answer when it is ended early."""

import math

import numpy as np
import pytest

from sim.study.capacity.attainment import (
    ALL,
    Shares,
    Target,
    _limit,
    at_rate,
    attained,
    on_pools,
    rated,
    requests_notes,
    shortfall,
)
from sim.study.config import PoolConfig, resolve
from sim.study.run import replicate, requests_of
from sim.types import BadInput

CONFIG = {
    "cluster": {"gpu": "a100-80gb", "count": 2, "model": "opt-13b", "profile": "distserve"},
    "policy": "continuous",
    "workload": {
        "source": "mixed",
        "mixture": {"sharegpt": 1, "alpaca": 1},
        "num_requests": 200,
        "max_model_len": 2048,
        "arrivals": {"process": "poisson", "rate": 14},
    },
    "slo": {"ttft_ms": 300, "tpot_ms": 60, "by": {"alpaca": {"ttft_ms": 150, "e2e_ms": 20000}}},
}


def experiment(**sections):
    data = dict(CONFIG)
    for name, section in sections.items():
        merged = isinstance(section, dict)
        data[name] = {**CONFIG.get(name, {}), **section} if merged else section
    return resolve(data, "test.yaml")


@pytest.mark.parametrize("run", [{}, {"stop": "horizon", "horizon_s": 9.0, "warmup_s": 2.0}])
@pytest.mark.parametrize("policy", ["continuous", "distserve"])
def test_shares_are_those_of_the_summary(policy, run):
    of = experiment(policy=policy, run=run)
    shares = attained(of, of.policies[0], 0)
    summary = replicate(of, of.policies[0], 0).summary
    assert shares.met[ALL] == summary["slo_attainment"]
    assert shares.by_bound["ttft_ms"] == summary["slo_attainment_ttft"]
    assert shares.by_bound["tpot_ms"] == summary["slo_attainment_tpot"]
    for name, figures in summary["classes"]["source"].items():
        assert shares.met[name] == figures["slo_attainment"]
    assert 0 < shares.met[ALL] < 1
    assert shares.requests == sum(c["arrived"] for c in summary["classes"]["source"].values())


CLOCKS = ({}, {"ttft_clock": "engine"}, {"api_latency_ms": 40}, {"async_scheduling": True})


@pytest.mark.parametrize("engine", CLOCKS[1:])
def test_shares_go_by_the_clock(engine):
    of = experiment(engine=engine)
    assert (
        attained(of, of.policies[0], 0).met[ALL]
        == (replicate(of, of.policies[0], 0).summary["slo_attainment"])
    )


@pytest.mark.parametrize("engine", CLOCKS)
@pytest.mark.parametrize("run", [{}, {"stop": "horizon", "horizon_s": 9.0, "warmup_s": 2.0}])
def test_ending_a_run_changes_no_answer(run, engine):
    of = experiment(run=run, engine=engine)
    shares = attained(of, of.policies[0], 0)
    for name, share in shares.met.items():
        above = {name: share + 0.5 / shares.requests}
        assert attained(of, of.policies[0], 0, {name: share}) == shares
        assert shares.reach({name: share})
        ended = attained(of, of.policies[0], 0, above)
        assert ended is None or (ended == shares and (run or "ttft_clock" in engine))
        assert not shares.reach(above)


def test_misses_are_allowed_of_those_who_arrive_in_the_window():
    of = experiment(run={"stop": "horizon", "horizon_s": 9.0, "warmup_s": 2.0})
    trace = requests_of(of, 0)
    inside = (trace.arrival_s >= 2) & (trace.arrival_s <= 9)
    limit = _limit(of, trace, {ALL: 0.75, "alpaca": 0.5})
    assert limit.allowed == int(inside.sum() * 0.25)
    sizes = [int((inside & (trace.source == at)).sum()) for at in range(2)]
    allowed = dict(zip(trace.sources, limit.allowed_of, strict=True))
    sizes_of = dict(zip(trace.sources, sizes, strict=True))
    assert allowed == {"sharegpt": sizes_of["sharegpt"], "alpaca": sizes_of["alpaca"] // 2}


def test_a_target_in_every_class_asks_for_each():
    trace = requests_of(experiment(), 0)
    assert Target(0.8).of(trace) == {ALL: 0.8}
    assert Target(0.8, every_class=True).of(trace) == {ALL: 0.8, "sharegpt": 0.8, "alpaca": 0.8}


@pytest.mark.parametrize(
    "arrivals", [{"process": "poisson"}, {"process": "gamma", "cv": 3}, {"process": "constant"}]
)
def test_other_rates_have_the_same_requests_and_unit_gaps(arrivals):
    of = experiment(workload={"arrivals": {**arrivals, "rate": 1}})
    one, other = (requests_of(at_rate(of, rate), 1) for rate in (2.0, 7.0))
    np.testing.assert_array_equal(one.input_len, other.input_len)
    np.testing.assert_allclose(one.arrival_s * 2, other.arrival_s * 7, rtol=1e-12)


def test_the_times_of_a_trace_are_stretched(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_len,output_len\n0,10,3\n1,10,3\n4,10,3\n")
    plain = {"source": str(path), "mixture": None, "arrivals": None, "num_requests": None}
    of = experiment(workload=plain, slo={"by": {}})
    assert requests_of(at_rate(rated(of), 4.0), 0).arrival_s.tolist() == [0, 0.125, 0.5]
    assert "the trace" in requests_notes(of)[0]
    slow = experiment(workload={**plain, "arrivals": {"process": "trace", "time_scale": 3}})
    arrivals = at_rate(slow, 4.0).workload.arrivals
    assert (arrivals.rate, arrivals.time_scale) == (4.0, 1.0)  # a config takes one of them


def test_other_pools_bring_their_gpus():
    of = on_pools(experiment(), (PoolConfig(instances=3, tp=2), PoolConfig(instances=1, tp=4)))
    assert of.cluster.count == 10
    assert len(of.cluster.pools) == 2


def test_what_differs_from_rate_to_rate_is_told():
    assert requests_notes(experiment()) == []
    lasting = experiment(workload={"num_requests": None, "duration_s": 20})
    assert "duration_s" in requests_notes(lasting)[0]
    found = experiment(run={"warmup": "mser5"})
    assert "mser5" in requests_notes(found)[0]
    assert rated(found).run.warmup == "fixed"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"slo": {"ttft_ms": None, "tpot_ms": None, "by": {}}},
            "test.yaml: slo: no bound is set to judge by; set slo.ttft_ms, slo.tpot_ms or "
            "slo.e2e_ms (or slo.by.CLASS)",
        ),
        ({"workload": {"arrivals": {"process": "all-at-once"}}}, "all-at-once has no one rate"),
        ({"workload": {"arrivals": {"process": "closed", "concurrency": 3}}}, "closed has no one"),
        ({"run": {"warmup_s": 3}}, "test.yaml: run.warmup_s 3"),
        ({"workload": {"arrivals": None}}, "test.yaml: workload.arrivals is missing"),
    ],
)
def test_what_cannot_be_judged_at_any_rate(sections, said):
    with pytest.raises(BadInput) as error:
        rated(experiment(**sections))
    assert said in str(error.value)


@pytest.mark.parametrize("attainment", [0.0, 1.01, math.nan, -1])
def test_targets_are_shares(attainment):
    with pytest.raises(BadInput, match=r"--attainment: .*valid: above 0, up to 1"):
        Target(attainment)


@pytest.mark.parametrize(
    ("met", "by_bound", "said"),
    [
        ({}, {"ttft_ms": 0.95, "tpot_ms": 0.3}, "slo.tpot_ms (60 ms) fails: 30.0% of"),
        ({}, {"ttft_ms": 0.4, "e2e_ms": 0.6}, "slo.ttft_ms (300 ms) fails: 40.0% of"),
        ({}, {"e2e_ms": 0.6}, "slo.e2e_ms fails: 60.0% of"),
        ({}, {"ttft_ms": 0.95, "tpot_ms": 0.92}, "one by one (slo.ttft_ms 95.0%, slo.tpot_ms"),
        ({"": 0.95, "a": 0.99, "b": 0.5}, {"ttft_ms": 0.95}, "class b fails: 50.0%"),
    ],
)
def test_which_bound_fails(met, by_bound, said):
    shares = Shares({ALL: 0.3, **met}, by_bound, 10)
    assert said in shortfall(experiment(), shares, Target(0.9, every_class=True))
