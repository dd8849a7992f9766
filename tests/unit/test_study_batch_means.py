import math

import numpy as np
import pytest
from scipy import stats

from sim.study.statistics.batch_means import batch_means, with_batch_means


def test_the_interval_is_students_over_forty_batches():
    values = np.random.default_rng(0).normal(5.0, 1.0, 4007)
    found = batch_means(values)
    means = values[7:].reshape(40, 100).mean(axis=1)
    low, high = stats.t.interval(0.95, 39, loc=means.mean(), scale=stats.sem(means))
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.interval.n == 40
    assert found.lag1 == pytest.approx(np.corrcoef(means[1:], means[:-1])[0, 1], abs=0.05)
    assert found.independent


def correlated(share, count=4000):
    """Return values of which each keeps a share of the one before."""
    values, kept = np.random.default_rng(1).normal(size=count), 0.0
    for at, value in enumerate(values):
        kept = values[at] = share * kept + value
    return values


def test_correlated_batches_are_made_longer_and_at_last_called_so():
    assert batch_means(correlated(0.5)).interval.n == 40
    assert batch_means(correlated(0.99)).interval.n < 40
    hopeless = batch_means(np.arange(4000.0))
    assert hopeless.interval.n == 10
    assert not hopeless.independent
    assert hopeless.lag1 > 0.6


def test_few_values_have_fewer_batches_or_none():
    assert batch_means(np.arange(399.0) % 7).interval.n == 20
    assert batch_means(np.arange(99.0)) is None
    assert batch_means(np.zeros(400)).interval.low == 0


def test_a_summary_gets_the_intervals_around_its_own_figures():
    summary = {"x": 5.0, "x_ci_low": math.nan, "x_ci_high": math.nan, "y": 1.0}
    values = np.random.default_rng(0).normal(5.0, 1.0, 4000)
    filled = with_batch_means(summary, {"x": values, "z": values[:50]})
    assert filled["x"] == 5.0
    assert filled["x_ci_high"] - 5.0 == pytest.approx(5.0 - filled["x_ci_low"])
    assert filled["x_ci_high"] - 5.0 == pytest.approx(1.96 / 4000**0.5, rel=0.5)
    assert filled["batch_means"] == {
        "x": {"batches": 40, "lag1": batch_means(values).lag1, "independent": True}
    }
    assert "batch_means" not in summary
