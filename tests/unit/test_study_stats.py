import math

import pytest
from scipy import stats as scipy_stats

from sim.study.statistics.stats import aggregate, differences, paired_p, student_t


def test_interval_is_students():
    values = [3.0, 5.0, 4.0, 8.0]
    interval = student_t(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=5.0, scale=scipy_stats.sem(values))
    assert (interval.mean, interval.n) == (5.0, 4)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_replication_has_no_interval():
    interval = student_t([2.0])
    assert interval.mean == 2.0
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_undefined_in_one_replication_is_undefined():
    assert math.isnan(student_t([1.0, math.nan]).mean)


def test_summary_carries_intervals_and_the_verdict_of_most():
    replications = [
        {"completed": n, "duration": 1.5 * n, "saturation": verdict}
        for n, verdict in ((4, "stable"), (8, "overloaded"), (6, "stable"))
    ]
    summary = aggregate(replications)
    assert summary["n_replications"] == 3
    assert (summary["completed"], summary["duration"]) == (6, 9.0)
    assert isinstance(summary["completed"], int)
    assert summary["saturation"] == "stable"
    half = 2 / 3**0.5 * scipy_stats.t.ppf(0.975, 2)
    assert summary["completed_ci_low"] == pytest.approx(6 - half)
    assert summary["duration_ci_high"] == pytest.approx(9 + 1.5 * half)


def test_two_equally_frequent_verdicts_count_as_the_worse():
    pair = [{"saturation": "stable"}, {"saturation": "backlogged"}]
    assert aggregate(pair)["saturation"] == "backlogged"


def test_differences_are_paired():
    base = [{"x": 10.0, "zero": 0}, {"x": 20.0, "zero": 0}, {"x": 30.0, "zero": 0}]
    mine = [{"x": 12.0, "zero": 1}, {"x": 24.0, "zero": 1}, {"x": 36.0, "zero": 1}]
    found = differences(mine, base)
    assert found["x"]["diff"] == 4.0
    assert found["x"]["percent"] == pytest.approx(20)
    assert found["x"]["percent_ci_low"] == pytest.approx(20)  # the same 20 % in every pair
    assert found["x"]["ci_high"] == pytest.approx(4 + scipy_stats.t.ppf(0.975, 2) * 2 / 3**0.5)
    assert found["x"]["n"] == 3
    assert math.isnan(found["zero"]["percent"])


def test_differences_of_classes_that_are_always_there():
    def run(share, ttft, arrived=5):
        figures = {"arrived": arrived, "slo_attainment": share, "mean_ttft_ms": ttft, "std": 1.0}
        return {
            "x": 1.0,
            "classes": {"source": {"chat": figures, "code": figures | {"arrived": 0}}},
        }

    found = differences([run(0.5, 20.0), run(0.6, 30.0)], [run(0.4, 10.0), run(0.4, 10.0)])
    assert set(found["classes"]["source"]) == {"chat"}
    chat = found["classes"]["source"]["chat"]
    assert set(chat) == {"slo_attainment", "mean_ttft_ms"}
    assert chat["slo_attainment"]["diff"] == pytest.approx(0.15)
    assert chat["mean_ttft_ms"]["percent"] == pytest.approx(150)
    gone = differences([run(0.5, 20.0)], [run(0.4, 10.0, arrived=0)])
    assert gone["classes"] == {"source": {}}


def test_the_paired_test_is_students():
    one, two = [3.0, 5.0, 4.0, 8.0], [2.0, 5.5, 3.0, 6.0]
    pairs = list(zip(one, two, strict=True))
    assert paired_p(pairs) == pytest.approx(scipy_stats.ttest_rel(one, two).pvalue)
    assert paired_p([(1.0, 2.0), (2.0, 3.0)]) == 0.0
    assert paired_p([(1.0, 1.0), (2.0, 2.0)]) == 1.0
    assert math.isnan(paired_p([(1.0, 2.0)]))


@pytest.mark.parametrize(
    ("saturation", "effective", "completed", "wanted"),
    [
        ("stable", 500.0, 9000, "stable"),
        ("stable", 60.0, 9000, "backlogged"),
        ("stable", 60.0, 200, "stable"),  # short, but its requests are independent
        ("stable", math.nan, 9000, "stable"),
        ("overloaded", 30.0, 9000, "overloaded"),
    ],
)
def test_runs_worth_few_requests_are_backlogged(saturation, effective, completed, wanted):
    one = {"saturation": saturation, "effective_requests": effective, "completed": completed}
    assert aggregate([one, one])["saturation"] == wanted
