"""The fewest GPUs for a rate: the count by hand, layouts and spares on small experiments."""

import json
import math

import pytest

from sim.study.capacity import sizing
from sim.study.capacity import spares as spare_module
from sim.study.capacity.attainment import ALL, Target, at_rate, attained, on_pools
from sim.study.capacity.layouts import Layout, judged, measured
from sim.study.capacity.output import sizes_content
from sim.study.capacity.sizing import Demand, Least, fewest, size
from sim.study.capacity.spares import never_failing, spares
from sim.study.config import PoolConfig, resolve
from sim.study.files import json_text
from sim.types import BadInput

CONFIG = {
    "cluster": {"gpu": "a100-80gb", "count": 2, "model": "opt-13b", "profile": "distserve"},
    "policy": "continuous",
    "workload": {
        "source": "mixed",
        "mixture": {"sharegpt": 4, "alpaca": 1},
        "num_requests": 120,
        "max_model_len": 2048,
        "arrivals": {"process": "poisson", "rate": 1},
    },
    "slo": {"ttft_ms": 300, "tpot_ms": 60},
    "run": {"replications": 3},
}
TARGET = Target(0.8)


def experiment(**sections):
    data = dict(CONFIG)
    for name, section in sections.items():
        merged = isinstance(section, dict) and isinstance(CONFIG.get(name, {}), dict)
        data[name] = {**CONFIG.get(name, {}), **section} if merged else section
    return resolve(data, "test.yaml")


def mixed(instances, tp=1):
    return (PoolConfig(instances=instances, tp=tp),)


# -- counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 40, 99, 100])
@pytest.mark.parametrize("start", [0, 1, 5, 60, 100, 200])
def test_the_fewest_and_one_less_are_tried(wanted, start):
    tried = []

    def reaches(n):
        tried.append(n)
        return n >= wanted

    assert fewest(reaches, start, 100) == wanted
    assert {wanted, wanted - 1} - {0} <= set(tried)
    assert all(1 <= n <= 100 for n in tried)
    assert len(tried) == len(set(tried)) <= 16


def test_no_number_reaches():
    assert fewest(lambda n: False, 3, 100) == 0


# -- one layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("every_class", [False, True])
@pytest.mark.parametrize("instances", [1, 2])
def test_a_layout_is_judged_by_the_mean_of_its_replications(instances, every_class):
    of = at_rate(experiment(), 25.0 * instances)
    pools = mixed(instances)
    met = [attained(on_pools(of, pools), of.policies[0], i).met for i in range(3)]
    keys = (ALL, "sharegpt", "alpaca") if every_class else (ALL,)
    lowest = min(sum(m[key] for m in met) / 3 for key in keys)
    assert len({m[ALL] for m in met}) > 1
    assert judged(of, pools, Target(lowest, every_class)).reached
    assert not judged(of, pools, Target(lowest + 0.002, every_class)).reached
    shares = tuple(m[ALL] for m in met)
    for share in (lowest, lowest + 0.002):
        assert measured(of, pools, Target(share, every_class)).shares == shares


def test_replications_that_cannot_change_the_answer_are_not_run():
    of = at_rate(experiment(), 200.0)
    assert len(judged(of, mixed(1), Target(0.9)).shares) < 3


def test_layouts_have_gpus_and_names():
    layout = Layout((PoolConfig(role="prefill", instances=3, tp=2), *mixed(1, 4)), True, (1.0,))
    assert (layout.gpus, layout.instances) == (10, 4)
    assert str(layout) == "3 x prefill tp 2 + 1 x mixed tp 4"


# -- the whole search ---------------------------------------------------------------------------


