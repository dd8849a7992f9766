"""One queue before several servers: M/M/c after Erlang, M/D/c after Crommelin, G/G/c one by one."""

from collections.abc import Callable
from heapq import heapreplace

import numpy as np
import pytest
from queueing import (
    REPLICATIONS,
    STEP_S,
    after_warm_up,
    erlang_arrivals,
    erlang_c,
    interval,
    poisson_trace,
    pollaczek_khinchine,
    service_moments,
    waits,
)

Record = Callable[[str, object], None]
STEPS = {"fixed": 10, "geometric": 1000}
"""A geometric number of steps of mean 1000 is exponential but for its square, 0.05 % smaller."""
REQUESTS, REQUESTS_SLOW = 1500, 50_000
POLICY = "continuous"


def wanted(lengths: str, rate: float, servers: int) -> float:
    """Return the mean wait in M/M/c, or in M/D/c.

    With equal services in order of arrival request n starts when n - c has left: servers take
    turns, and each is an E_c/D/1 queue. This is Crommelin's result.
    """
    mean_s = STEPS[lengths] * STEP_S
    if lengths == "fixed":
        return erlang_arrivals(rate, mean_s, servers)
    return erlang_c(rate, mean_s, servers)


def check_wait(lengths: str, servers: int, load: float, count: int, record: Record) -> None:
    rate = servers * load / (STEPS[lengths] * STEP_S)
    means = []
    for seed in range(REPLICATIONS):
        trace = poisson_trace(seed, lengths, rate, count, STEPS[lengths])
        means.append(after_warm_up(waits(trace, POLICY, servers, queue="cluster")))
    low, high = interval(means)
    mean_s = wanted(lengths, rate, servers)
    kind = "M/D/" if lengths == "fixed" else "M/M/"
    figure = f"{mean_s:.4g} s in [{low:.4g}, {high:.4g}], {REPLICATIONS} x {count:,}"
    record("evidence", f"central queue, mean wait, {kind}{servers}, rho {load}: {figure}")
    assert low <= mean_s <= high


@pytest.mark.parametrize("lengths", STEPS)
def test_two_servers(lengths, record_property):
    check_wait(lengths, 2, 0.8, REQUESTS, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("servers", [2, 4])
@pytest.mark.parametrize("lengths", STEPS)
def test_servers_50000(lengths, servers, record_property):
    check_wait(lengths, servers, 0.9, REQUESTS_SLOW, record_property)


@pytest.mark.parametrize("servers", [2, 3])
def test_every_wait_follows_kiefer_and_wolfowitz(servers):
    """Not only the mean: each request starts when it has come and the first server is free."""
    trace = poisson_trace(0, "geometric", servers * 0.9 / (10 * STEP_S), 2000, 10)
    free_s = [0.0] * servers
    expected = []
    service_s = (trace.output_len - 1) * STEP_S
    for arrival_s, served_s in zip(trace.arrival_s.tolist(), service_s.tolist(), strict=True):
        start_s = max(arrival_s, free_s[0])
        heapreplace(free_s, start_s + served_s)
        expected.append(start_s - arrival_s)
    found = waits(trace, POLICY, servers, queue="cluster")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_erlang_c_formula():
    """One server is M/M/1; two wait rho**2 / (1 - rho**2) services."""
    mean_s, square_s2 = service_moments("geometric", 10**6)
    rate = 0.8 / mean_s
    assert erlang_c(rate, mean_s, 1) == pytest.approx(
        pollaczek_khinchine(rate, mean_s, square_s2), rel=1e-5
    )
    assert erlang_c(2 * rate, mean_s, 2) == pytest.approx(0.64 / 0.36 * mean_s)
