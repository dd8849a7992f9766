import numpy as np
import pytest

from sim.study.statistics.warmup import mser5, warmup_of


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(10.0, 1.0, count)


def brute_force(values):
    """Return the cut by the definition of MSER-5."""
    means = values[: len(values) // 5 * 5].reshape(-1, 5).mean(axis=1)
    errors = [means[d:].var() / (len(means) - d) for d in range(len(means) - 5)]
    return int(np.argmin(errors)) * 5


@pytest.mark.parametrize("transient", [0, 60, 150])
def test_the_cut_is_where_the_standard_error_is_smallest(transient):
    values = noise(600) - 8.0 * (np.arange(600) < transient)
    cut, settled = mser5(values)
    assert settled
    assert cut == brute_force(values)
    assert transient <= cut <= transient + 100


def test_what_never_settles_loses_half():
    values = np.arange(1000.0) + noise(1000)
    assert brute_force(values) > 500
    assert mser5(values) == (500, False)


@pytest.mark.parametrize("values", [np.zeros(0), noise(54), np.full(500, 0.1)])
def test_few_or_equal_values_are_kept(values):
    assert mser5(values) == (0, True)


def columns(ttft, tpot, status="finished"):
    arrival = np.arange(len(ttft)) / 10
    first = arrival + ttft
    return {
        "arrival_s": arrival,
        "first_token_s": first,
        "finish_s": first + tpot * 9,
        "emitted_tokens": np.full(len(ttft), 10),
        "status": np.full(len(ttft), status),
    }


def test_the_later_of_ttft_and_tpot_counts_and_unfinished_requests_do_not():
    early, late = (noise(600, s) - 8.0 * (np.arange(600) < n) for s, n in ((1, 50), (2, 150)))
    for ttft, tpot in ((early, late), (late, early)):
        found = warmup_of(columns(ttft, tpot))
        assert found.settled
        assert found.end_s == pytest.approx(mser5(late)[0] / 10)
    assert warmup_of(columns(early, late, "unfinished")).end_s == 0


def test_order_of_rows_does_not_matter():
    told = columns(noise(600) - 8.0 * (np.arange(600) < 100), noise(600, 1))
    mixed = np.random.default_rng(0).permutation(600)
    assert warmup_of({k: v[mixed] for k, v in told.items()}) == warmup_of(told)
