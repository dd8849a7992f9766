"""Instances killed at random times: every policy, both modes, every invariant."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from planned import PlannedOutages
from record_checks import assert_same, check, labels, row_ends_fs, run
from scenarios import Scenario, policy_names, scenario

from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.types import to_fs

KILLS, KILLS_SLOW = 40, 1000
PER_RUN = 5


def with_kills(case: Scenario, seed: int) -> Scenario:
    """Return a drained run with `PER_RUN` kills, at random times and at ends of steps."""
    rng = Random(f"kills/{seed}")
    case = case.but(options={**case.options, "outages": None, "horizon_s": None})
    calm = simulate(case.trace, case.new_policy(), case.specs, case.settings())
    times = sorted(_a_time(rng, calm) for _ in range(PER_RUN))
    plan: list[list[tuple[int, int]]] = [[] for _ in case.specs]
    for at in times:
        mine = rng.choice(plan)
        repair = to_fs(case.unit_s * rng.choice([0.3, 2, 20])) + 1
        if not mine or at > mine[-1][1]:
            mine.append((at, at + repair))
    return case.but(options={**case.options, "outages": PlannedOutages(plan)})


def _a_time(rng: Random, calm: RunRecord) -> int:
    """Return any time of a run, or one at which a step ends."""
    if len(calm.steps) and rng.random() < 0.4:
        at = rng.randrange(len(calm.steps))
        lasts_fs = int(row_ends_fs(calm.steps[at : at + 1])[0])
        return to_fs(float(calm.steps["start_s"][at])) + lasts_fs
    return int(rng.random() * to_fs(calm.end_s)) + 1


def kill(policy: str, kills: int) -> Counter[str]:
    """Kill instances until so many kills have hit; return the cases that were reached."""
    reached: Counter[str] = Counter()
    seed = 0
    while reached["kills"] < kills:
        case = with_kills(scenario(seed, policy), seed)
        try:
            done = run(case)
            check(done)
            assert_same(done.record, run(case, fuse=False).record)
        except Exception as error:
            error.add_note(f"with_kills(scenario({seed}, {policy!r}), {seed})")
            raise
        status = set(done.record.requests["status"].tolist())
        assert status <= {"finished", "rejected", "aborted"}
        assert len(done.record.requests["status"]) == len(case.trace)
        reached.update(labels(done))
        reached["kills"] += done.record.counters["failures"]
        reached["runs"] += 1
        seed += 1
    return reached


@pytest.mark.parametrize("policy", policy_names())
def test_kills(policy):
    assert kill(policy, KILLS)["a failure"] >= KILLS


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_1000_kills(policy, record_property):
    reached = kill(policy, KILLS_SLOW)
    put_back = sum(count for case, count in reached.items() if case.startswith("put back "))
    put_back -= reached["put back with its first token"]
    figure = (
        f"{reached['kills']} random kill times in {reached['runs']} runs, {put_back} requests put "
        "back, fused = step by step, I1-I6, I9 and I12 hold, every request finished or counted"
    )
    record_property("evidence", f"failures, {policy}: {figure}")
    assert np.isfinite(put_back)
    assert put_back > 0
