import numpy as np
import pytest

from sim.study.statistics.stability import effective_requests, verdict

N = 3000


def queue(load, seed=0, first=0.0):
    """Return the records of an M/M/1 queue: admitted when the server turns to it."""
    rng = np.random.default_rng(seed)
    arrival = first + np.cumsum(rng.exponential(1.0, N))
    service = rng.exponential(load, N)
    start = np.empty(N)
    free = 0.0
    for i in range(N):
        start[i] = max(arrival[i], free)
        free = start[i] + service[i]
    return {
        "arrival_s": arrival,
        "prefill_start_s": start,
        "status": np.full(N, "finished"),
    }


@pytest.mark.parametrize(
    ("load", "wanted"), [(0.3, "stable"), (0.7, "stable"), (1.2, "overloaded"), (2, "overloaded")]
)
def test_load_decides(load, wanted):
    for seed in range(10):
        records = queue(load, seed)
        assert verdict(records, 0.0, records["arrival_s"][-1]) == wanted


def test_requests_that_never_started_still_wait():
    records = queue(1.5)
    end = records["arrival_s"][-1]
    records["prefill_start_s"][records["prefill_start_s"] > end] = np.nan
    assert verdict(records, 0.0, end) == "overloaded"


def test_rejected_requests_do_not_wait():
    records = queue(0.5)
    records["prefill_start_s"][::2] = np.nan
    records["status"][::2] = "rejected"
    assert verdict(records, 0.0, records["arrival_s"][-1]) == "stable"


def test_given_up_requests_leave_the_queue():
    records = queue(1.5)
    records["prefill_start_s"][:] = np.nan
    assert verdict(records, 0.0, records["arrival_s"][-1], abort_after_s=2.0) == "stable"


def test_all_at_once_is_a_backlog():
    records = queue(0.5)
    records["arrival_s"][:] = 0.0
    assert verdict(records, 0.0, 100.0) == "backlogged"
    records["prefill_start_s"][:] = 0.0
    assert verdict(records, 0.0, 100.0) == "stable"


def test_effective_requests_are_fewer_when_the_queue_persists():
    rng = np.random.default_rng(0)
    assert 2000 < effective_requests(rng.exponential(1.0, 4000)) <= 4000
    worth = [
        effective_requests(np.subtract(r["prefill_start_s"], r["arrival_s"]))
        for r in (queue(load, seed=1) for load in (0.3, 0.7, 0.95))
    ]
    assert worth[0] > 2 * worth[1] > 4 * worth[2]
    assert 15 < effective_requests(np.arange(4000.0)) < 25
    assert effective_requests(np.ones(4000)) == 4000
    assert np.isnan(effective_requests(np.ones(99)))