def test_instances_of_one_role():
    of = experiment()
    (answer,) = size(of, Demand(16.0, TARGET))
    assert [(n.role, n.tp) for n in answer.needs] == [("mixed", tp) for tp in (1, 2, 4, 8)]
    assert "no profile" in answer.needs[-1].reason
    layouts = [answer.best, *answer.others]
    assert [layout.gpus for layout in layouts] == sorted(layout.gpus for layout in layouts)
    assert {pool.tp for layout in layouts for pool in layout.pools} == {1, 2, 4}
    for layout in layouts:
        (pool,) = layout.pools
        assert layout.reached
        if pool.instances > 1:
            less = mixed(pool.instances - 1, pool.tp)
            assert not judged(at_rate(of, 16.0), less, TARGET).reached
    assert all(not layout.reached and len(layout.shares) == 3 for layout in answer.fewer)
    assert answer.figures["slo_attainment"] == pytest.approx(answer.best.attainment.mean)


def test_split_roles():
    of = experiment(policy="distserve")
    demand = Demand(30.0, TARGET, gpus_per_node=2)
    (answer,) = size(of, demand)
    best = answer.best
    assert [pool.role for pool in best.pools] == ["prefill", "decode"]
    assert best.reached
    assert all(layout.gpus == best.gpus and layout.reached for layout in answer.others)
    assert all(layout.attainment.mean <= best.attainment.mean for layout in answer.others)
    assert all(not layout.reached for layout in answer.fewer)
    alone = {(n.role, n.tp): n.instances for n in answer.needs}
    assert set(alone) == {(role, tp) for role in ("prefill", "decode") for tp in (1, 2)}
    for pool in best.pools:
        assert pool.instances >= alone[pool.role, pool.tp]
    assert any("cluster.count, 2, is no limit" in note for note in answer.notes)


def made_up(reaches):
    """Return a `judged` that needs no run: the attainment is 1 / GPUs of prefill."""

    def judge(of, pools, target):
        counts = [(pool.instances, pool.tp) for pool in pools]
        return Layout(pools, reaches(*counts), (1 / (counts[0][0] * counts[0][1]),))

    return judge


def test_pairs_grow_from_what_each_role_needs_to_the_fewest_gpus(monkeypatch):
    """Together they need 5 GPUs of prefill and 2 decode instances; alone less would do."""
    monkeypatch.setattr(
        sizing, "judged", made_up(lambda one, two: one[0] * one[1] >= 5 and two[0] >= 2)
    )
    needs = [Least("prefill", 1, 3), Least("prefill", 2, 2), Least("prefill", 8, 1)]
    needs += [Least("decode", 1, 1), Least("decode", 2, 1)]
    found = sizing._pairs(experiment(), Demand(1.0, TARGET), needs)
    assert [str(layout) for layout in found] == ["5 x prefill tp 1 + 2 x decode tp 1"]
    needs = [*needs, Least("prefill", 5, 1)]
    found = sizing._pairs(experiment(), Demand(1.0, TARGET), needs)
    assert {str(layout) for layout in found} == {
        "5 x prefill tp 1 + 2 x decode tp 1",
        "1 x prefill tp 5 + 2 x decode tp 1",
    }


def test_pairs_that_never_reach_end_the_search(monkeypatch):
    monkeypatch.setattr(sizing, "judged", made_up(lambda one, two: False))
    needs = [Least("prefill", 1, 1), Least("decode", 1, 1)]
    assert sizing._pairs(experiment(), Demand(1.0, TARGET), needs) == []


def test_costs_and_per_gpu_figures():
    of, demand = experiment(), Demand(16.0, TARGET)
    content = sizes_content(of, demand, size(of, demand), 3.0)
    policy = json.loads(json_text(content))["policies"]["continuous"]
    assert json_text(sizes_content(of, demand, size(of, demand), 3.0)) == json_text(content)
    gpus = policy["best"]["num_gpus"]
    assert policy["best"]["rate_per_gpu_per_s"] == 16.0 / gpus
    costs = policy["costs"]
    assert costs["gpu_hours_per_day"] == 24 * gpus
    assert costs["cost_per_day"] == 72 * gpus
    assert costs["gpu_hours_per_million_requests"] == pytest.approx(gpus / 16 / 3600 * 1e6)
    assert costs["cost_per_million_requests"] == pytest.approx(gpus * 3 / 16 / 3600 * 1e6)
    assert 0 < costs["cost_per_million_output_tokens"] < costs["cost_per_million_requests"]
    free = sizes_content(of, demand, size(of, demand), None)["policies"]["continuous"]["costs"]
    assert set(free) == {"gpu_hours_per_day", "gpu_hours_per_million_requests"}


