"""Routers before single servers, against queueing theory and against Ciw's router."""

from collections.abc import Callable

import ciw
import numpy as np
import pytest
from queueing import (
    REPLICATIONS,
    STEP_S,
    after_warm_up,
    erlang_arrivals,
    interval,
    poisson_trace,
    pollaczek_khinchine,
    served,
    service_moments,
    waits,
)

STEPS = 10
SERVICE_S = STEPS * STEP_S
Record = Callable[[str, object], None]
COUNT = 4
LOADS = [0.8]
REQUESTS, REQUESTS_SLOW = 2000, 50_000
CIW_REQUESTS, CIW_REQUESTS_SLOW = 500, 5000
STRAGGLERS = 200
"""Customers Ciw serves beyond those looked at, so that none of them is still there."""
POLICY = "continuous"


def measured(router: str, lengths: str, load: float, count: int) -> list[float]:
    """Return the mean wait before `COUNT` servers, one for each replication."""
    means = []
    for seed in range(REPLICATIONS):
        trace = poisson_trace(seed, lengths, COUNT * load / SERVICE_S, count, STEPS)
        means.append(after_warm_up(waits(trace, POLICY, COUNT, router, seed)))
    return means


def check_round_robin(load: float, count: int, record: Record) -> None:
    """Every c-th of Poisson arrivals: Erlang gaps."""
    low, high = interval(measured("round-robin", "fixed", load, count))
    wanted = erlang_arrivals(COUNT * load / SERVICE_S, SERVICE_S, COUNT)
    figure = f"E_{COUNT}/D/1 {wanted:.4g} s in [{low:.4g}, {high:.4g}], {REPLICATIONS} x {count:,}"
    record("evidence", f"round robin, mean wait, rho {load}: {figure}")
    assert low <= wanted <= high


def check_random(lengths: str, load: float, count: int, record: Record) -> None:
    """Poisson arrivals thinned at random: c independent M/G/1 queues."""
    mean_s, square_s2 = service_moments(lengths, STEPS)
    low, high = interval(measured("random", lengths, load, count))
    wanted = pollaczek_khinchine(load / SERVICE_S, mean_s, square_s2)
    figure = f"M/G/1 {wanted:.4g} s in [{low:.4g}, {high:.4g}], {REPLICATIONS} x {count:,}"
    record("evidence", f"random routing, {lengths} output, mean wait, rho {load}: {figure}")
    assert low <= wanted <= high


@pytest.mark.parametrize("load", LOADS)
def test_round_robin(load, record_property):
    check_round_robin(load, REQUESTS, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.8, 0.9])
def test_round_robin_50000(load, record_property):
    check_round_robin(load, REQUESTS_SLOW, record_property)


@pytest.mark.parametrize("load", LOADS)
def test_random(load, record_property):
    check_random("fixed", load, REQUESTS, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
@pytest.mark.parametrize("load", [0.8, 0.9])
def test_random_50000(lengths, load, record_property):
    check_random(lengths, load, REQUESTS_SLOW, record_property)


def test_erlang_formula():
    """One stage is M/D/1; an independent sample of the Lindley recursion for four."""
    rate = 0.8 / SERVICE_S
    plain = pollaczek_khinchine(rate, SERVICE_S, SERVICE_S**2)
    assert erlang_arrivals(rate, SERVICE_S, 1) == pytest.approx(plain, rel=1e-6)
    rng = np.random.default_rng(0)
    walk = np.cumsum(SERVICE_S - rng.gamma(4, 1 / (4 * rate), 2_000_000))
    lindley = walk - np.minimum.accumulate(np.minimum(walk, 0.0))
    assert erlang_arrivals(4 * rate, SERVICE_S, 4) == pytest.approx(lindley.mean(), rel=0.02)


# -- join the shortest queue ----------------------------------------------------------------------


class ByCustomer(ciw.dists.Distribution):
    """Service times by order of arrival, whichever node serves."""

    def __init__(self, service_s: np.ndarray) -> None:
        self.service_s = service_s.tolist()

    def sample(self, t=None, ind=None):
        return self.service_s[(ind.id_number - 1) % len(self.service_s)]


def ciw_served(gaps: ciw.dists.Distribution, service: ciw.dists.Distribution, count: int):
    """Return waits and servers of the first `count` customers before `COUNT` servers.

    What we call join-shortest-queue counts the request in service, as Ciw's load balancing does;
    Ciw's router of our name does not. Ties go to the first server in both.
    """
    nodes = list(range(2, COUNT + 2))
    leave = [ciw.routing.Leave()] * COUNT
    network = ciw.create_network(
        arrival_distributions=[gaps] + [None] * COUNT,
        service_distributions=[ciw.dists.Deterministic(0.0)] + [service] * COUNT,
        number_of_servers=[float("inf")] + [1] * COUNT,
        routing=ciw.routing.NetworkRouting(
            [ciw.routing.LoadBalancing(nodes, tie_break="order"), *leave]
        ),
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(count + STRAGGLERS, method="Finish")
    left = {r.id_number: r for r in simulation.get_all_records() if r.node > 1}
    records = [left[customer + 1] for customer in range(count)]
    return np.array([r.waiting_time for r in records]), np.array([r.node - 2 for r in records])


# Ciw copies an iterator of itertools, which Python 3.12 and 3.13 warn of.
@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
@pytest.mark.parametrize("lengths", ["fixed", "geometric"])
def test_shortest_queue_joins_as_ciw_does(lengths):
    """The same arrivals and services: the same server and wait for every request."""
    trace = poisson_trace(0, lengths, COUNT * 0.9 / SERVICE_S, 1500, STEPS)
    gaps = ciw.dists.Sequential([*np.diff(trace.arrival_s, prepend=0.0).tolist(), 1e9])
    service = ByCustomer((trace.output_len - 1) * STEP_S)
    count = len(trace) - STRAGGLERS
    their_waits, their_servers = ciw_served(gaps, service, count)
    our_waits, our_servers = served(trace, POLICY, COUNT, "shortest-queue")
    np.testing.assert_array_equal(our_servers[:count], their_servers)
    np.testing.assert_allclose(our_waits[:count], their_waits, rtol=0, atol=1e-9)


def check_shortest_queue(load: float, count: int, ciw_count: int, record: Record) -> None:
    """Other streams of random numbers: overlapping intervals of the mean wait."""
    low, high = interval(measured("shortest-queue", "fixed", load, count))
    means = []
    for seed in range(REPLICATIONS):
        ciw.seed(seed)
        gaps = ciw.dists.Exponential(COUNT * load / SERVICE_S)
        theirs, _ = ciw_served(gaps, ciw.dists.Deterministic(SERVICE_S), ciw_count)
        means.append(after_warm_up(theirs))
    ciw_low, ciw_high = interval(means)
    figure = f"ours [{low:.4g}, {high:.4g}] s, Ciw [{ciw_low:.4g}, {ciw_high:.4g}] s"
    record("evidence", f"join the shortest queue, mean wait, rho {load}: {figure}")
    assert low <= ciw_high
    assert ciw_low <= high


def test_shortest_queue(record_property):
    check_shortest_queue(0.8, REQUESTS, CIW_REQUESTS, record_property)


@pytest.mark.slow
def test_shortest_queue_50000(record_property):
    check_shortest_queue(0.8, REQUESTS_SLOW, CIW_REQUESTS_SLOW, record_property)
