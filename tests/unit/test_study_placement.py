"""The placement search: bisection, candidates and replicas by hand; no run but a tiny one."""

import math
from dataclasses import replace

import pytest

from sim.study.capacity.placement import (
    AMPLE_INSTANCES,
    Attainment,
    Candidate,
    Layout,
    Placement,
    Search,
    at,
    attainment_of,
    best,
    bisect,
    chosen,
    configured_rate_per_s,
    fitting,
    judged,
    place,
    searchable,
)
from sim.study.config import resolve
from sim.types import BadInput, Deadlock

ONE, TWO, FOUR = Layout(1), Layout(2), Layout(4)


def experiment(policy="distserve", **sections):
    config = {
        "cluster": {"gpu": "a100-80gb", "count": 8, "model": "opt-13b", "profile": "distserve"},
        "policy": policy,
        "workload": {
            "source": "alpaca",
            "num_requests": 40,
            "max_model_len": 2048,
            "arrivals": {"process": "poisson", "rate": 4},
        },
        "slo": {"ttft_ms": 250, "tpot_ms": 100},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    return resolve(config, "test.yaml")


def prefill(layout, goodput=0.0, **rest):
    return Candidate("prefill", layout, None, goodput, **rest)


def decode(layout, goodput=0.0, **rest):
    return Candidate("decode", None, layout, goodput, **rest)


def both(one, two, goodput=0.0):
    return Candidate("both", one, two, goodput)


# -- bisection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "found"),
    [(0.0, 0.0), (0.49, 0.0), (0.5, 0.5), (0.99, 0.5), (5.6, 5.5), (8.0, 8.0), (15.49, 15.0)],
)
def test_bisection_finds_the_grid_point_below(capacity, found):
    tried = []

    def reached(rate):
        tried.append(rate)
        return rate <= capacity

    assert bisect(reached, 16.0, 0.5) == (found, False)
    assert len(tried) == 5  # 16 / 2**5 = 0.5
    assert tried[0] == 8.0


def test_bisection_says_when_every_rate_is_reached():
    assert bisect(lambda rate: True, 16.0, 0.5) == (15.5, True)


def test_a_finer_width_comes_closer():
    low, _ = bisect(lambda rate: rate <= math.pi, 16.0, 1e-6)
    assert math.pi - 1e-6 <= low <= math.pi


# -- judging ------------------------------------------------------------------------------------


def synthetic(rate_per_s, pools):
    """Prefill serves 3/s per GPU, decode 5/s per GPU; a share of 0.9 up to there, 0.5 beyond."""
    limit = {"prefill": 3.0, "decode": 5.0}
    shares = {
        p.role: 0.9 if rate_per_s <= limit[p.role] * p.instances * p.tp * p.pp else 0.5
        for p in pools
    }
    ttft, tpot = shares["prefill"], shares["decode"]
    return Attainment(ttft, tpot, min(ttft, tpot))


def test_phases_are_judged_by_their_own_bound_beside_an_ideal_phase():
    seen = []

    def attainment(rate_per_s, pools):
        seen.append([(p.role, p.instances, p.tp, p.pp) for p in pools])
        return synthetic(rate_per_s, pools)

    tasks = [prefill(ONE), prefill(TWO), decode(Layout(2, 2))]
    done, failed = judged(attainment, tasks, [ONE, TWO, Layout(2, 2)], Search(1.0))
    assert [c.goodput_per_gpu for c in done] == [3.0, 3.0, 5.0]
    assert [c.goodput_per_s for c in done] == [3.0, 6.0, 20.0]
    assert failed == []
    assert seen[0] == [("prefill", 1, 1, 1), ("decode", AMPLE_INSTANCES, 2, 1)]
    assert seen[-1] == [("prefill", AMPLE_INSTANCES, 2, 1), ("decode", 1, 2, 2)]


def test_pairs_are_judged_together_per_gpu():
    tasks = [both(ONE, ONE), both(TWO, ONE), both(ONE, FOUR)]
    done, _ = judged(synthetic, tasks, [ONE, TWO, FOUR], Search(1.0, "low"))
    # 3/s on 2 GPUs; min(6, 5) = 5/s on 3; 3/s on 5: rounded down to multiples of 0.5 per GPU.
    assert [c.goodput_per_gpu for c in done] == [1.5, 1.5, 0.5]


def test_means_below_the_target_by_rounding_reach_it():
    share = (0.7 + 0.1 + 0.1) - 1e-15
    done, _ = judged(
        lambda rate, pools: Attainment(share, 0, 0), [prefill(ONE)], [ONE], Search(1.0)
    )
    assert share < 0.9
    assert done[0].at_bound


