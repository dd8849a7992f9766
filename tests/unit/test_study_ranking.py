import math

import pytest
from scipy import stats

from sim.study.statistics.ranking import holm, rankings

FAST = [10.0, 11.0, 9.0, 10.5, 9.5]
SLOW = [13.0, 14.5, 12.0, 13.0, 12.9]
ALIKE = [10.1, 10.9, 9.1, 10.4, 9.5]


def figures(**values):
    return {
        label: [{"mean_ttft_ms": v, "request_goodput": 100 / v} for v in of]
        for label, of in values.items()
    }


def test_the_best_comes_first_whichever_way_is_up():
    found = rankings(figures(slow=SLOW, fast=FAST))
    assert set(found) == {"mean_ttft_ms", "request_goodput"}
    for ranking in found.values():
        assert ranking["order"] == ["fast", "slow"]
        (pair,) = ranking["pairs"]
        assert (pair["better"], pair["worse"], pair["wins"], pair["n"]) == ("fast", "slow", 5, 5)
        assert pair["significant"]
    assert found["mean_ttft_ms"]["pairs"][0]["diff"] == pytest.approx(-3.08)
    assert found["request_goodput"]["pairs"][0]["percent_ci_low"] > 20


def test_tests_are_students_on_pairs():
    (pair,) = rankings(figures(a=FAST, b=SLOW))["mean_ttft_ms"]["pairs"]
    assert pair["p"] == pytest.approx(stats.ttest_rel(FAST, SLOW).pvalue)
    assert pair["p_holm"] == pair["p"]


def test_every_pair_is_corrected_for_the_others():
    ranking = rankings(figures(a=FAST, b=SLOW, c=ALIKE))["mean_ttft_ms"]
    pairs = {(p["better"], p["worse"]): p for p in ranking["pairs"]}
    assert len(pairs) == 3
    largest = max(pairs.values(), key=lambda p: p["p"])
    smallest = min(pairs.values(), key=lambda p: p["p"])
    assert {largest["better"], largest["worse"]} == {"a", "c"}
    assert not largest["significant"]
    assert largest["p_holm"] == pytest.approx(largest["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_holm_is_his_worked_out():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_equal_values_and_equal_differences():
    (pair,) = rankings(figures(a=FAST, b=FAST))["mean_ttft_ms"]["pairs"]
    assert (pair["wins"], pair["p"], pair["significant"]) == (0, 1.0, False)
    shifted = figures(a=[1.0, 2.0, 3.0], b=[2.0, 3.0, 4.0])
    (pair,) = rankings(shifted)["mean_ttft_ms"]["pairs"]
    assert (pair["p"], pair["significant"]) == (0.0, True)


def test_one_replication_is_ordered_but_not_tested():
    (pair,) = rankings(figures(a=[2.0], b=[1.0]))["mean_ttft_ms"]["pairs"]
    assert (pair["better"], pair["wins"], pair["significant"]) == ("b", 1, False)
    assert math.isnan(pair["p"])


def test_figures_that_somebody_lacks_are_not_ranked():
    some = figures(a=FAST, b=SLOW)
    some["a"][2]["request_goodput"] = math.nan
    assert list(rankings(some)) == ["mean_ttft_ms"]
