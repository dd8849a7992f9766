"""Energy from the step log is that of a naive walk through the steps, fused or not.

For every policy, on runs with failures, restarts, static batches, aborts and horizons.
"""

from collections import Counter

import pytest
from naive_energy import Work, energy_j
from scenarios import policy_names, scenario

from sim.core.simulation import simulate
from sim.costs.power import power_of
from sim.study.statistics.energy import (
    ClusterPower,
    InstancePower,
    idle_energy_j,
    phase_energy_j,
)
from sim.study.statistics.metrics import span_seconds

QUICK, FULL = 2, 100
MODELS = ("phase", "logistic", "mfu", "roofline")
REL = 1e-9
"""Of issue 8: the integral equals the sum over steps and idle gaps."""


def instance(gpus, busy):
    return InstancePower(
        power=power_of("h100"),
        gpus=gpus,
        busy_gpus=busy,
        peak_flops_per_s=Work.peak,
        bandwidth_bytes_per_s=Work.bandwidth,
        token_flops=Work.token,
        row_flops=Work.row,
        pair_flops=Work.pair,
        weight_bytes=Work.weight,
        kv_token_bytes=Work.kv,
    )


def run(case, fuse):
    return simulate(case.trace, case.new_policy(), case.specs, case.settings(fuse))


def end_s(case, record):
    horizon = case.options["horizon_s"]
    ends = (record.steps["start_s"] + span_seconds(record.steps)).tolist()
    return horizon or max([*ends, *record.requests["arrival_s"].tolist(), 0.0])


def check(policy, seed, reached):
    case = scenario(seed, policy)
    fused, single = run(case, True), run(case, False)
    duration_s = end_s(case, fused)
    gpus, busy = ((1, 1), (4, 2))[seed % 2]
    for model in MODELS:
        cluster = ClusterPower(model, (instance(gpus, busy),) * len(case.specs), 0.0, 0.0)
        naive = energy_j(single, duration_s, model, Work(), busy, gpus)
        for record in (fused, single):
            span_s = span_seconds(record.steps)
            found = phase_energy_j(record.steps, cluster, span_s)
            found["idle"] = idle_energy_j(record, cluster, duration_s, span_s)
            total = sum(naive.values())
            for phase, energy in found.items():
                assert energy == pytest.approx(naive[phase], rel=REL, abs=REL * total), phase
    reached.update(phase for phase, energy in naive.items() if energy)
    reached["down"] += bool(fused.outages)
    reached["fused"] += len(fused.steps) < len(single.steps)
    reached["out of memory"] += fused.counters["oom_events"] > 0


@pytest.mark.parametrize("policy", policy_names())
def test_energy_is_the_sum_over_steps_and_gaps(policy):
    reached = Counter()
    for seed in range(QUICK):
        check(policy, seed, reached)
    assert reached["idle"]
    assert reached["decode"]
    assert reached["prefill"] or reached["mixed"]


@pytest.mark.slow
def test_energy_is_the_sum_over_steps_and_gaps_100(record_property):
    reached = Counter()
    for policy in policy_names():
        for seed in range(FULL):
            check(policy, seed, reached)
    for case in ("idle", "prefill", "decode", "mixed", "down", "fused", "out of memory"):
        assert reached[case], case
    figure = f"{FULL} random configurations a policy, 4 power models, fused and not, within 1e-9"
    record_property("evidence", f"energy = sum over steps and idle gaps: {figure}")
