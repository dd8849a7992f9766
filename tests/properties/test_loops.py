"""Both event loops give identical records, for every policy (`engine.loop`)."""

import pytest
from digest import digest
from scenarios import policy_names, scenario

from sim.core.simulation import simulate

QUICK, FULL = 20, 400


def equal(policy: str, seeds: range) -> None:
    for seed in seeds:
        found = []
        for loop in ("simpy", "fast"):
            case = scenario(seed, policy)
            case = case.but(options=case.options | {"loop": loop})
            record = simulate(case.trace, case.new_policy(), case.specs, case.settings())
            found.append((digest(record), record.events))
        assert found[0] == found[1], f"scenario({seed}, {policy!r})"


@pytest.mark.parametrize("policy", policy_names())
def test_fast_loop_equals_stock_simpy(policy):
    equal(policy, range(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_fast_loop_equals_stock_simpy_400(policy, record_property):
    figure = f"{FULL} random configurations, records, counters and events identical"
    record_property("evidence", f"fast loop = stock SimPy, {policy}: {figure}")
    equal(policy, range(FULL))