def test_no_layout_is_fast_enough():
    (answer,) = size(experiment(slo={"ttft_ms": 1}, run={"replications": 1}), Demand(4.0, TARGET))
    assert answer.best is None
    assert answer.spares is None
    assert answer.short.by_bound["ttft_ms"] == 0
    assert {need.instances for need in answer.needs} == {0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate_per_s": 0}, "--rate: 0 "),
        ({"rate_per_s": math.inf}, "--rate: inf"),
        ({"gpus_per_node": 0}, "--gpus-per-node: 0"),
    ],
)
def test_demands_that_cannot_be(values, said):
    with pytest.raises(BadInput) as error:
        Demand(**{"rate_per_s": 1.0, "target": TARGET, **values})
    assert said in str(error.value)


def test_a_model_that_fits_nowhere():
    big = experiment(cluster={"model": "opt-66b"})
    with pytest.raises(BadInput, match="continuous: no layout can be tried"):
        size(big, Demand(1.0, TARGET, gpus_per_node=1))


# -- failures -----------------------------------------------------------------------------------


def test_spares_are_added_until_the_target_is_reached_under_failures():
    of = at_rate(experiment(engine={"failures": {"mtbf_s": 2, "repair_s": 1}}), 9.0)
    pools = mixed(2)
    assert judged(never_failing(of), pools, TARGET).reached
    found = spares(of, pools, TARGET)
    assert found.availability == pytest.approx(2 / 3)
    assert found.without.pools == pools
    assert not found.without.reached
    assert found.one_each.pools == mixed(3)
    assert found.enough.reached
    count = found.enough.pools[0].instances
    assert count > 2
    assert count == 3 or not judged(of, mixed(count - 1), TARGET).reached
    assert found.notes == ()
    rare = at_rate(experiment(engine={"failures": {"mtbf_s": 400, "repair_s": 2}}), 9.0)
    assert "failures are to be expected" in spares(rare, pools, TARGET).notes[0]


def test_spares_are_the_fewest_gpus_of_either_role(monkeypatch):
    pools = (PoolConfig(role="prefill", instances=2, tp=2), PoolConfig(role="decode", instances=1))
    asked = []

    def reaches(one, two):
        asked.append((one[0], two[0]))
        return one[0] + two[0] >= 5

    monkeypatch.setattr(spare_module, "judged", made_up(reaches))
    assert str(spare_module._enough(experiment(), pools, TARGET)) == (
        "2 x prefill tp 2 + 3 x decode tp 1"
    )
    assert asked[0] == (2, 2)
    assert len(asked) == len(set(asked))


def test_nothing_fails_without_failures():
    of = experiment()
    assert spares(of, mixed(1), TARGET) is None
    (answer,) = size(of, Demand(9.0, TARGET))
    assert answer.spares is None


def test_the_search_is_made_without_failures():
    demand = Demand(9.0, TARGET, gpus_per_node=1)
    (calm,) = size(experiment(), demand)
    (failing,) = size(experiment(engine={"failures": {"mtbf_s": 6, "repair_s": 4}}), demand)
    assert failing.best == calm.best
    assert not failing.spares.without.reached
    content = sizes_content(experiment(), demand, [failing], 1.0)["policies"]["continuous"]
    assert content["failures"]["without_spare"]["reached"] is False
    assert content["failures"]["costs"]["cost_per_hour"] > content["costs"]["cost_per_hour"]
