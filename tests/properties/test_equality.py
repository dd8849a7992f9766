"""Fused spans and single steps give identical records, for every policy (I8).

Both runs are audited: before every plan all counters are recomputed naively (`audit.py`).
"""

from dataclasses import replace

import numpy as np
import pytest
from record_checks import assert_same, run
from scenarios import policy_names, scenario

from policies import load
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace, to_fs

QUICK, FULL = 20, 400
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


@pytest.mark.parametrize("policy", ["continuous", "sarathi", "orca", "distserve"])
def test_prefix_caching_changes_nothing_where_nothing_is_found(policy):
    """Nobody shares, nobody is preempted or put back: the same decisions with and without."""
    alike = 0
    for seed in range(40):
        case = scenario(seed, policy)
        trace = replace(case.trace, prefix_group=None, prefix_len=None, block_hashes=None)
        options = case.options | {"enable_prefix_caching": False, "outages": None}
        off = run(case.but(trace=trace, options=options)).record
        on = run(case.but(trace=trace, options=options | {"enable_prefix_caching": True})).record
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