@pytest.mark.parametrize("error", [BadInput("too long"), Deadlock("too long")])
def test_layouts_that_cannot_run_are_skipped_with_their_reason(error):
    def attainment(rate_per_s, pools):
        if pools[0].tp == 1:
            raise error
        return synthetic(rate_per_s, pools)

    told = []
    tasks = [both(ONE, TWO), both(TWO, ONE)]
    done, failed = judged(
        attainment, tasks, [ONE, TWO], Search(1.0, "low"), lambda *n: told.append(n)
    )
    assert [c.prefill for c in done] == [TWO]
    assert [(s.layout, s.reason) for s in failed] == [("prefill tp 1 + decode tp 2", "too long")]
    assert told == [(1, 2), (2, 2)]


# -- choosing -----------------------------------------------------------------------------------


def test_the_best_per_gpu_wins_then_few_gpus_then_few_stages():
    assert best([prefill(ONE, 2.0), prefill(TWO, 2.5)], "prefill").prefill == TWO
    assert best([prefill(TWO, 2.5), prefill(ONE, 2.5)], "prefill").prefill == ONE
    assert best([prefill(Layout(1, 2), 2.5), prefill(TWO, 2.5)], "prefill").prefill == TWO
    assert best([prefill(ONE, 0.0)], "prefill") is None
    assert best([prefill(ONE, 1.0)], "decode") is None


@pytest.mark.parametrize(
    ("rate", "replicas"), [(0.1, 1), (6.0, 1), (6.0001, 2), (12.0, 2), (13.0, 3)]
)
def test_replicas_are_the_ceiling_of_rate_over_goodput(rate, replicas):
    assert prefill(TWO, 3.0).replicas(rate) == replicas


def test_replicas_do_not_count_rounding_errors():
    assert (0.1 + 0.2) / 0.1 > 3
    assert prefill(ONE, 0.1).replicas(0.1 + 0.2) == 3


def test_phases_are_replicated_apart():
    candidates = [prefill(TWO, 3.0), prefill(ONE, 2.0), decode(ONE, 5.0), decode(TWO, 4.0)]
    placement = chosen(candidates, Search(20.0))
    assert placement == Placement(TWO, ONE, 4, 4)  # 20/6 and 20/5
    assert placement.gpus == 12
    assert [(p.role, p.instances, p.tp) for p in placement.pools] == [
        ("prefill", 4, 2),
        ("decode", 4, 1),
    ]


def test_pairs_are_replicated_together():
    placement = chosen([both(ONE, ONE, 1.0), both(TWO, ONE, 1.5)], Search(10.0, "low"))
    assert placement == Placement(TWO, ONE, 3, 3)  # 10 / 4.5


def test_a_phase_without_a_layout_leaves_no_placement():
    assert chosen([prefill(ONE, 1.0), decode(ONE, 0.0)], Search(1.0)) is None


# -- candidates ---------------------------------------------------------------------------------


def test_layouts_need_a_profile():
    fits, skipped = fitting(experiment(), Search(1.0))
    assert fits == [Layout(tp, pp) for tp in (1, 2, 4) for pp in (1, 2)]
    assert [s.layout for s in skipped] == ["tp 8", "tp 8 pp 2"]
    assert "no profile" in skipped[0].reason
    assert "more GPUs than the cluster, cluster.count is 8" in skipped[1].reason


def test_roofline_needs_none():
    fits, _ = fitting(experiment(cluster={"profile": "roofline", "count": 16}), Search(1.0))
    assert len(fits) == 8


def test_layouts_have_to_fit_and_to_stay_in_a_node():
    big = experiment(cluster={"model": "opt-66b"})
    fits, skipped = fitting(big, Search(1.0, gpus_per_node=4))
    reasons = {s.layout: s.reason for s in skipped}
    assert fits == [Layout(2), Layout(2, 2), Layout(4), Layout(4, 2)]
    assert "does not fit" in reasons["tp 1"]
    assert reasons["tp 8"] == "tp does not cross nodes, which have 4 GPUs"


def test_other_rate_other_pools():
    changed = at(experiment(), 7.0, (TWO.pool("prefill", 3), ONE.pool("decode", 2)))
    assert changed.workload.arrivals.rate == 7.0
    assert changed.cluster.count == 8
    assert [(p.role, p.instances) for p in changed.cluster.pools] == [("prefill", 3), ("decode", 2)]


