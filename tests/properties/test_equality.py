"""Fused spans and single steps give identical records, for every policy (I8).

Both runs are audited: before every plan all counters are recomputed naively (`audit.py`).
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from record_checks import assert_same, check, labels, recorded, run
from scenarios import ahead, policy_names, scenario

from policies import load
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace, to_fs

QUICK, FULL = 20, 400
QUICK_AHEAD = 12
QUICK_CHAOS = 80
"""The tests' own policy reaches more of the engine: pauses, timers, limits."""


def equal(policy: str, seeds: range) -> None:
    for seed in seeds:
        case = scenario(seed, policy)
        try:
            assert_same(run(case).record, run(case, fuse=False).record)
        except Exception as error:
            error.add_note(f"scenario({seed}, {policy!r}): {case.config!r}, {case.options}")
            raise


@pytest.mark.parametrize("policy", policy_names())
def test_fused_equals_step_by_step(policy):
    equal(policy, range(QUICK_CHAOS if policy == "chaos" else QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_fused_equals_step_by_step_400(policy, record_property):
    figure = f"{FULL} random configurations, records, counters and steps identical"
    record_property("evidence", f"fused = step by step, {policy}: {figure}")
    equal(policy, range(FULL))


SYNCHRONOUS = ("splitwise", "static", "uellm")
"""Policies none of whose steps can be formed one ahead."""


def equal_ahead(policy: str, seeds: range) -> Counter[str]:
    """Check the seeds with steps formed one ahead, invariants too; return the cases reached."""
    reached: Counter[str] = Counter()
    for seed in seeds:
        case = ahead(seed, policy)
        if case is None:
            continue
        reached["runs"] += 1
        try:
            fused = run(case)
            check(fused)
            assert_same(fused.record, run(case, fuse=False).record)
        except Exception as error:
            error.add_note(f"ahead({seed}, {policy!r}): {case.config!r}, {case.options}")
            raise
        reached.update(labels(fused))
    return reached


@pytest.mark.parametrize("policy", policy_names())
def test_fused_equals_step_by_step_ahead(policy):
    """Steps formed one ahead: the same, for every policy that decodes continuously."""
    reached = equal_ahead(policy, range(QUICK_AHEAD))
    assert (policy in SYNCHRONOUS) == (reached["runs"] == 0)
    for label in ("an arrival in mid-span", "a seat kept one step longer"):
        assert policy in SYNCHRONOUS or reached[label]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [p for p in policy_names() if p not in SYNCHRONOUS])
def test_fused_equals_step_by_step_ahead_400(policy, record_property):
    figure = f"{equal_ahead(policy, range(FULL))['runs']} random configurations, as above"
    record_property("evidence", f"fused = step by step, a step ahead, {policy}: {figure}")


@pytest.mark.parametrize("policy", ["continuous", "sarathi", "orca", "distserve"])
def test_prefix_caching_changes_nothing_where_nothing_is_found(policy):
    """Nobody shares, nobody is preempted or put back: the same decisions with and without."""
    alike = 0
    for seed in range(40):
        case = scenario(seed, policy)
        trace = replace(case.trace, prefix_group=None, prefix_len=None, block_hashes=None)
        options = case.options | {"enable_prefix_caching": False, "outages": None}
        off = recorded(case.but(trace=trace, options=options))
        on = recorded(case.but(trace=trace, options=options | {"enable_prefix_caching": True}))
        if off.requests["preemptions"].any():
            continue
        assert on.counters.pop("prefix_recomputed_tokens", 0) == 0
        assert on.counters.pop("prefix_recovered_tokens", 0) == 0
        assert_same(off, on)
        alike += 1
    assert alike >= 5


@pytest.mark.parametrize("policy", ["static", "continuous"])
@pytest.mark.parametrize("step_s", [0.25, 0.03, 0.0123])
def test_a_step_that_ends_at_the_horizon_is_not_over(policy, step_s):
    """Nor is it after a million steps, where a float does not hold every femtosecond."""
    cls = load(policy)
    cost = AffineCost(0.05, 0.0, step_s)
    specs = [InstanceSpec(cost, 100, 16)]
    for case in range(60):
        arrival_s = round(case * 17.77, 2)
        steps = 1 + case % 30
        horizon_fs = to_fs(arrival_s) + to_fs(0.05) + steps * to_fs(step_s)
        horizon_s = horizon_fs / 1e15
        if to_fs(horizon_s) != horizon_fs:
            continue
        trace = Trace(np.array([5]), np.array([40]), np.array([arrival_s]))
        for fuse in (True, False):
            settings = Settings(fuse, horizon_s=horizon_s)
            record = simulate(trace, cls(cls.Config()), specs, settings)
            ended = record.steps["n_steps"][record.steps["decode_requests"] > 0].sum()
            assert (case, fuse, ended) == (case, fuse, steps - 1)
            assert record.requests["emitted_tokens"].tolist() == [steps]
