"""What points take on a machine whose speed changes: made-up visits of known times."""

import numpy as np
import pytest

from calibrate.speed import usual_ms


def visits(turns, slow, noise, seed=0, points=60):
    """Return numbers and times of visits: own time x speed of the moment x noise."""
    random = np.random.default_rng(seed)
    own = np.exp(random.uniform(0.0, 3.0, points))
    of = np.concatenate([random.permutation(points) for _ in range(turns)])
    factors = slow(np.arange(len(of)) / len(of))
    return own, of, own[of] * factors * np.exp(noise * random.standard_normal(len(of)))


def spells(at):
    """Half as fast again for a tenth of the time, mostly 1, at times a little slower."""
    return np.where(at % 0.3 < 0.03, 0.6, np.where(at % 0.17 < 0.05, 1.3, 1.0))


def test_without_noise_the_times_come_back():
    own, of, times = visits(9, np.ones_like, 0.0)
    found, slow = usual_ms(of, times)
    assert found == pytest.approx(own)
    assert slow == pytest.approx(np.ones(len(of)))


def test_few_visits_are_told_from_the_speed_of_the_moment():
    """Where the fastest visit of each point is off by what the moment was."""
    own, of, times = visits(9, spells, 0.05)
    found, slow = usual_ms(of, times)
    missed = np.abs(found / own / np.median(found / own) - 1)
    fastest = np.array([times[of == point].min() for point in range(len(own))]) / own
    missed_by_fastest = np.abs(fastest / np.median(fastest) - 1)
    assert np.quantile(missed, 0.95) < 0.08
    assert np.quantile(missed_by_fastest, 0.95) > 0.3
    assert np.corrcoef(np.log(slow), np.log(spells(np.arange(len(of)) / len(of))))[0, 1] > 0.8


def test_the_times_are_those_of_the_usual_speed():
    own, of, times = visits(9, lambda at: np.where(at < 0.3, 0.5, 2.0), 0.0)
    found, slow = usual_ms(of, times)
    assert np.median(found / own) == pytest.approx(2.0, rel=0.02)
    assert slow.min() == pytest.approx(0.25, rel=0.02)


def test_single_odd_visits_do_not_count():
    own, of, times = visits(9, np.ones_like, 0.0)
    odd = np.flatnonzero(np.random.default_rng(1).random(len(of)) < 0.1)
    times[odd] *= 5
    assert usual_ms(of, times)[0] == pytest.approx(own, rel=0.02)


def test_one_visit_each_is_taken_as_it_is():
    _, of, times = visits(1, spells, 0.0)
    assert usual_ms(of, times)[0][of] == pytest.approx(times)


def test_no_visit_at_all():
    found, slow = usual_ms([], [])
    assert len(found) == len(slow) == 0
