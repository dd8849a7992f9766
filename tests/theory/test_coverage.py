"""How often the 95 % intervals contain the truth: the mean wait of queues that are known.

Waits of M/M/1 and M/D/1 queues (service 1 s on average, started empty) by Lindley's recursion, then
the statistics that every study goes through.
"""

import numpy as np
import pytest
from queueing import pollaczek_khinchine

from sim.study.config import resolve
from sim.study.run import run
from sim.study.statistics.batch_means import batch_means
from sim.study.statistics.precision import Precision
from sim.study.statistics.stability import effective_requests, verdict
from sim.study.statistics.stats import aggregate

REPLICATIONS, CUSTOMERS, EXPERIMENTS = 10, 10_000, 1000
SQUARE = {"M/M/1": 2.0, "M/D/1": 1.0}
"""Mean square of the service time, s2."""


def lindley(seed, queue, rho, rows, customers):
    """Return waits and arrivals of independent replications, shape (rows, customers).

    W' = max(0, W + service - gap) is the free walk minus its lowest point so far.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rho, (rows, customers))
    services = np.ones_like(gaps) if queue == "M/D/1" else rng.exponential(1.0, gaps.shape)
    walk = np.zeros_like(gaps)
    np.cumsum(services[:, :-1] - gaps[:, 1:], axis=1, out=walk[:, 1:])
    return walk - np.minimum.accumulate(walk, axis=1), np.cumsum(gaps, axis=1)


def figures(wait, arrival):
    """Return what `sim.study.statistics.metrics` finds of one replication."""
    columns = {
        "arrival_s": arrival,
        "prefill_start_s": arrival + wait,
        "status": np.full(len(wait), "finished"),
    }
    return {
        "completed": len(wait),
        "mean_ttft_ms": float(wait.mean()),
        "effective_requests": effective_requests(wait),
        "saturation": verdict(columns, 0.0, float(arrival[-1])),
    }


def coverage(queue, rho, experiments):
    """Return the share of intervals that contain the truth, and that of backlogged studies."""
    truth = pollaczek_khinchine(rho, 1.0, SQUARE[queue])
    hits = backlogged = 0
    for seed in range(experiments):
        waits, arrivals = lindley(seed, queue, rho, REPLICATIONS, CUSTOMERS)
        summary = aggregate([figures(*one) for one in zip(waits, arrivals, strict=True)])
        hits += summary["mean_ttft_ms_ci_low"] <= truth <= summary["mean_ttft_ms_ci_high"]
        backlogged += summary["saturation"] == "backlogged"
    return hits / experiments, backlogged / experiments


def counted(experiments):
    return f"{experiments:,} experiments of {REPLICATIONS} x {CUSTOMERS:,}"


def test_intervals_cover_and_low_loads_are_stable():
    share, backlogged = coverage("M/D/1", 0.5, 40)
    assert share >= 0.85
    assert backlogged == 0


def test_a_load_of_nine_tenths_is_backlogged():
    assert coverage("M/M/1", 0.9, 10)[1] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.5, 0.7])
@pytest.mark.parametrize("queue", SQUARE)
def test_coverage(queue, rho, record_property):
    share, backlogged = coverage(queue, rho, EXPERIMENTS)
    figure = f"{share:.1%}, backlogged {backlogged:.1%}; {counted(EXPERIMENTS)}"
    record_property("evidence", f"coverage of 95 % intervals, {queue}, rho {rho}: {figure}")
    assert 0.93 <= share <= 0.97
    assert backlogged <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("queue", SQUARE)
def test_coverage_near_saturation_is_said_to_be_doubtful(queue, record_property):
    share, backlogged = coverage(queue, 0.9, EXPERIMENTS)
    figure = f'{share:.1%}, verdict "backlogged" in {backlogged:.1%}; {counted(EXPERIMENTS)}'
    record_property("evidence", f"coverage of 95 % intervals, {queue}, rho 0.9: {figure}")
    assert backlogged >= 0.9


ENGINE = {
    "cluster": {"gpu": "a100-40gb", "count": 1, "model": "llama-2-13b"},
    "policy": {"name": "static", "max_batch_size": 1},
    "workload": {"source": "fixed", "input_len": 100, "output_len": 20},
}


def engine_run(rate, requests, seed=0, replications=1):
    """Run a server of one request at a time: M/D/1, for all requests are alike."""
    arrivals = {"process": "poisson", "rate": rate} if rate else {"process": "all-at-once"}
    workload = {**ENGINE["workload"], "num_requests": requests, "arrivals": arrivals}
    sections = {"workload": workload, "run": {"seed": seed, "replications": replications}}
    return run(resolve({**ENGINE, **sections}, "test")).summary


@pytest.mark.slow
def test_coverage_through_the_whole_engine(record_property):
    experiments, requests, rho = 100, 2000, 0.5
    lone = engine_run(None, 1)
    service_s = lone["duration"]
    wait_s = pollaczek_khinchine(rho / service_s, service_s, service_s**2)
    truth_ms = wait_s * 1e3 + lone["mean_ttft_ms"]
    hits = 0
    for seed in range(experiments):
        summary = engine_run(rho / service_s, requests, seed, REPLICATIONS)
        hits += summary["mean_ttft_ms_ci_low"] <= truth_ms <= summary["mean_ttft_ms_ci_high"]
    share = hits / experiments
    figure = f"{share:.0%}; {experiments} experiments of {REPLICATIONS} x {requests:,} requests"
    record_property("evidence", f"coverage through the whole engine, M/D/1, rho {rho}: {figure}")
    assert 0.90 <= share <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.5, 0.7])
@pytest.mark.parametrize("queue", SQUARE)
def test_coverage_of_batch_means(queue, rho, record_property):
    truth = pollaczek_khinchine(rho, 1.0, SQUARE[queue])
    hits = passed = 0
    for seed in range(EXPERIMENTS):
        wait, _ = lindley(seed, queue, rho, 1, CUSTOMERS)
        found = batch_means(wait[0])
        hits += found.interval.low <= truth <= found.interval.high
        passed += found.independent
    share, passed = hits / EXPERIMENTS, passed / EXPERIMENTS
    figure = f"{share:.1%}, lag-1 check passed by {passed:.1%}; {EXPERIMENTS:,} x {CUSTOMERS:,}"
    record_property("evidence", f"coverage of batch means of one run, {queue}, rho {rho}: {figure}")
    assert 0.90 <= share <= 0.97


@pytest.mark.slow
def test_coverage_of_intervals_that_are_stopped_when_narrow(record_property):
    experiments, customers, rho = 400, 2000, 0.5
    truth = pollaczek_khinchine(rho, 1.0, SQUARE["M/M/1"])
    precision = Precision(0.05, ("mean_ttft_ms",))
    hits, counts = 0, []
    for seed in range(experiments):
        waits, _ = lindley(seed, "M/M/1", rho, precision.cap, customers)
        runs = [{"mean_ttft_ms": float(wait.mean())} for wait in waits]
        count, enough = 0, 1
        while count < enough:
            count = enough
            summary = aggregate(runs[:count])
            enough = precision.wanted([summary], 1)
        counts.append(count)
        hits += summary["mean_ttft_ms_ci_low"] <= truth <= summary["mean_ttft_ms_ci_high"]
    share = hits / experiments
    figure = (
        f"{share:.1%}, {np.mean(counts):.1f} replications on average; {experiments} experiments"
    )
    record_property("evidence", f"coverage of --precision 5%, M/M/1, rho {rho}: {figure}")
    assert 0.90 <= share <= 0.97
