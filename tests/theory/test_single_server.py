"""One request at a time: M/D/1, and M/G/1 after Pollaczek and Khinchine."""

from collections.abc import Callable

import numpy as np
import pytest
from queueing import (
    REPLICATIONS,
    SERVERS,
    STEP_S,
    after_warm_up,
    interval,
    poisson_trace,
    pollaczek_khinchine,
    service_moments,
    waits,
)

Record = Callable[[str, object], None]
STEPS = 10
REQUESTS, REQUESTS_SLOW = 1500, 50_000


def check_wait(policy: str, lengths: str, load: float, count: int, record: Record) -> None:
    mean_s, square_s2 = service_moments(lengths, STEPS)
    rate = load / mean_s
    means = []
    for seed in range(REPLICATIONS):
        trace = poisson_trace(seed, lengths, rate, count, STEPS)
        means.append(after_warm_up(waits(trace, policy)))
    low, high = interval(means)
    wanted = pollaczek_khinchine(rate, mean_s, square_s2)
    figure = f"analytic {wanted:.4g} s in [{low:.4g}, {high:.4g}], {REPLICATIONS} x {count:,}"
    record("evidence", f"mean wait, {policy}, {lengths} output, rho {load}: {figure}")
    assert low <= wanted <= high


@pytest.mark.parametrize("load", [0.3, 0.8])
@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
@pytest.mark.parametrize("policy", SERVERS)
def test_mean_wait(policy, lengths, load, record_property):
    check_wait(policy, lengths, load, REQUESTS, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.9])
@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
@pytest.mark.parametrize("policy", SERVERS)
def test_mean_wait_50000(policy, lengths, load, record_property):
    check_wait(policy, lengths, load, REQUESTS_SLOW, record_property)


@pytest.mark.parametrize("policy", SERVERS)
def test_every_wait_follows_lindley(policy):
    """Not only the mean: W' = max(0, W + service - gap), request by request."""
    trace = poisson_trace(0, "geometric", 0.9 / (STEPS * STEP_S), 2000, STEPS)
    service_s = (trace.output_len - 1) * STEP_S
    wait_s = 0.0
    expected = [wait_s]
    for served_s, gap_s in zip(service_s, np.diff(trace.arrival_s), strict=False):
        wait_s = max(0.0, wait_s + served_s - gap_s)
        expected.append(wait_s)
    np.testing.assert_allclose(waits(trace, policy), expected, rtol=0, atol=1e-9)
