"""The invariants of design section 10, for every policy, over random runs.

I1-I6, I9 and I12 are checked on audited runs whose seeds Hypothesis draws (derandomized) and on
seeds 0..n-1; I7, I10 and I11 compare runs. I8 is `test_equality.py`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from record_checks import CASES, assert_same, check, labels, recorded, run
from scenarios import policy_names, scenario
from transforms import ROUTERS_BY_STATE, doubled, with_strangers

from sim.core.records import RunRecord

SEEDS, EXAMPLES, EXAMPLES_SLOW = 40, 10, 100
PAIRS, PAIRS_SLOW = 12, 100
TIMES = (
    *("arrival_s", "deadline_s", "queued_s", "prefill_start_s", "prefill_end_s"),
    *("transfer_start_s", "transfer_end_s", "first_token_s", "finish_s"),
)
HERE = Path(__file__).parent


@cache
def explore(policy: str, examples: int) -> Counter[str]:
    """Check the invariants over random runs of a policy; return the cases they reached."""
    reached: Counter[str] = Counter()

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), st.booleans())
    def invariants_hold(seed: int, fuse: bool) -> None:
        done = run(scenario(seed, policy), fuse)
        check(done)
        found = labels(done)
        for label in found:
            event(label)
        reached.update(found)

    for seed in range(SEEDS):
        invariants_hold = example(seed, seed % 4 < 3)(invariants_hold)
    invariants_hold()
    return reached


@pytest.fixture(scope="session")
def notes(tmp_path_factory):
    """A folder of this test run, the same in all of its processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def explored(policy: str, notes: Path) -> Counter[str]:
    """As `explore`, but what a process of this test run has found is noted for the others."""
    note = notes / f"reached-{policy}.json"
    if not note.exists():
        aside = note.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(explore(policy, EXAMPLES), default=int))
        aside.replace(note)
    return Counter(json.loads(note.read_text()))


@pytest.mark.parametrize("policy", policy_names())
def test_invariants(policy, notes):
    assert explored(policy, notes)


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_invariants_100(policy, record_property):
    figure = f"{SEEDS + EXAMPLES_SLOW} random runs"
    record_property("evidence", f"invariants I1-I6, I9, I12, {policy}: {figure}")
    assert explore(policy, EXAMPLES_SLOW)


# -- I7 -------------------------------------------------------------------------------------------


def test_same_bytes_in_fresh_processes():
    command = [sys.executable, str(HERE / "digest.py")]
    outputs = []
    for hash_seed in ("1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parents[1])}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].count("\n") == 10 * len(policy_names())


@pytest.mark.parametrize("policy", policy_names())
def test_same_run_twice(policy):
    for seed in range(4):
        case = scenario(seed, policy)
        assert_same(recorded(case), recorded(case))


# -- I10 ------------------------------------------------------------------------------------------


def check_doubling(policy: str, seeds: range) -> None:
    """Doubling every cost and time constant doubles every time, and changes nothing else."""
    for seed in seeds:
        case = scenario(seed, policy, exact=True)
        if case.split and "concurrency" in case.options:
            # In a closed loop arrivals inherit the link's rounding, and a policy that compares them
            # with times of its own may see a tie fall either way.
            continue
        # A shared link rounds to femtoseconds, and an instance sees what another of higher index
        # does to their queue a femtosecond later; everything else doubles to the last bit.
        loose = case.split or case.new_policy().queue_scope == "cluster"
        margin = 1e-9 if loose else 0.0
        once, twice = recorded(case), recorded(doubled(case))
        for name, values in once.requests.items():
            wanted = 2 * values if name in TIMES else values
            _assert_near(twice.requests[name], wanted, margin, f"{name} {seed}")
        assert once.counters == twice.counters
        _assert_near(twice.gaps_s, 2 * once.gaps_s, margin, f"gaps {seed}")
        # A tie that falls the other way cuts a span elsewhere: the steps are the same.
        names = () if loose else once.steps.dtype.names or ()
        for name in names:
            wanted = once.steps[name] * (2 if name.endswith(("_s", "_fs")) else 1)
            np.testing.assert_array_equal(twice.steps[name], wanted, err_msg=f"{name} {seed}")


def _assert_near(found: np.ndarray, wanted: np.ndarray, margin: float, message: str) -> None:
    if margin and found.dtype.kind in "if":
        np.testing.assert_allclose(found, wanted, rtol=0, atol=margin, err_msg=message)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=message)


@pytest.mark.parametrize("policy", policy_names())
def test_doubling_doubles(policy):
    check_doubling(policy, range(PAIRS))


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_doubling_doubles_100(policy):
    check_doubling(policy, range(PAIRS_SLOW))


# -- I11 ------------------------------------------------------------------------------------------


def check_relabelling(policy: str, seeds: range) -> None:
    """Rows that are rejected on arrival shift all ids, and change nothing else."""
    for seed in seeds:
        case = scenario(seed, policy)
        if case.trace.arrival_s is None:
            continue
        options = {k: v for k, v in case.options.items() if k not in ("concurrency", "think_s")}
        options["router"] = ROUTERS_BY_STATE[seed % len(ROUTERS_BY_STATE)]
        options["predictor"] = "oracle"  # it draws nothing for strangers
        case = case.but(options=options)
        if policy == "chaos":  # its groups are made of ids
            case = case.but(config=case.config.model_copy(update={"groups": 1}))
        relabelled, new_id = with_strangers(case, seed)
        _assert_relabelled(recorded(case), recorded(relabelled), new_id)


def _assert_relabelled(plain: RunRecord, other: RunRecord, new_id: np.ndarray) -> None:
    ours = np.isin(other.requests["request_id"], new_id)
    assert (other.requests["status"][~ours] == "rejected").all()
    for name, values in plain.requests.items():
        wanted = new_id[values] if name == "request_id" else values
        np.testing.assert_array_equal(other.requests[name][ours], wanted, err_msg=name)
    assert plain.counters == other.counters
    np.testing.assert_array_equal(plain.steps, other.steps)
    np.testing.assert_array_equal(plain.gaps_s, other.gaps_s)


@pytest.mark.parametrize("policy", policy_names())
def test_relabelling_changes_nothing(policy):
    check_relabelling(policy, range(PAIRS))


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_relabelling_changes_nothing_100(policy):
    check_relabelling(policy, range(PAIRS_SLOW))


# -- the cases ----------------------------------------------------------------------------------


def test_the_runs_reach_every_case(notes):
    """Last, so that the others have noted what they reached."""
    reached = sum((explored(name, notes) for name in policy_names()), Counter())
    assert [case for case in CASES if not reached[case]] == []
    kinds = {"Prefill", "Mixed", "Decode", "RunToCompletion", "Wait"}
    assert [kind for kind in sorted(kinds) if not reached[f"plan {kind}"]] == []
    assert reached["a priced step"] > 1000
