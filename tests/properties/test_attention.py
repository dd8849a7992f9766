"""Engines that price steps by their batch: fused = step by step, each price by definition."""

from __future__ import annotations

from collections import Counter
from copy import copy
from fractions import Fraction
from random import Random

import naive_attention as naive
import pytest
from knotted import KnottedCost
from record_checks import assert_same
from scenarios import Scenario, ahead, policy_names, scenario

from sim.core import attention
from sim.core.attention import Ctas, SharedPrefixes, WholeRows
from sim.core.records import RunRecord
from sim.core.simulation import Simulation
from sim.costs.simple import AffineCost
from sim.types import DecodePiece

QUICK, QUICK_CHAOS, FULL = 4, 24, 150
REACHED = ("rows wait for the longest", "evenly shared", "a floor", "a line ends in a span",
           "prompts unevenly", "blocks read once")  # fmt: skip


def with_attention(seed: int, policy: str) -> Scenario:
    """Return the run of `seed` on an engine of whole rows, or one that reads shared blocks once."""
    rng = Random(f"attention/{policy}/{seed}")
    case = (ahead(seed, policy) if rng.random() < 0.3 else None) or scenario(seed, policy)
    ctas = None
    if rng.random() < 0.7:
        ctas = Ctas(rng.choice([1, 2, 3, 8, 20, 108]), rng.choice([1, 2, 3, 8]), rng.choice([1, 4]))
    specs = [copy(spec) for spec in case.specs]
    for spec in specs:
        spec.ctas = ctas
        spec.cascade_attention = ctas is None
        if isinstance(spec.cost, KnottedCost):  # it does not know its terms
            unit_s = case.unit_s
            spec.cost = AffineCost(unit_s, 0.1 * unit_s, unit_s, 0.03 * unit_s, 0.01 * unit_s)
    caching = case.options["enable_prefix_caching"] or ctas is None
    return case.but(specs=specs, options=case.options | {"enable_prefix_caching": caching})


class Watched:
    """Compares prices with the definitions, and notes what came up."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()

    def piece(self, made: DecodePiece, prices: attention.BatchCost) -> None:
        """The piece holds from here to its end."""
        instance = prices.instance
        lens, kv = naive.cached(instance), instance.kv_tokens
        batch = len(lens)
        assert kv == sum(lens)
        last = 0 if made.next is None else -((kv - made.kv_end) // batch) - 1
        for steps in {0, min(last, 40), last}:
            tokens = kv + batch * steps
            read = self.read(prices, [length + steps for length in lens], tokens)
            wanted = naive.decode_price(prices.cost, tokens, read, batch)
            rounded = Fraction(batch * (max(lens) + steps), 2)  # a token of a row, in the batch
            assert abs(made.base_fs + made.slope_fs * tokens - wanted) <= rounded + 1
        terms = prices.terms(batch)
        self.reached["a floor"] += made.slope_fs == 0 < terms.attention_fs
        self.reached["a line ends in a span"] += last > 0
        uneven = read > kv + batch * last if made.next else read > kv
        self.reached["rows wait for the longest" if uneven else "evenly shared"] += 1

    def read(self, prices: attention.BatchCost, lens: list[int], tokens: int) -> Fraction:
        if isinstance(prices, WholeRows):
            return naive.busy_tokens(lens, prices.ctas)
        shared = naive.shared_tokens(prices.instance)
        assert prices.saved_tokens == shared
        self.reached["blocks read once"] += shared > 0
        return Fraction(tokens - shared)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    watch = Watched()

    def decode(self: attention.BatchCost, batch: int) -> DecodePiece:
        made = attention.BatchCost.decode(self, batch)
        watch.piece(made, self)
        return made

    def prompts(self, rows, new, context, quad, batch, kv, read):  # type: ignore[no-untyped-def]
        found = self.plain_prompts(rows, new, context, quad, batch, kv, read)
        over = naive.factor(naive.tiles_of(rows, self.ctas), self.ctas.count)
        watch.reached["prompts unevenly"] += over > 1
        context, quad = int(context * over), int(quad * over)
        assert found == self.mixed(len(rows), new, context, quad, batch, kv, read)
        if batch and rows:
            assert read == int(naive.busy_tokens(naive.cached(self.instance), self.ctas))
        return found

    for cls in (WholeRows, SharedPrefixes):
        monkeypatch.setattr(cls, "decode", decode)
    monkeypatch.setattr(WholeRows, "plain_prompts", WholeRows.prompts, raising=False)
    monkeypatch.setattr(WholeRows, "prompts", prompts)
    return watch.reached


def run(case: Scenario, fuse: bool = True) -> RunRecord:
    return Simulation(case.trace, case.new_policy(), case.specs, case.settings(fuse)).run()


def equal(policy: str, seeds: range) -> None:
    for seed in seeds:
        case = with_attention(seed, policy)
        try:
            assert_same(run(case), run(case, fuse=False))
        except Exception as error:
            error.add_note(f"with_attention({seed}, {policy!r}): {case.config!r}, {case.options}")
            raise


@pytest.mark.parametrize("policy", policy_names())
def test_fused_equals_step_by_step(policy, watched):
    equal(policy, range(QUICK_CHAOS if policy == "chaos" else QUICK))
    if policy == "chaos":
        assert [case for case in REACHED if not watched[case]] == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", policy_names())
def test_fused_equals_step_by_step_150(policy, watched, record_property):
    figure = f"{FULL} random configurations, records identical, every price by the definition"
    record_property(
        "evidence", f"fused = step by step, whole rows and cascades, {policy}: {figure}"
    )
    equal(policy, range(FULL))
