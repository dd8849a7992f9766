"""Arrival processes against their rates; one seed gives one pattern at every rate."""

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.stats import kstest

from workloads.arrivals import Arrivals, new_arrivals

RATED = [
    {"process": "poisson"},
    {"process": "gamma", "cv": 3.0},
    {"process": "gamma", "cv": 0.3},
    {"process": "constant"},
    {"process": "burst", "period_s": 60, "burst_s": 6, "factor": 8},
    {"process": "diurnal", "period_s": 100, "amplitude": 0.9},
    {"process": "ramp", "end_rate": 40, "ramp_s": 50},
]


def process(fields, rate=5.0):
    return TypeAdapter(Arrivals).validate_python({"rate": rate, **fields})


def first(fields, n, rate=5.0, seed=0):
    return new_arrivals(process(fields, rate), n, None, np.random.default_rng(seed))[0]


def count_between(times, starts, ends):
    return np.searchsorted(times, ends) - np.searchsorted(times, starts)


@pytest.mark.parametrize("fields", RATED, ids=lambda f: f["process"])
def test_times_ascend_and_number_and_duration_agree(fields):
    times = first(fields, 2_000)
    assert len(times) == 2_000
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()
    within, n = new_arrivals(process(fields), None, 30.0, np.random.default_rng(0))
    assert n == len(within)
    np.testing.assert_array_equal(within, times[times < 30.0])


@pytest.mark.parametrize("fields", RATED[:4], ids=lambda f: f"{f['process']}-{f.get('cv')}")
def test_gaps_are_unit_gaps_over_the_rate(fields):
    np.testing.assert_allclose(
        first(fields, 500, rate=8), first(fields, 500, rate=1) / 8, rtol=1e-14
    )


@pytest.mark.parametrize("fields", RATED[4:], ids=lambda f: f["process"])
def test_stretched_points_are_the_same_at_every_rate(fields):
    """The expected number of arrivals up to the k-th time does not depend on the rate."""

    def points(rate):
        end = {"end_rate": 8 * rate} if "end_rate" in fields else {}
        chosen = process({**fields, **end}, rate)
        times = new_arrivals(chosen, 300, None, np.random.default_rng(0))[0]
        grid = chosen.times(np.linspace(0, 600, 60_001))
        return np.interp(times, grid, np.linspace(0, 600, 60_001))

    np.testing.assert_allclose(points(1.0), points(3.0), atol=0.02)


def test_constant_and_gamma_and_poisson_gaps():
    np.testing.assert_allclose(first({"process": "constant"}, 4, rate=2), [0.5, 1, 1.5, 2])
    gaps = np.diff(first({"process": "poisson"}, 50_000))
    assert kstest(gaps, "expon", args=(0, 0.2)).pvalue > 0.001
    for cv in (0.3, 3.0):
        gaps = np.diff(first({"process": "gamma", "cv": cv}, 200_000))
        assert gaps.mean() == pytest.approx(0.2, rel=0.03)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_burst_rates():
    """Mean 5/s over 60 s with 6 s at eightfold rate: 500/17 and 62.5/17 per second."""
    times = first(RATED[4], 200_000)
    starts = np.arange(0, times[-1] - 60, 60)
    in_burst = count_between(times, starts, starts + 6).mean() / 6
    outside = count_between(times, starts + 6, starts + 60).mean() / 54
    assert in_burst == pytest.approx(8 * 5 * 60 / (8 * 6 + 54), rel=0.02)
    assert outside == pytest.approx(5 * 60 / (8 * 6 + 54), rel=0.02)


def test_diurnal_rates():
    """A quarter around the low has 1/4 - a/pi * sin(pi/4) of the arrivals, around the high +."""
    times = first(RATED[5], 200_000)
    assert len(times) / times[-1] == pytest.approx(5, rel=0.01)
    phase = times[times < times[-1] // 100 * 100] % 100
    low = ((phase < 12.5) | (phase >= 87.5)).mean()
    high = ((phase >= 37.5) & (phase < 62.5)).mean()
    swing = 0.9 / np.pi * np.sin(np.pi / 4)
    assert low == pytest.approx(0.25 - swing, abs=0.005)
    assert high == pytest.approx(0.25 + swing, abs=0.005)


def test_diurnal_inverts_its_cumulative_rate():
    for amplitude in (0.0, 0.5, 0.999):
        chosen = process({"process": "diurnal", "period_s": 100, "amplitude": amplitude})
        points = np.linspace(0, 1_500, 4_001)
        t = chosen.times(points)
        x = 2 * np.pi * t / 100
        np.testing.assert_allclose(
            5 * 100 / (2 * np.pi) * (x - amplitude * np.sin(x)), points, atol=1e-6
        )


def test_ramp_rates():
    """5/s to 40/s in 50 s: 5 t + 0.35 t^2 arrivals before t, and 40/s from then on."""
    chosen = process(RATED[6])
    assert chosen.expected(10) == pytest.approx(85)
    assert chosen.expected(60) == pytest.approx(1_125 + 400)
    np.testing.assert_allclose(chosen.times(np.array([0, 85, 1_125, 1_525])), [0, 10, 50, 60])
    down = process({"process": "ramp", "end_rate": 1, "ramp_s": 10}, rate=9)
    # Down from 9/s: 9 t - 0.4 t^2, so 35 before 5 s and 50 before 10 s; then 1/s.
    np.testing.assert_allclose(down.times(np.array([35.0, 50, 51])), [5, 10, 11])


def test_processes_without_rate():
    parse = TypeAdapter(Arrivals).validate_python
    at_once = parse({"process": "all-at-once"})
    assert new_arrivals(at_once, 3, None, np.random.default_rng(0))[0].tolist() == [0, 0, 0]
    closed = parse({"process": "closed", "concurrency": 4})
    assert closed.think_s == 0
    assert new_arrivals(closed, 3, None, np.random.default_rng(0)) == (None, 3)
