"""Arithmetic runs against the same values written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.study.statistics import runs as runs_module
from sim.study.statistics.runs import Runs

run = st.tuples(
    st.integers(0, 50), st.integers(0, 5), st.integers(1, 40), st.integers(0, 4), st.integers(0, 3)
)


def expanded(rows):
    """Return values and weights of runs given as rows."""
    values = [f + k * i for f, i, n, w, s in rows for k in range(n)]
    weights = [w + k * s for f, i, n, w, s in rows for k in range(n)]
    return np.array(values, float), np.array(weights, float)


def built(rows):
    return Runs.joined([Runs(*np.array(rows, float).T)])


@given(st.lists(run, min_size=1, max_size=30), st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_is_the_order_statistic(rows, share):
    values, weights = expanded(rows)
    if not weights.sum():
        return
    values, weights = values[weights > 0], weights[weights > 0]
    order = np.argsort(values, kind="stable")
    reached = np.searchsorted(np.cumsum(weights[order]), share * weights.sum() * (1 - 1e-12))
    wanted = values[order][reached]
    runs = built(rows)
    assert runs.quantile(share) == wanted
    with pytest.MonkeyPatch.context() as patch:  # the same by halving down to single values
        patch.setattr(runs_module, "EXPAND_STEPS", 0)
        assert runs.quantile(share) == wanted


@given(st.lists(run, min_size=1, max_size=30))
def test_mean_and_std_are_those_of_the_values(rows):
    values, weights = expanded(rows)
    runs = built(rows)
    assert runs.total() == weights.sum()
    if weights.sum():
        mean = np.average(values, weights=weights)
        assert runs.mean() == pytest.approx(mean)
        assert runs.std() == pytest.approx(np.average((values - mean) ** 2, weights=weights) ** 0.5)


def test_nothing_is_undefined():
    empty = Runs.of(np.array([]))
    assert np.isnan([empty.mean(), empty.std(), empty.quantile(0.5)]).all()


def test_a_hundred_million_values_cost_no_more_than_their_runs():
    n = 10_000
    first = np.linspace(1, 2, n)
    many = Runs(first, np.full(n, 1e-7), np.full(n, 1e4), np.ones(n), np.zeros(n))
    assert many.total() == 1e8
    assert many.quantile(0.5) == pytest.approx(1.5005, rel=1e-4)
    assert many.mean() == pytest.approx(1.5005, rel=1e-4)
