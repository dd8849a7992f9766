"""Capacities of small experiments: what is searched, verified and told."""

import json
import math
from dataclasses import replace

import pytest

from sim.study.capacity.attainment import Target, at_rate, attained
from sim.study.capacity.crossing import Crossing
from sim.study.capacity.output import capacity_content, write_capacity
from sim.study.capacity.search import (
    CURVE,
    Point,
    _notes_there,
    _search_notes,
    capacities,
    lowest_share,
)
from sim.study.config import load_config, resolve
from sim.study.files import json_text
from sim.study.run import run
from sim.study.statistics.stats import student_t
from sim.types import BadInput

CONFIG = {
    "cluster": {"gpu": "a100-80gb", "count": 2, "model": "opt-13b", "profile": "distserve"},
    "policy": ["continuous", {"name": "distserve"}],
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
        merged = isinstance(section, dict) and name in CONFIG
        data[name] = {**CONFIG[name], **section} if merged else section
    return resolve(data, "test.yaml")


@pytest.fixture(scope="module")
def found():
    told = []
    capacity = capacities(experiment(), TARGET, progress=lambda *n: told.append(n))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    return capacity


def test_both_ends_of_every_replication_hold(found):
    for label, policy in found.policies.items():
        assert len(policy.crossings) == 3
        for index, crossing in enumerate(policy.crossings):
            low, high = crossing.low_per_s, crossing.high_per_s
            assert 0 < high - low <= found.width * high
            of = replace(found.experiment, policies=(policy.choice,))
            for rate, reaches in ((low, True), (high, False)):
                shares = attained(at_rate(of, rate), policy.choice, index)
                assert (shares.met[""] >= 0.8) is reaches, (label, index)


def test_the_capacity_is_the_mean_with_its_interval(found):
    for policy in found.policies.values():
        rates = [c.rate_per_s for c in policy.crossings]
        assert policy.rate_per_s == student_t(rates)
        assert policy.rate_per_s.low < policy.rate_per_s.mean < policy.rate_per_s.high


def test_differences_are_paired(found):
    first, second = found.policies.values()
    pairs = zip(first.crossings, second.crossings, strict=True)
    percent = [(b.rate_per_s / a.rate_per_s - 1) * 100 for a, b in pairs]
    assert found.differences == {"distserve": student_t(percent)}


def test_the_curve_is_what_a_run_shows_and_holds_the_capacity(found):
    policy = found.policies["continuous"]
    capacity = policy.rate_per_s.mean
    assert [p.rate_per_s for p in policy.curve] == [pytest.approx(s * capacity) for s in CURVE]
    assert policy.at_capacity in policy.curve
    alone = replace(found.experiment, policies=(policy.choice,))
    summary = run(at_rate(alone, policy.curve[0].rate_per_s)).summary
    for key in ("slo_attainment", "slo_attainment_ci_low", "p99_ttft_ms"):
        assert policy.curve[0].figures[key] == summary[key]


def test_the_same_in_several_processes():
    of = experiment(run={"replications": 2}, workload={"num_requests": 60})
    contents = [
        capacity_content(capacities(of, TARGET, width=0.05, jobs=jobs, curve=())) for jobs in (1, 2)
    ]
    assert json_text(contents[0]) == json_text(contents[1])


def test_per_gpu_figures(found):
    content = json.loads(json_text(capacity_content(found)))
    for policy in content["policies"].values():
        assert policy["num_gpus"] == 2
        for suffix in ("", "_ci_low", "_ci_high"):
            half = policy[f"capacity_per_s{suffix}"] / 2
            assert policy[f"capacity_per_gpu_per_s{suffix}"] == pytest.approx(half)
        there = policy["at_capacity"]
        assert there["request_goodput_per_gpu"] == pytest.approx(there["request_goodput"] / 2)
        assert set(there["by_class"]) == {"sharegpt", "alpaca"}


def test_the_config_written_runs_at_the_capacity(found, tmp_path):
    write_capacity(found, tmp_path)
    written = load_config(tmp_path / "distserve.yaml")
    policy = found.policies["distserve"]
    assert written.workload.arrivals.rate == policy.rate_per_s.mean
    figures = policy.at_capacity.figures
    assert run(written).summary["slo_attainment"] == figures["slo_attainment"]


def test_every_class_asks_for_more():
    one = experiment(policy="continuous", slo={"by": {"alpaca": {"ttft_ms": 60}}})
    rates = [
        next(iter(capacities(one, target, curve=()).policies.values())).rate_per_s.mean
        for target in (TARGET, Target(0.8, every_class=True))
    ]
    assert 0 < rates[1] < rates[0]
    assert lowest_share({"slo_attainment": 0.9}, every_class=False) == 0.9
    classes = {"source": {"a": {"slo_attainment": 0.95}, "b": {"slo_attainment": 0.4}}}
    assert lowest_share({"slo_attainment": 0.9, "classes": classes}, every_class=True) == 0.4


def test_no_rate_is_slow_enough():
    policy = capacities(experiment(slo={"ttft_ms": 1}), TARGET).policies["continuous"]
    assert policy.rate_per_s.mean == 0
    assert policy.at_capacity is None
    assert policy.curve == ()
    rate, shares = policy.best
    assert rate > 0
    assert shares.by_bound["ttft_ms"] == 0
    assert shares.by_bound["tpot_ms"] > 0.9


def test_every_rate_is_slow_enough():
    few = experiment(policy="continuous", workload={"num_requests": 3})
    policy = capacities(few, TARGET, curve=()).policies["continuous"]
    assert all(c.open for c in policy.crossings)
    assert "at every rate tried" in policy.notes[-1]
    assert capacity_content(capacities(few, TARGET))["policies"]["continuous"]["is_lower_bound"]


@pytest.mark.parametrize(
    "window",
    [
        {"run": {"stop": "horizon", "horizon_s": 20.0, "warmup_s": 5.0, "replications": 2}},
        {"workload": {"num_requests": None, "duration_s": 20.0}, "run": {"replications": 2}},
    ],
)
@pytest.mark.parametrize("ttft_ms", [1, 300])
def test_windows_always_hold_some_requests(window, ttft_ms):
    if "horizon_s" in window["run"]:
        window = {**window, "workload": {"num_requests": None, "duration_s": 30.0}}
    of = experiment(policy="continuous", slo={"ttft_ms": ttft_ms}, **window)
    policy = capacities(of, TARGET, width=0.05, curve=()).policies["continuous"]
    assert (policy.rate_per_s.mean > 0) is (ttft_ms == 300)
    least = min(rate for c in policy.crossings for rate, _ in c.tried)
    assert least >= 10 / 20


def test_widths_are_shares():
    for width in (0, 1, math.nan):
        with pytest.raises(BadInput, match="--width"):
            capacities(experiment(), TARGET, width)


def crossing(*tried, low=1.0, high=2.0):
    return Crossing(low, high, tried)


EVEN = crossing((1.0, True), (2.0, False))


@pytest.mark.parametrize(
    ("crossings", "said"),
    [
        ([EVEN, EVEN], []),
        ([EVEN], ["one replication gives no interval"]),
        (
            [EVEN, crossing((1.0, True), (2.0, False), (3.0, True))],
            ["not monotone in 1 of 2 replications (replication 1 misses the target at 2 requ"],
        ),
        ([EVEN, crossing((2.0, False), low=0.0)], ["1 of 2 replications reach the target at no"]),
        ([EVEN, crossing((2.0, True), high=math.inf)], ["1 of 2 replications reach the target at"]),
    ],
)
def test_what_is_told_of_the_search(crossings, said):
    notes = _search_notes(crossings)
    assert len(notes) == len(said)
    assert all(text in note for text, note in zip(said, notes, strict=True))


def test_what_is_told_of_the_runs_there():
    def point(rate, share, saturation="stable"):
        return Point(rate, {"slo_attainment": share, "saturation": saturation})

    curve = [point(1.0, 0.95), point(2.0, 0.85)]
    target = Target(0.9)
    assert _notes_there(None, [], target) == []
    assert _notes_there(curve[0], curve, target) == []
    note = _notes_there(curve[1], curve, target)[0]
    assert "0.85, below 0.9: it falls steeply; 1 requests/s" in note
    assert "no rate tried" in _notes_there(curve[1], curve[1:], target)[0]
    assert "backlogged" in _notes_there(point(1, 0.95, "backlogged"), curve, target)[0]
    rejecting = replace(curve[0], notes=("3 requests were rejected",))
    assert _notes_there(rejecting, curve, target) == ["at its capacity, 3 requests were rejected"]


def test_no_policy_runs_before_all_can(monkeypatch):
    monkeypatch.setattr("sim.study.capacity.search.saturation_rate", None)
    data = {
        "cluster": {"gpu": "a100-80gb", "count": 1, "model": "opt-13b", "profile": "roofline"},
        "policy": ["continuous", "static"],
        "speculative": {"method": "ngram", "num_speculative_tokens": 2},
        "workload": {
            "source": "alpaca",
            "num_requests": 5,
            "arrivals": {"process": "poisson", "rate": 1},
        },
        "slo": {"ttft_ms": 100},
    }
    with pytest.raises(BadInput, match="policy 'static' runs static batches"):
        capacities(resolve(data, "c.yaml"), Target(0.9))
