"""Speculation in the engine: both ways of running agree, nothing is lost, K = 0 changes nothing.

The audit recomputes what it can see before every plan; the naive parts are here, request by
request, from the draws alone.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from record_checks import assert_same, check, labels, run
from scenarios import Scenario, policy_names, scenario

from policies import load
from sim.core.acceptance import Acceptance, Counts, geometric
from sim.core.drafting import ByGoodput, Controller
from sim.core.records import RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings, Speculation
from sim.costs.simple import AffineCost
from sim.types import CostModel, Decode, Plan, PlanError, Preemption, Trace, View

QUICK, FULL = 8, 400
COUNTS = ("spec_rounds", "draft_tokens", "accepted_tokens")
STATIC = ("static", "uellm", "smdp")
"""Policies (or options of them) that run batches to completion."""


class Flip(Controller):
    """Goes through numbers of drafted tokens: harder on the engine than any that learns."""

    def __init__(self, ks: list[int]) -> None:
        super().__init__(window=3)
        self.ks = ks
        self.seen = 0

    def choose(self, batch: int, kv: int) -> int:
        return self.ks[(self.seen + batch) % len(self.ks)]

    def note(self, batch: int, drafts: int, accepted: int) -> None:
        assert 0 <= accepted <= batch * drafts
        self.seen += batch + 3 * accepted


def fixed(k: int, acceptance: Acceptance) -> Speculation:
    """Return speculation of the same K at every batch."""
    return Speculation(k, {1: k}, acceptance)


def speculation(rng: Random) -> Speculation:
    """Return a random one: fixed K, a table by batch, or one chosen anew every three steps."""
    k_max = rng.choice([1, 2, 4, 7])
    acceptance = geometric(rng.choice([0.0, 0.5, 0.8, 1.0]), k_max, rng.randint(0, 9))
    kind = rng.choice(["fixed", "table", "flip", "goodput"])
    if kind == "table":
        table = {1: k_max, 2: rng.randint(0, k_max), 4: rng.randint(0, k_max), 6: 0}
        return Speculation(k_max, table, acceptance)
    ks = [rng.randint(0, k_max) for _ in range(4)]

    def control(cost: CostModel) -> Controller:
        return Flip(ks) if kind == "flip" else ByGoodput(cost, k_max, window=5)

    return Speculation(k_max, {1: k_max}, acceptance, None if kind == "fixed" else control)


def speculating(seed: int, policy: str) -> Scenario | None:
    """Return the run of `seed` with speculation; None if the policy runs static batches."""
    made = scenario(seed, policy)
    if policy in STATIC or policy == "chaos":
        return None
    return made.but(options=made.options | {"speculation": speculation(Random(f"{policy}/{seed}"))})


def equal(policy: str, seeds: range) -> Counter[str]:
    reached: Counter[str] = Counter()
    for seed in seeds:
        case = speculating(seed, policy)
        if case is None:
            continue
        try:
            fused = run(case)
            check(fused)
            assert_same(fused.record, run(case, fuse=False).record)
        except Exception as error:
            error.add_note(f"speculating({seed}, {policy!r}): {case.config!r}, {case.options}")
            raise
        reached["runs"] += 1
        reached["accepted"] += fused.record.counters["accepted_tokens"]
        reached.update(labels(fused))
    return reached


DECODING = [p for p in policy_names() if p not in (*STATIC, "chaos")]


@pytest.mark.parametrize("policy", DECODING)
def test_fused_equals_step_by_step(policy):
    assert equal(policy, range(QUICK))["accepted"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", DECODING)
def test_fused_equals_step_by_step_400(policy, record_property):
    reached = equal(policy, range(FULL))
    figure = f"{reached['runs']} random configurations with speculation, identical"
    record_property("evidence", f"fused = step by step, speculating, {policy}: {figure}")
    assert reached["preempted by recompute"]


@pytest.mark.parametrize("policy", DECODING)
def test_no_drafts_change_nothing(policy):
    """K = 0 equals no speculation, record for record."""
    none = Speculation(0, {1: 0}, geometric(0.7, 1, 0))
    for seed in range(QUICK):
        case = scenario(seed, policy)
        plain = run(case).record
        drafted = run(case.but(options=case.options | {"speculation": none})).record
        counts = [drafted.counters.pop(name) for name in COUNTS]
        assert counts == [0, 0, 0]
        assert_same(plain, drafted)


class Given(Acceptance):
    """Accepts what a test says, request by request and round by round."""

    def __init__(self, rounds: list[list[int]]) -> None:
        self.rounds = rounds

    def accepted(self, request_id: int, rounds: int) -> Counts:
        numbers = self.rounds[request_id]
        return np.array((numbers * rounds)[:rounds], np.uint8)


def alone(speculation: Speculation, outputs: list[int], blocks: int = 100) -> RunRecord:
    """Run requests of 5 tokens that arrive together on one instance of 4-token blocks."""
    cost = AffineCost(1.0, 0.0, 0.5, 0.25, 0.125)
    count = len(outputs)
    trace = Trace(np.full(count, 5), np.array(outputs), np.zeros(count))
    cls = load("continuous")
    settings = Settings(speculation=speculation)
    return simulate(trace, cls(cls.Config()), [InstanceSpec(cost, blocks, 4)], settings)


def test_a_request_by_hand():
    """Ten tokens, K = 3, accepted 2, 0, 3, 1: the first token, then 3, 1, 4 and the last one."""
    record = alone(fixed(3, Given([[2, 0, 3, 1]])), [10])
    # A step of one request: 0.5 + 4 rows * 0.25 + 0.125 for each of 5, 8, 9, 13 cached tokens.
    ends_s = 1.0 + np.cumsum([1.5 + 0.125 * kv for kv in (5, 8, 9, 13)])
    assert record.requests["first_token_s"].tolist() == [1.0]
    assert record.requests["finish_s"].tolist() == [ends_s[-1]]
    assert record.requests["emitted_tokens"].tolist() == [10]
    assert record.steps["kv_tokens"].tolist() == [0, 5, 8, 9, 13]
    # The last token ends the output: the one drafted token it would bring beside is not emitted.
    assert [record.counters[name] for name in COUNTS] == [4, 12, 5]


def test_k_by_batch_by_hand():
    """Two requests: K = 1; alone: K = 2. The draws of a round stay what they are."""
    record = alone(Speculation(2, {1: 2, 2: 1}, Given([[2], [2]])), [5, 9])
    rows = record.steps[1:]
    # Both: 2 tokens a round. Then the second alone, with 9 - 5 left: 3 and 1.
    assert rows["decode_requests"].tolist() == [2, 2, 1, 1]
    assert rows["kv_tokens"].tolist() == [10, 14, 9, 12]
    assert [record.counters[name] for name in COUNTS] == [6, 8, 6]


def test_drafts_beyond_the_step_budget_are_dropped():
    """Four requests in a budget of 10 tokens: one drafted token each, not three."""
    cls = load("continuous")
    policy = cls(cls.Config(max_num_seqs=4, max_num_batched_tokens=10))
    trace = Trace(np.full(4, 2), np.full(4, 9), np.zeros(4))
    spec = InstanceSpec(AffineCost(1.0, 0.0, 0.5), 100, 4)
    settings = Settings(speculation=fixed(3, geometric(1.0, 3, 0)))
    counters = simulate(trace, policy, [spec], settings).counters
    assert counters["draft_tokens"] == counters["spec_rounds"] == 16


def test_drafted_tokens_take_blocks():
    """A request of 5 + 8 tokens needs 3 blocks of 4, and one more for three drafted ones."""
    speculation = fixed(3, geometric(0.0, 3, 0))
    assert alone(speculation, [8], blocks=3).requests["status"].tolist() == ["rejected"]
    record = alone(speculation, [8], blocks=4)
    assert record.requests["status"].tolist() == ["finished"]
    assert record.counters["accepted_tokens"] == 0


def test_static_batches_do_not_speculate():
    """The plan is refused by name."""
    cls = load("static")
    trace = Trace(np.array([5]), np.array([5]), np.zeros(1))
    settings = Settings(speculation=fixed(2, geometric(0.5, 2, 0)))
    with pytest.raises(PlanError, match="drafts no tokens"):
        simulate(trace, cls(cls.Config()), [InstanceSpec(AffineCost(), 100, 4)], settings)


def test_a_preempted_request_goes_on_with_its_draws():
    """After 1 + 4 tokens it is evicted; its second prefill emits one, and three rounds one each."""
    cls = load("continuous")

    class Evicts(cls):  # type: ignore[misc, valid-type]
        def plan(self, view: View) -> Plan | None:
            for request in view.running.values():
                if view.num_decoding and view.generated(request) == 5:
                    return Decode(preempt=[Preemption(request)])
            return super().plan(view)

    trace = Trace(np.array([5]), np.array([9]), np.zeros(1))
    settings = Settings(False, speculation=fixed(3, Given([[3, 0, 0, 0]])))
    spec = InstanceSpec(AffineCost(1.0, 0.0, 0.5), 100, 4)
    record = simulate(trace, Evicts(cls.Config()), [spec], settings)
    assert record.requests["preemptions"].tolist() == [1]
    assert [record.counters[name] for name in COUNTS] == [4, 12, 3]


def test_a_first_token_from_the_decode_instance_comes_alone():
    """Rounds of 3 and 0 by turns: the first token alone, then one, then the three that are left."""
    cls = load("distserve")
    trace = Trace(np.array([5]), np.array([5]), np.zeros(1))
    cost = AffineCost(1.0, 0.0, 0.5)
    specs = [InstanceSpec(cost, 100, 4, role=role) for role in ("prefill", "decode")]
    settings = Settings(first_token="decode", speculation=fixed(3, Given([[3, 0]])))
    record = simulate(trace, cls(cls.Config()), specs, settings)
    assert [record.counters[name] for name in COUNTS] == [3, 9, 2]
