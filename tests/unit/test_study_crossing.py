"""The search for a crossing, on step functions made up by hand."""

import math

import pytest

from sim.study.capacity.crossing import Span, crossing

SPAN = Span(start_per_s=10.0, step=2.0, least_per_s=10 / 256, most_per_s=160.0, width=0.01)


def search(reached, span=SPAN):
    tried = []

    def asked(rate):
        tried.append(rate)
        return reached(rate)

    return crossing(asked, span), tried


@pytest.mark.parametrize("capacity", [0.05, 1.0, 9.99, 10.0, 17.3, 159.0])
@pytest.mark.parametrize("start", [0.4, 10.0])
def test_both_ends_are_tried_and_as_close_as_asked(capacity, start):
    span = Span(start, 1.05, SPAN.least_per_s, SPAN.most_per_s, 0.01)
    found, tried = search(lambda rate: rate <= capacity, span)
    low, high = found.low_per_s, found.high_per_s
    assert low <= capacity < high
    assert high - low <= 0.01 * high
    assert {low, high} <= set(tried)
    assert found.rate_per_s == (low + high) / 2
    assert found.monotone
    assert not found.open
    assert sorted(set(tried)) == [rate for rate, _ in found.tried]
    assert len(tried) == len(set(tried))


def test_neighbours_are_tried_beyond_both_ends():
    found, tried = search(lambda rate: rate <= 7.0)
    below, above = tried[-2:]
    assert below == pytest.approx(found.low_per_s * 0.98)
    assert above == pytest.approx(found.high_per_s * 1.02)


def test_the_first_step_is_small_where_the_answer_is_near():
    span = Span(7.1, 1.05, SPAN.least_per_s, SPAN.most_per_s, 0.01)
    _, near = search(lambda rate: rate <= 7.0, span)
    _, far = search(lambda rate: rate <= 7.0)
    assert near[:2] == [7.1, pytest.approx(7.1 / 1.05)]
    assert len(near) < len(far)


def test_a_reached_rate_above_a_missed_one_is_told():
    found, _ = search(lambda rate: rate <= 7.0 and not 6.2 < rate < 6.3)
    assert found.low_per_s <= 6.2 < found.high_per_s
    assert not found.monotone  # the upper neighbour reaches the target


def test_no_rate_reaches():
    found, tried = search(lambda rate: False)
    assert (found.low_per_s, found.rate_per_s) == (0.0, 0.0)
    assert found.high_per_s == min(tried) == SPAN.least_per_s
    assert not found.open


def test_every_rate_reaches():
    found, tried = search(lambda rate: True)
    assert found.open
    assert math.isinf(found.high_per_s)
    assert found.rate_per_s == max(tried) == SPAN.most_per_s
