import math

import pytest
from scipy import stats as scipy_stats

from sim.study.stats import aggregate, differences, student_t


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
