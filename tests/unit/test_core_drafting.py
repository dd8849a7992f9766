"""Who decides on K: a table by batch, or goodput."""

import pytest

from sim.core.acceptance import geometric
from sim.core.drafting import ByGoodput
from sim.core.executor import Executor
from sim.core.spec import Settings, Speculation
from sim.costs.simple import AffineCost
from sim.types import BadInput

COST = AffineCost(decode_base_s=0.008, decode_seq_s=0.0002, decode_kv_s=1e-7)
"""A row costs a fortieth of an empty step: drafting pays at small batches only."""


def test_table():
    speculation = Speculation(3, {64: 2, 1: 3, 256: 0}, geometric(0.6, 3, 0))
    batches = (1, 16, 63, 64, 128, 255, 256, 999)
    assert [speculation.k_by_batch(b) for b in batches] == [3, 3, 3, 2, 2, 2, 0, 0]
    late = Speculation(3, {4: 3}, geometric(0.6, 3, 0))
    assert [late.k_by_batch(b) for b in (1, 3, 4)] == [0, 0, 3]
    assert speculation.new_control(COST) is None


@pytest.mark.parametrize(
    ("k_max", "table", "line"),
    [
        (65, {1: 3}, "k_max 65: expected 0 to 64"),
        (-1, {}, "k_max -1"),
        (3, {1: 4}, "batch 1: 4 tokens; expected batches of 1 and more, and 0 to 3 tokens"),
        (3, {0: 2}, "batch 0: 2 tokens"),
    ],
)
def test_bad_table(k_max, table, line):
    with pytest.raises(BadInput) as caught:
        Speculation(k_max, table, geometric(0.6, 3, 0))
    assert line in str(caught.value)


def best(batch, rate, k_max):
    """Return the K of most tokens a second, tried one by one."""

    def goodput(k):
        return sum(rate**n for n in range(k + 1)) / COST.verify(batch, k).at(batch * 500)

    return max(range(k_max + 1), key=lambda k: (goodput(k), -k))


def test_goodput_takes_the_best_k_and_falls_to_none():
    control = ByGoodput(COST, 7)
    chosen = [control.choose(batch, batch * 500) for batch in (1, 4, 16, 64, 256, 1024)]
    assert chosen == [best(batch, 0.6, 7) for batch in (1, 4, 16, 64, 256, 1024)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] >= 4
    assert chosen[-1] == 0


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_goodput_learns(rate):
    control = ByGoodput(COST, 7, window=32)
    found = geometric(rate, 7, seed=1)
    rounds = [found.accepted(i, 400) for i in range(16)]
    for step in range(400):
        drafts = max(control.choose(16, 8000), 2)
        control.note(16, drafts, sum(min(int(r[step]), drafts) for r in rounds))
    assert control.rate == pytest.approx(rate, abs=0.06)
    assert abs(control.choose(16, 8000) - best(16, rate, 7)) <= 1


def test_goodput_returns_to_its_prior_when_nothing_is_drafted():
    control = ByGoodput(COST, 7, window=20, prior_rate=0.7)
    control.note(64, 3, 0)
    assert control.rate < 0.2
    for _ in range(400):
        control.note(64, 0, 0)
    assert control.rate == pytest.approx(0.7, abs=0.01)


def test_choosing_changes_nothing():
    control = ByGoodput(COST, 7)
    control.note(4, 3, 6)
    assert control.choose(4, 100) == control.choose(4, 100)


def test_speculation_makes_a_control_for_each_instance():
    speculation = Speculation(5, {1: 5}, geometric(0.6, 5, 0), lambda cost: ByGoodput(cost, 5))
    one, two = speculation.new_control(COST), speculation.new_control(COST)
    assert one is not two
    assert one.window == two.window == 32


def test_not_with_a_device_nor_ahead():
    class Device(Executor):
        def look(self):
            pass

        def step(self, *args):
            return 0

    speculation = Speculation(3, {1: 3}, geometric(0.6, 3, 0))
    for keys in (
        {"async_scheduling": True},
        {"executor": Device(), "fuse_steps": False},
    ):
        with pytest.raises(ValueError, match="speculation: not with"):
            Settings(speculation=speculation, **keys)
