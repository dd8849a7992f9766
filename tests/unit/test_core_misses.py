"""A run is ended exactly when more requests miss than allowed, under any order of service."""

import numpy as np
import pytest

from sim.core.misses import MissLimit, TooManyMisses
from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.capacity.attainment import _bounds_ms
from sim.study.config import resolve
from sim.study.run import requests_of
from sim.types import Request, to_fs

CONFIG = {
    "cluster": {"gpu": "a100-80gb", "count": 2, "model": "opt-13b", "profile": "distserve"},
    "policy": "continuous",
    "workload": {
        "source": "mixed",
        "mixture": {"sharegpt": 1, "alpaca": 1},
        "num_requests": 400,
        "max_model_len": 2048,
        "arrivals": {"process": "poisson", "rate": 12},
    },
    "slo": {"ttft_ms": 400, "tpot_ms": 60, "by": {"alpaca": {"ttft_ms": 150, "e2e_ms": 20000}}},
}
FREE = 10**9


def experiment(policy="continuous", **sections):
    data = {**CONFIG, "policy": policy}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return resolve(data, "test.yaml")


def run(of, allowed=FREE, allowed_of=(FREE, FREE), start_s=0.0):
    """Return the record, or None if the run was ended."""
    trace = requests_of(of, 0)
    setup = build(of, of.policies[0])
    how = settings(of, setup.policy, trace, 0)
    how.misses = MissLimit(
        _bounds_ms(of, trace), trace.source.tolist(), start_s, allowed, list(allowed_of)
    )
    try:
        record = simulate(trace, setup.policy, setup.specs, how)
    except TooManyMisses:
        return None, how.misses
    return record, how.misses


def misses(of, record, start_s=0.0):
    """Return who misses, by the definition: bounds of each class, request by request."""
    missed = []
    for row in zip(*(record.requests[c] for c in COLUMNS), strict=True):
        source, status, arrival, first, finish, emitted = row
        ttft, tpot, e2e = BOUNDS[str(source)]
        late = status != "finished" or (first - arrival) * 1e3 > ttft
        late |= (finish - arrival) * 1e3 > e2e
        if emitted > 1 and status == "finished":
            late |= (finish - first) / (emitted - 1) * 1e3 > tpot
        missed.append(bool(late) and arrival >= start_s)
    return np.array(missed)


COLUMNS = ("source", "status", "arrival_s", "first_token_s", "finish_s", "emitted_tokens")
BOUNDS = {"sharegpt": (400, 60, np.inf), "alpaca": (150, np.inf, 20000)}


@pytest.mark.parametrize("policy", ["continuous", "static", "distserve", "uellm"])
@pytest.mark.parametrize("abort_s", [None, 3.0])
def test_the_limit_is_sharp(policy, abort_s):
    of = experiment(policy, slo={"abort_after_s": abort_s})
    record, limit = run(of)
    missed = misses(of, record)
    count = int(missed.sum())
    assert 0 < count < 400
    assert sum(limit.missed_of) == count
    assert run(of, count)[0] is not None
    assert run(of, count - 1)[0] is None
    by_source = [int(missed[record.requests["source"] == s].sum()) for s in ("sharegpt", "alpaca")]
    assert limit.missed_of == by_source
    for at in range(2):
        assert run(of, FREE, by_source)[0] is not None
        tight = [n - (k == at) for k, n in enumerate(by_source)]
        assert run(of, FREE, tight)[0] is None


def test_a_limit_changes_no_record():
    of = experiment()
    trace, setup = requests_of(of, 0), build(of, of.policies[0])
    free = simulate(trace, setup.policy, setup.specs, settings(of, setup.policy, trace, 0))
    limited, _ = run(of)
    for name, column in free.requests.items():
        np.testing.assert_array_equal(column, limited.requests[name])


def test_early_arrivals_do_not_count():
    of = experiment(workload={"arrivals": {"process": "poisson", "rate": 40}})
    record, limit = run(of, start_s=6.0)
    count = int(misses(of, record, 6.0).sum())
    assert 0 < count < misses(of, record).sum()
    assert sum(limit.missed_of) == count


def test_rejected_requests_miss():
    of = experiment(engine={"max_model_len": 300}, workload={"max_model_len": 2048})
    record, limit = run(of)
    rejected = int((record.requests["status"] == "rejected").sum())
    assert rejected
    assert sum(limit.missed_of) == misses(of, record).sum() >= rejected


def test_a_queue_that_starves_is_seen_before_it_is_served():
    """Shortest first leaves the long ones to the end; those that wait too long count already."""
    of = experiment(
        {"name": "continuous", "order": "sjf"},
        workload={"arrivals": {"process": "poisson", "rate": 200}, "num_requests": 2000},
    )
    record, limit = run(of, 600)
    assert record is None
    assert sum(limit.missed_of) <= 600


def waiting(row, arrival_s, first_token_s=None):
    request = Request(row, to_fs(arrival_s), arrival_s, 10)
    if first_token_s is not None:
        request.first_token_fs = to_fs(first_token_s)
    return request


def test_who_waits_counts_from_the_bound_on_and_only_for_a_first_token():
    """At 10 s, with bounds of 2 s: arrivals up to 8 s, not those put back after a first token."""
    queue = [waiting(0, 1.0), waiting(1, 7.9), waiting(2, 8.0), waiting(3, 1.0, 1.5)]
    queue.append(waiting(4, 0.5))  # before the window

    def look(allowed):
        limit = MissLimit([(2000.0, np.inf, np.inf)], [], 0.8, allowed, [FREE])
        limit._look([queue[:2], queue[2:]], 10.0)
        return limit

    assert look(2).missed_of == [0]
    with pytest.raises(TooManyMisses):
        look(1)
