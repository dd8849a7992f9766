"""Accepted tokens: their law, their independence of who asks when, and published tables."""

import numpy as np
import pytest

from sim.core.acceptance import DRAWS_KEPT, REQUESTS_A_DRAW, Positions, Traced, geometric
from sim.types import BadInput

MILLION = 1_000_000


def rounds_of(acceptance, requests, rounds):
    return np.stack([acceptance.accepted(i, rounds) for i in range(requests)])


def expected(rate, drafts):
    return drafts + 1 if rate == 1 else (1 - rate ** (drafts + 1)) / (1 - rate)


@pytest.mark.parametrize(("rate", "drafts"), [(0.3, 1), (0.6, 3), (0.8, 5), (0.95, 8), (0.7, 16)])
def test_tokens_a_round(rate, drafts):
    """(1 - a^(K+1))/(1 - a) within 1 % over 10^6 rounds; 0.3 % are 3 standard errors and more."""
    found = rounds_of(geometric(rate, drafts, seed=1), MILLION // 500, 500)
    assert found.size == MILLION
    assert 1 + found.mean() == pytest.approx(expected(rate, drafts), rel=0.003)


def test_fewer_drafts_cut_the_same_draws():
    found = rounds_of(geometric(0.7, 7, seed=3), 1000, 300)
    for drafts in (1, 3, 5):
        tokens = 1 + np.minimum(found, drafts).mean()
        assert tokens == pytest.approx(expected(0.7, drafts), rel=0.01)


@pytest.mark.parametrize(("rate", "number"), [(0.0, 0), (1.0, 4)])
@pytest.mark.parametrize("request_sd", [0.0, 0.4])
def test_none_and_all(rate, number, request_sd):
    assert (rounds_of(geometric(rate, 4, 0, request_sd), 10, 50) == number).all()


def test_any_order_gives_the_same():
    ids, long = [0, 700, 3, 256, 255, 1], 3000
    first = {i: geometric(0.6, 5, 7, 0.4).accepted(i, long).copy() for i in ids}
    again = geometric(0.6, 5, 7, 0.4)
    for i in reversed(ids):
        for rounds in (1, 128, 129, 5, long):
            assert (again.accepted(i, rounds) == first[i][:rounds]).all()
    assert (geometric(0.6, 5, 8, 0.4).accepted(0, long) != first[0]).any()
    assert (first[0] != first[1]).any()


def test_forgotten_draws_come_back():
    acceptance = geometric(0.6, 5, 7)
    first = acceptance.accepted(3, 100).copy()
    for chunk in range(1, DRAWS_KEPT + 2):
        acceptance.accepted(chunk * REQUESTS_A_DRAW, 1)
    assert (acceptance.accepted(3, 100) == first).all()


def test_a_caller_cannot_change_what_others_get():
    with pytest.raises(ValueError, match="read-only"):
        geometric(0.6, 5, 7).accepted(0, 10)[0] = 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: geometric(1.2, 3, 0), "acceptance rates [1.2]: expected numbers from 0 to 1"),
        (lambda: Positions([], 3, 0), "acceptance rates []"),
        (lambda: Positions([0.5, -0.1], 3, 0), "-0.1]: expected numbers from 0 to 1"),
        (lambda: geometric(0.5, 0, 0), "k_max 0: expected 1 to 255"),
        (lambda: geometric(0.5, 3, 0, -1.0), "request_sd -1.0: expected 0 or more"),
        (lambda: Traced([], 3, 0), "acceptance trace"),
        (lambda: Traced([[1], []], 3, 0), "acceptance trace"),
    ],
)
def test_bad_input(make, line):
    with pytest.raises(BadInput) as caught:
        make()
    assert line in str(caught.value)


# -- published lengths (spec: neighbours.md section 5, Llama-3.1-8B, from SpecDecode-Bench) --------

HEAD = {
    "ShareGPT": ((0.60, 0.60, 0.65, 0.69, 0.73), (1.66, 2.25, 2.48, 2.58)),
    "CNN": ((0.64, 0.63, 0.64, 0.66, 0.69), (1.67, 2.33, 2.58, 2.69)),
    "GSM8K": ((0.67, 0.65, 0.64, 0.66, 0.63), (1.70, 2.39, 2.67, 2.77)),
    "InstructCoder": ((0.61, 0.64, 0.69, 0.75, 0.77), (1.68, 2.35, 2.63, 2.76)),
}
NGRAM = {
    "ShareGPT": ((0.13, 0.77, 0.82, 0.87, 0.88), (1.24, 1.40, 1.45, 1.48)),
    "CNN": ((0.12, 0.73, 0.76, 0.79, 0.80), (1.20, 1.33, 1.38, 1.40)),
    "GSM8K": ((0.08, 0.56, 0.60, 0.64, 0.71), (1.11, 1.16, 1.18, 1.18)),
    "InstructCoder": ((0.31, 0.90, 0.90, 0.95, 0.93), (1.51, 2.03, 2.29, 2.45)),
}


@pytest.mark.parametrize(("table", "within"), [(HEAD, 0.045), (NGRAM, 0.14)], ids=["head", "ngram"])
@pytest.mark.parametrize("data", HEAD)
def test_published_tokens_a_round(table, within, data):
    """One table of rates cannot give the E of every K: c1 falls as K grows, in their walk."""
    rates, tokens = table[data]
    found = rounds_of(Positions(rates, 7, seed=0), 800, 250)
    for drafts, one in zip((1, 3, 5, 7), tokens, strict=True):
        assert 1 + np.minimum(found, drafts).mean() == pytest.approx(one, rel=within)


def test_request_effect_has_the_published_spread():
    """ShareGPT, head, K=3: means of requests from 1.90 (p10) to 2.70 (p90); sd 0.4."""
    rates = HEAD["ShareGPT"][0]
    for request_sd, spread in ((0.4, 0.80), (0.0, 0.21)):
        found = rounds_of(Positions(rates, 3, 0, request_sd), 2000, 324)  # 728 tokens / 2.25
        low, high = np.percentile(1 + found.mean(axis=1), (10, 90))
        assert high - low == pytest.approx(spread, abs=0.07)


# -- traces ----------------------------------------------------------------------------------------


def test_trace_is_walked():
    # at token 0: 2 accepted, on to 3: none, on to 4: 9 of at most 3, beyond the end: again
    acceptance = Traced([[2, 7, 7, 0, 9]], k_max=3, seed=0)
    assert acceptance.accepted(5, 7).tolist() == [2, 0, 3, 2, 0, 3, 2]


def test_trace_requests_are_drawn():
    acceptance = Traced([[0], [1, 1], [2, 2, 2]], k_max=2, seed=4)
    means = [acceptance.accepted(i, 6).mean() for i in range(600)]
    for mean in (0, 1, 2):
        assert 140 < means.count(mean) < 260
    again = Traced([[0], [1, 1], [2, 2, 2]], k_max=2, seed=4)
    assert [again.accepted(i, 6).mean() for i in range(599, -1, -1)] == means[::-1]