def test_attainment_falls_with_the_rate_and_repeats():
    attainment = attainment_of(experiment(workload={"source": "sharegpt"}))
    pools = (ONE.pool("prefill"), ONE.pool("decode"))
    slow, fast = attainment(1.0, pools), attainment(100.0, pools)
    assert slow.ttft > fast.ttft
    assert slow.total <= min(slow.ttft, slow.tpot)
    assert attainment(1.0, pools) == slow


def test_attainment_is_the_mean_of_the_replications():
    pools = (ONE.pool("prefill"), ONE.pool("decode"))
    two = experiment(workload={"source": "sharegpt"}, run={"replications": 2})
    one = replace(two, run=two.run.model_copy(update={"replications": 1}))
    assert attainment_of(two)(12.0, pools).ttft != attainment_of(one)(12.0, pools).ttft


# -- the whole search ---------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "tried", "skipped"), [("high", 8, 4), ("low", 5, 15)])
def test_a_small_search(algorithm, tried, skipped, monkeypatch):
    monkeypatch.setattr("sim.study.capacity.placement.AMPLE_INSTANCES", 32)
    small = experiment(cluster={"count": 4}, slo={"ttft_ms": 60})
    search = Search(30.0, algorithm, gpus_per_node=3, max_gpu_rate_per_s=64, width_per_s=16)
    found = place(small, search)
    # tp 1 and 2 with one stage or two; pairs of at most 3 GPUs: (1, 1), (1, 2) and (2, 1) twice.
    assert (len(found.candidates), len(found.skipped)) == (tried, skipped)
    assert found.placement is not None
    assert found.check is not None
    assert place(small, search) == found


def test_short_runs_and_small_clusters_are_told():
    search = Search(500.0, max_gpu_rate_per_s=4, width_per_s=2)
    notes = " ".join(place(experiment(cluster={"count": 2}), search).notes)
    assert "40 requests arrive within" in notes
    assert "reach the target at every rate tried" in notes
    assert "cluster.count is 2" in notes


def test_huge_placements_are_not_run():
    search = Search(1e6, max_gpu_rate_per_s=4, width_per_s=2)
    found = place(experiment(cluster={"count": 2}), search)
    assert found.placement.prefill_instances >= 100_000
    assert found.check is None


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate_per_s": 0.0}, "--rate: 0 "),
        ({"rate_per_s": math.inf}, "--rate: inf"),
        ({"attainment": 0.0}, "--attainment: 0;"),
        ({"attainment": math.nan}, "--attainment: nan"),
        ({"attainment": 1.1}, "--attainment: 1.1"),
        ({"gpus_per_node": 0}, "--gpus-per-node: 0"),
        ({"max_gpu_rate_per_s": -1.0}, "--max-rate: -1"),
        ({"width_per_s": 16.0}, "--width: 16"),
        ({"width_per_s": 0.0}, "--width: 0"),
        ({"algorithm": "mid"}, "'mid'; valid: high, low"),
    ],
)
def test_searches_that_cannot_be(values, said):
    with pytest.raises(BadInput) as error:
        Search(**{"rate_per_s": 1.0, **values})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"slo": {"ttft_ms": None}}, "test.yaml: slo.ttft_ms is missing"),
        ({"slo": {"tpot_ms": None}}, "test.yaml: slo.tpot_ms is missing"),
        ({"workload": {"arrivals": {"process": "all-at-once"}}}, "all-at-once has no rate to vary"),
        ({"workload": {"arrivals": None}}, "none has no rate to vary"),
        ({"run": {"warmup_s": 1}}, "run.warmup_s 1: at other rates"),
        ({"policy": "continuous"}, "'continuous' has no prefill and decode instances"),
        ({"policy": ["splitwise", "continuous"]}, "a placement is for one policy"),
        ({"cluster": {"gpu": "abacus"}}, "abacus"),
        ({"cluster": {"model": "opt-66b", "count": 1}}, "no layout can be tried: 8 skipped"),
    ],
)
def test_experiments_that_cannot_be_placed(sections, said):
    with pytest.raises(BadInput) as error:
        place(experiment(**sections), Search(1.0))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_policy_is_distserve_where_several_are_listed():
    listed = experiment(["continuous", {"name": "distserve", "max_num_seqs": 8}])
    (policy,) = searchable(listed).policies
    assert (policy.name, policy.params.max_num_seqs) == ("distserve", 8)
    assert searchable(experiment("splitwise")).policies[0].name == "splitwise"


def test_the_rate_is_the_configs_or_has_to_be_given():
    assert configured_rate_per_s(experiment()) == 4.0
    with pytest.raises(BadInput, match="--rate"):
        configured_rate_per_s(experiment(workload={"arrivals": {"process": "all-at-once"}}))
