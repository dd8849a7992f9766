"""What a reader must be told: tallies of runs, of studies, of sweeps."""

import numpy as np
import pytest

from sim.core.records import RunRecord
from sim.study.notices import added, by_point, lines_of, notices, of_study, tally

REJECTED = "requests were rejected: longer than max_model_len or than the memory holds"


def record(statuses, cached=0, **counters):
    requests = {
        "status": np.array(statuses),
        "cached_tokens": np.full(len(statuses), cached),
    }
    return RunRecord(
        requests=requests,
        steps=np.zeros(0),
        gaps_s=np.zeros(0),
        swaps=[],
        end_s=1.0,
        counters=counters,
        instances=[],
        events={},
    )


def test_a_tally_has_what_happened_only():
    told = tally(
        {"truncated": 3, "dropped": 0}, record(["finished", "rejected", "rejected"], oom_events=2)
    )
    assert told == {
        "prompts were cut to max_model_len": 3,
        "out-of-memory events: batches were lost and run again": 2,
        REJECTED: 2,
    }
    assert tally({}, record(["finished"])) == {}


@pytest.mark.parametrize(
    ("cached", "recovered", "told"), [(0, 0, True), (5, 0, False), (0, 5, False)]
)
def test_caching_that_finds_nothing_is_told_if_no_run_finds_anything(cached, recovered, told):
    nothing = tally({}, record(["finished"], prefix_recovered_tokens=0))
    other = tally({}, record(["finished"], cached, prefix_recovered_tokens=recovered))
    (line,) = lines_of(added([nothing, nothing]), 2)
    assert line.startswith("prefix caching found nothing")
    assert bool(lines_of(added([nothing, other]), 2)) is told


def test_counts_of_replications_are_added_up():
    told = [tally({}, record(["rejected"] * n)) for n in (1, 0, 2)]
    assert notices(("a", "b", "a"), told, False, "stable") == (
        "a",
        "b",
        f"3 {REJECTED} (over 3 replications)",
    )
    assert notices((), told[:1], False, "stable") == (f"1 {REJECTED}",)


def test_a_sweep_tells_each_text_once_with_its_points():
    same = of_study([{}, {}], True, "overloaded")
    lines = by_point([{REJECTED: 3}, {}, {REJECTED: 4} | same])
    assert lines[0] == f"7 {REJECTED} (2 of 3 points)"
    assert lines[1].endswith("do not show how other requests would do (1 of 3 points)")
    assert lines[2].startswith("overloaded: ")
    assert len(lines) == 3
    assert by_point([{"a": 0}], "trials") == ("a (1 of 1 trials)",)
