"""Attention by the batch: the bound against brute force, tiles of prompts, configs."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from sim.core.attention import Ctas, WholeRows
from sim.core.simulation import Simulation
from sim.core.spec import InstanceSpec, Settings
from sim.costs.catalogue import gpu_named
from sim.costs.simple import AffineCost
from sim.study.build import build, settings
from sim.study.config import EngineConfig, resolve
from sim.study.run import requests_of
from sim.types import BadInput, CostModel, DecodePiece

PAGE = Path(__file__).parents[2] / "docs" / "engine-modes.md"
FS_A_TOKEN = 5040 * 10**6
"""Divisible by what the tests divide by."""


class Tokens(CostModel):
    """A femtosecond price that says what it was asked for."""

    def decode(self, batch: int) -> DecodePiece:
        return DecodePiece(0, FS_A_TOKEN)

    def step(self, chunks: int, new: int, context: int, quad: int, batch: int, kv: int) -> int:
        return 10**20 * context + 10**10 * quad + kv

    def extrapolates(self, new: int, batch: int) -> bool:
        return False


def whole_rows(lens, count, kv_heads=1, group=1):
    made = WholeRows(Tokens(), SimpleNamespace(), Ctas(count, kv_heads, group))
    made.offsets = sorted(lens)
    return made


def makespan(lens, count, kv_heads=1):
    """Of a decoding batch, in tokens of one CTA, as it is priced."""
    kv = sum(lens)
    piece = whole_rows(lens, count, kv_heads).at(len(lens), kv, 0)
    price = Fraction(piece.base_fs + piece.slope_fs * kv, FS_A_TOKEN)
    return price * kv_heads / count


def best(rows, count):
    """The shortest makespan of all assignments."""
    loads = []
    for places in product(range(count), repeat=len(rows)):
        load = [0] * count
        for row, at in zip(rows, places, strict=True):
            load[at] += row
        loads.append(max(load))
    return min(loads)


def test_by_hand():
    assert makespan([7, 3], 2) == 7  # one row a CTA
    assert makespan([7, 3], 8) == 7  # six have nothing to do
    assert makespan([5, 5, 5], 2) == 10  # two on one
    assert makespan([9, 2, 2, 2], 2) == 9  # the short ones beside the long one
    assert makespan([6, 5, 4], 2) == 8  # at least two of them on one: 2 * 4; really 9
    assert makespan([4, 4, 4, 1], 2) == 8
    assert makespan([8, 2], 3, kv_heads=2) == 8  # four rows, the second wave is short
    assert makespan([8, 8], 3, kv_heads=2) == 16  # four rows on three CTAs


def test_never_more_than_the_best_assignment_of_whole_rows():
    """And exact for one row a CTA and for equal rows; over these, at most a third too low."""
    rng = Random(0)
    lowest = Fraction(1)
    for case in range(300):
        count, n = rng.choice([2, 3]), rng.randint(1, 6)
        rows = [rng.randint(1, 9)] * n if case % 5 == 0 else [rng.randint(1, 30) for _ in range(n)]
        found, true = makespan(rows, count), best(rows, count)
        assert Fraction(sum(rows), count) <= found <= true
        if n <= count or len(set(rows)) == 1:
            assert found == true
        lowest = min(lowest, found / true)
    assert lowest >= Fraction(2, 3)


def test_an_unsplit_row_takes_a_batch_of_one_as_many_times_longer_as_ctas_are_idle():
    """Llama-3.1-8B on an H100: 8 of 132 CTAs work."""
    assert makespan([4096], 132, kv_heads=8) == 4096
    piece = whole_rows([4096], 132, kv_heads=8).at(1, 4096, 0)
    assert piece.slope_fs == FS_A_TOKEN * 132 // 8
    assert piece.next is None


def test_prompts_are_dealt_out_by_tiles_of_their_queries():
    """Prompts of 40 and 24 new tokens behind 0 and 100, 4 heads a group: 160 and 96 query rows.

    Mean 128: tiles of 128, so 2 and 1, that read 40, 40 and 124 tokens; 2 KV heads: 6 rows. On 3
    CTAs two rows are one's: 2 * 40, or the longest: 124; an even share is 408 / 3 = 136. On 5: 124
    against 408 / 5 = 81.6.
    """
    rows = [(40, 40), (124, 24)]
    asked = (64, 164, 1000, 0, 0, 0)
    even = whole_rows([], 3, 2, 4).prompts(rows, *asked)
    assert even == Tokens().step(2, 64, 164, 1000, 0, 0)
    waited = whole_rows([], 5, 2, 4).prompts(rows, *asked)
    assert waited == Tokens().step(2, 64, 164 * 620 // 408, 1000 * 620 // 408, 0, 0)


def test_small_tiles_for_few_queries():
    """Two chunks of a token, 4 heads a group: tiles of 16, one each."""
    asked = (2, 30, 28, 0, 0, 0)
    found = whole_rows([], 2, 1, 4).prompts([(20, 1), (10, 1)], *asked)
    assert found == Tokens().step(2, 2, 40, 28 * 40 // 30, 0, 0)


def test_a_cost_model_of_pieces_has_to_know_its_terms():
    class Kinked(Tokens):
        def decode(self, batch):
            piece = DecodePiece(0, 1, 10)
            piece.next = DecodePiece(0, 2)
            return piece

    spec = InstanceSpec(Kinked(), 9, ctas=Ctas(2, 1))
    chosen = experiment()
    setup = build(chosen, chosen.policies[0])
    with pytest.raises(
        BadInput, match=r"cost model Kinked does not say what .*; valid: attention:"
    ):
        Simulation(requests_of(chosen, 0), setup.policy, [spec], Settings())


def test_the_usual_engine_asks_its_cost_model():
    chosen = experiment()
    setup = build(chosen, chosen.policies[0])
    trace = requests_of(chosen, 0)
    sim = Simulation(trace, setup.policy, setup.specs, settings(chosen, setup.policy, trace, 0))
    assert all(i.batch_cost is None for i in sim.instances)
    spec = InstanceSpec(AffineCost(0.0, 0.0, 1.0), 9, cascade_attention=True)
    sim = Simulation(trace, setup.policy, [spec], Settings())
    assert sim.instances[0].batch_cost is None  # nothing is cached that could be shared


# -- from a config --------------------------------------------------------------------------------


def experiment(model="llama-3.1-8b", gpu="h100", tp=1, **engine):
    return resolve(
        {
            "cluster": {"gpu": gpu, "count": tp, "model": model, "profile": "roofline",
                        "pools": [{"instances": 1, "tp": tp}]},
            "policy": "continuous",
            "workload": {"source": "sharegpt", "num_requests": 5,
                         "arrivals": {"process": "poisson", "rate": 1}},
            "engine": engine,
        },
        "test.yaml",
    )  # fmt: skip


def ctas(chosen):
    found = build(chosen, chosen.policies[0]).specs[0].ctas
    return found and (found.count, found.kv_heads, found.group)


def test_ctas_of_a_gpu():
    assert ctas(experiment()) is None
    assert ctas(experiment(attention="balanced")) is None
    assert ctas(experiment(attention="ragged")) == (132, 8, 4)
    assert ctas(experiment(attention="ragged", attention_ctas_per_sm=2)) == (264, 8, 4)
    assert ctas(experiment(attention="ragged", tp=4)) == (132, 2, 4)
    assert ctas(experiment("opt-13b", "a100-40gb", attention="ragged")) == (108, 40, 1)
    # 16 GPUs and 8 KV heads: each has one, and half of its query heads.
    assert ctas(experiment(tp=16, attention="ragged")) == (132, 1, 2)
    assert gpu_named("a100-80gb").sms == 108


def test_a_balanced_plan_is_host_time_unless_it_is_made_ahead():
    def step_fs(**engine):
        chosen = experiment(**engine)
        return build(chosen, chosen.policies[0]).specs[0].cost.decode(1).base_fs

    plain = step_fs()
    assert step_fs(attention="balanced") == plain + 10**11
    assert step_fs(attention="balanced", attention_plan_ms=0.2) == plain + 2 * 10**11
    assert step_fs(attention="balanced", async_scheduling=True) == plain
    assert step_fs(attention_plan_ms=0.2) == plain


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"attention": "even"}, r"engine.attention: .*'ragged' or 'balanced', got 'even'"),
        ({"attention_ctas_per_sm": 0}, r"engine.attention_ctas_per_sm: .*1.*got 0"),
        ({"attention_plan_ms": -1}, r"engine.attention_plan_ms: .*got -1"),
        ({"cascade_attention": True}, "needs enable_prefix_caching: true, got false"),
        (
            {"cascade_attention": True, "enable_prefix_caching": True, "attention": "ragged"},
            "exclude each other: .*; valid attention: fitted, balanced",
        ),
    ],
)
def test_bad_input(engine, said):
    with pytest.raises(BadInput, match=said) as caught:
        experiment(**engine)
    assert "\n" not in str(caught.value)


def test_a_device_without_thread_blocks():
    chosen = experiment("tiny-llama", "cpu", attention="ragged")
    with pytest.raises(BadInput, match=r"test.yaml: engine.attention: ragged .* 'cpu' has none"):
        build(chosen, chosen.policies[0])


def test_the_page_names_the_keys_and_their_defaults():
    rows = re.findall(r"^\| `engine\.(\w+)` \| (\S+) \|", PAGE.read_text(), re.M)
    assert len(rows) == 5
    for key, value in rows:
        default = EngineConfig.model_fields[key].default
        assert value == (str(default).lower() if isinstance(default, bool) else str(default))
