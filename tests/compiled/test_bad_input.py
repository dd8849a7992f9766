"""What a compiled core refuses: one clear line each, as interpreted."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from forms import ROOT, SITE, why_skipped

REASON = why_skipped()
compiled = pytest.param(
    SITE, id="compiled", marks=pytest.mark.skipif(REASON is not None, reason=REASON or "")
)
both_forms = pytest.mark.parametrize("root", [pytest.param(ROOT, id="interpreted"), compiled])

SETUP = """
import numpy as np
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Decode, Policy, Prefill, Trace

def run(policy, input_len=5, output_len=4, blocks=100):
    trace = Trace(np.array([input_len]), np.array([output_len]), np.array([0.0]))
    specs = [InstanceSpec(AffineCost(0.1, 0.0, 0.1), blocks)]
    return simulate(trace, policy, specs, Settings())

class Plain(Policy):
    def plan(self, view):
        if view.num_waiting:
            return Prefill(list(view.waiting))
        return Decode()
"""


def last_line(root: Path, program: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-P", "-c", SETUP + textwrap.dedent(program)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout).strip().splitlines()[-1]


@both_forms
def test_a_users_policy_runs(root):
    assert last_line(root, "print(run(Plain()).requests['status'][0])") == "finished"


@both_forms
def test_what_a_users_class_sets_in_its_body_counts(root):
    line = last_line(
        root,
        """
        class Shared(Plain):
            queue_scope = "pool"
        run(Shared())
        """,
    )
    assert line == "ValueError: queue_scope 'pool'; valid: ('instance', 'cluster')"
    line = last_line(
        root,
        """
        class Slow(Plain):
            charges_overhead = True
            operation_counts = {"looks": 3}
            def overhead_s(self, view):
                return 7.0
        record = run(Slow())
        print(record.requests["prefill_end_s"][0], record.counters["policy_looks"])
        """,
    )
    assert line == "7.1 3"


@both_forms
def test_a_duck_typed_policy(root):
    line = last_line(root, "class Duck:\n    plan = Plain.plan\nrun(Duck())")
    assert line.startswith("TypeError: sim.types.policy.Policy object expected; got ")
    assert line.endswith("Duck")


@both_forms
def test_a_wrong_plan_type(root):
    line = last_line(
        root,
        """
        class Wrong(Plain):
            name = "wrong"
            def plan(self, view):
                return "decode"
        run(Wrong())
        """,
    )
    assert line.startswith(
        "sim.types.errors.PlanError: policy 'wrong' on instance 0 at 0.0 s: plan()"
    )
    assert "str" in line


@both_forms
def test_a_policys_own_type_error_stays_one(root):
    line = last_line(
        root,
        """
        class Broken(Plain):
            def plan(self, view):
                return len(3)
        run(Broken())
        """,
    )
    assert line == "TypeError: object of type 'int' has no len()"


@both_forms
@pytest.mark.parametrize("name", ["input_len", "output_len"])
def test_a_count_over_the_range(root, name):
    line = last_line(root, f"run(Plain(), {name}=2**31, blocks=2**40)")
    assert line == (
        f"sim.types.errors.BadInput: trace row 0: {name} 2147483648 is over the largest count, "
        "2147483647"
    )


@both_forms
def test_a_sum_over_the_range(root):
    line = last_line(
        root,
        """
        trace = Trace(np.array([2**31 - 1] * 2), np.array([4] * 2), np.array([0.0] * 2))
        specs = [InstanceSpec(AffineCost(0.1, 0.0, 0.1), 2**40)]
        simulate(trace, Plain(), specs, Settings())
        """,
    )
    assert line.startswith(
        "sim.types.errors.BadInput: a step is too long or too large for the records (over 9,223 s, "
    )


@both_forms
def test_the_clock_beyond_63_bits(root):
    """9,223 s in femtoseconds: from there on a clock in a machine word would wrap."""
    line = last_line(
        root,
        """
        trace = Trace(np.array([5]), np.array([4]), np.array([1e5]))
        specs = [InstanceSpec(AffineCost(0.1, 0.0, 1e3), 100)]
        print(*simulate(trace, Plain(), specs, Settings()).requests["finish_s"])
        """,
    )
    assert line == "103000.1"


@both_forms
def test_a_step_beyond_the_small_integers_of_the_compiler(root):
    """Those end at 4,611 s, where sums go on as Python integers."""
    line = last_line(
        root,
        """
        trace = Trace(np.array([2**30]), np.array([3]), np.array([0.0]))
        specs = [InstanceSpec(AffineCost(0.1, 0.0, 0.1, 0.0, 5e-6), 2**40)]
        print(*simulate(trace, Plain(), specs, Settings()).requests["finish_s"])
        """,
    )
    assert float(line) == pytest.approx(0.3 + 5e-6 * (2 * 2**30 + 1), rel=1e-12)
