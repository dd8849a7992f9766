"""From the config of a workload to its requests."""

import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from workloads.read import read_trace
from workloads.workload import WorkloadConfig, build, generate, source_names

FIXTURES = Path(__file__).parents[1] / "fixtures" / "workloads"
POISSON = {"process": "poisson", "rate": 2.0}


def made(seed=0, **fields):
    fields = {"num_requests": 1_000, "arrivals": POISSON, **fields}
    rngs = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    return build(WorkloadConfig(**fields), *rngs)


def test_same_seed_same_requests_other_rate_same_lengths():
    one, two = made(source="sharegpt"), made(source="sharegpt")
    fast = made(source="sharegpt", arrivals={"process": "poisson", "rate": 8.0})
    for name in ("arrival_s", "input_len", "output_len"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(one.input_len, fast.input_len)
    np.testing.assert_allclose(one.arrival_s, 4 * fast.arrival_s, rtol=1e-14)
    assert (made(source="sharegpt", seed=1).input_len != one.input_len).any()


@pytest.mark.parametrize(
    "source",
    [name for name in source_names() if name not in ("fixed", "uniform", "lognormal", "geometric")],
)
def test_every_built_in_source(source):
    trace = made(source=source)
    assert len(trace) == 1_000
    assert trace.input_len.min() >= 1
    assert trace.output_len.min() >= 1
    assert trace.input_len.dtype == trace.output_len.dtype == np.int64


def test_parametric_sources():
    trace = made(source="fixed", input_len=16, output_len={"dist": "geometric", "mean": 20})
    assert set(trace.input_len) == {16}
    assert trace.output_len.mean() == pytest.approx(20, rel=0.1)
    trace = made(source="uniform", input_len={"low": 2, "high": 3}, output_len=7)
    assert set(trace.input_len) == {2, 3}
    assert set(trace.output_len) == {7}


def test_mixed_by_default_and_by_weights():
    trace = made(source="mixed")
    assert trace.sources == ("alpaca", "longbench")
    assert np.bincount(trace.source)[0] / 1_000 == pytest.approx(0.8, abs=0.05)
    assert trace.input_len[trace.source == 1].min() > 400
    path = str(FIXTURES / "vidur_lengths.csv")
    trace = made(source="mixture", mixture={path: 3, "fixed": 1}, input_len=9, output_len=9)
    assert trace.sources == (path, "fixed")
    pairs = set(zip(trace.input_len.tolist(), trace.output_len.tolist(), strict=True))
    assert pairs == {(3772, 54), (2015, 156), (9, 9)}  # pairs of a file stay together


def test_truncate_cuts_prompts_and_counts():
    free = made(source="longbench", max_output_len=100)
    cut = made(source="longbench", max_output_len=100, max_model_len=4_096)
    np.testing.assert_array_equal(cut.output_len, free.output_len)
    np.testing.assert_array_equal(
        cut.input_len, np.minimum(free.input_len, 4_096 - free.output_len)
    )
    whole = made(source="longbench")
    assert cut.notes == {
        "dropped": 0,
        "dropped_overlong": 0,
        "truncated": int((free.input_len > cut.input_len).sum()),
        "outputs_capped": int((whole.output_len > 100).sum()),
    }
    assert min(cut.notes["truncated"], cut.notes["outputs_capped"]) > 50


def test_drop_replaces_what_is_too_long_and_counts():
    free = made(source="longbench", num_requests=4_000)
    kept = made(source="longbench", max_model_len=8_192, overlong="drop")
    fits = free.input_len + free.output_len <= 8_192
    assert len(kept) == 1_000
    # The first draws are the same, so what stays is what fits, in order, until it runs out.
    first = int(fits[:1_000].sum())
    assert len(set(kept.input_len + kept.output_len <= 8_192)) == 1
    assert first < 1_000
    assert kept.notes["dropped"] == kept.notes["dropped_overlong"] > 1_000 - first
    assert spearmanr(kept.input_len, kept.output_len).statistic < 0.5


def test_an_output_that_fills_the_model_is_dropped():
    fields = {"source": "fixed", "input_len": 5, "max_model_len": 10}
    trace = made(**fields, output_len={"dist": "uniform", "low": 8, "high": 12})
    assert set(zip(trace.input_len.tolist(), trace.output_len.tolist(), strict=True)) == {
        (2, 8),
        (1, 9),
    }
    assert trace.notes["dropped"] > 1_000
    assert trace.notes["truncated"] == 1_000


def test_duration_instead_of_number():
    trace = made(source="alpaca", num_requests=None, duration_s=100.0)
    longer = made(source="alpaca")
    n = int((longer.arrival_s < 100).sum())
    assert len(trace) == n
    np.testing.assert_array_equal(trace.arrival_s, longer.arrival_s[:n])


def test_closed_and_all_at_once():
    closed = made(source="alpaca", arrivals={"process": "closed", "concurrency": 4, "think_s": 1.5})
    assert closed.arrival_s is None
    assert set(made(source="alpaca", arrivals={"process": "all-at-once"}).arrival_s) == {0.0}


def test_priorities_and_tasks_leave_the_lengths_alone():
    plain = made(source="alpaca")
    trace = made(source="alpaca", priorities={0: 3, 5: 1}, tasks={"online": 1, "offline": 3})
    np.testing.assert_array_equal(plain.input_len, trace.input_len)
    assert (trace.priority == 5).mean() == pytest.approx(0.25, abs=0.05)
    assert set(trace.priority) == {0, 5}
    assert trace.tasks == ("online", "offline")
    assert trace.task.mean() == pytest.approx(0.75, abs=0.05)


def replayed(**fields):
    return generate(WorkloadConfig(source=str(FIXTURES / "plain.csv"), **fields), 0)


def test_replay_as_it_is():
    trace = replayed()
    assert trace.arrival_s.tolist() == [0.5, 1.25, 2.0]
    assert trace.block_hashes == ((1, 2), (3,), (1, 4))
    assert trace.sources == ("chat", "code")


def test_replay_of_a_part():
    trace = replayed(num_requests=2)
    assert trace.input_len.tolist() == [100, 200]
    assert trace.priority.tolist() == [1, 0]
    assert trace.block_hashes == ((1, 2), (3,))
    assert replayed(duration_s=2.0).input_len.tolist() == [100, 200]
    assert replayed(duration_s=2.1).input_len.tolist() == [100, 200, 300]


def test_replay_stretched():
    assert replayed(arrivals={"process": "trace", "time_scale": 2}).arrival_s.tolist() == [
        1,
        2.5,
        4,
    ]
    fast = replayed(arrivals={"process": "trace", "rate": 4.0}).arrival_s
    assert 2 / (fast[-1] - fast[0]) == pytest.approx(4)
    assert fast[1] - fast[0] == pytest.approx(fast[2] - fast[1])


def test_replay_with_new_arrivals():
    trace = replayed(arrivals={"process": "constant", "rate": 10})
    np.testing.assert_allclose(trace.arrival_s, [0.1, 0.2, 0.3])
    assert trace.input_len.tolist() == [100, 200, 300]
    assert replayed(arrivals={"process": "closed", "concurrency": 2}).arrival_s is None


def test_replay_under_limits():
    """300 + 30 and 200 + 20 are over 210."""
    trace = replayed(max_model_len=210)
    assert trace.input_len.tolist() == [100, 190, 180]
    assert trace.notes == {
        "read": 3,
        "dropped": 0,
        "dropped_overlong": 0,
        "truncated": 2,
        "outputs_capped": 0,
        "sorted": 0,
    }
    trace = replayed(max_model_len=210, overlong="drop", max_output_len=10)
    assert trace.input_len.tolist() == [100, 200]
    assert trace.arrival_s.tolist() == [0.5, 1.25]
    assert (trace.notes["dropped"], trace.notes["outputs_capped"]) == (1, 1)
    first = replayed(max_model_len=210, overlong="drop", max_output_len=10, num_requests=1)
    assert first.notes["dropped"] == 0  # the part that was not replayed is not counted


def test_reader_and_limits_count_together():
    config = WorkloadConfig(
        source=str(FIXTURES / "burstgpt.csv"), max_model_len=500, overlong="drop"
    )
    trace = generate(config, 0)
    assert trace.input_len.tolist() == [472, 25]
    assert trace.notes["dropped"] == 2
    assert (trace.notes["dropped_failed"], trace.notes["dropped_overlong"]) == (1, 1)


def test_generate_without_arrivals_has_lengths_only():
    assert generate(WorkloadConfig(source="alpaca", num_requests=5), 0).arrival_s is None


def test_registered_source(monkeypatch):
    class Entry:
        name = "mine"

        def load(self):
            return lambda rng, n: (rng.integers(1, 9, n), np.full(n, 3))

    entries = lambda group, name=None: [Entry()] if name in (None, "mine") else []  # noqa: E731
    monkeypatch.setattr("workloads.sources.entry_points", entries)
    assert "mine" in source_names()
    trace = made(source="mine")
    assert set(trace.output_len) == {3}
    assert trace.sources == ("mine",)


def test_a_million_requests_in_two_seconds():
    start = time.process_time()
    made(source="sharegpt", num_requests=1_000_000, max_model_len=4_096)
    assert time.process_time() - start < 2


def test_real_trace_keeps_its_rate(tmp_path):
    data = Path(__file__).parents[3] / "shared" / "data" / "workloads" / "azure2023_conv.csv.gz"
    if not data.exists():
        pytest.skip("needs ../shared/data")
    whole = read_trace(data)
    trace = generate(
        WorkloadConfig(source=str(data), arrivals={"process": "trace", "rate": 20.0}), 0
    )
    assert (len(trace) - 1) / np.ptp(trace.arrival_s) == pytest.approx(20)
    ratio = np.diff(trace.arrival_s)[:50] / np.diff(whole.arrival_s)[:50]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
