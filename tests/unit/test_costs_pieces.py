"""Sums, shares and maxima of affine pieces agree with the numbers at every KV total."""

from random import Random

import pytest

from sim.costs.pieces import combined, scaled, slower
from sim.types import DecodePiece


def chain(rng):
    """Return up to three random pieces that end within the tested range."""
    ends = sorted(rng.sample(range(1, 60), rng.randint(0, 2)))
    first = last = DecodePiece(rng.randint(0, 300), rng.randint(0, 9))
    for end in ends:
        last.kv_end = end
        last.next = DecodePiece(rng.randint(0, 300), rng.randint(0, 9))
        last = last.next
        last.extrapolated = rng.random() < 0.5
    return first


@pytest.mark.parametrize("seed", range(60))
def test_at_every_kv(seed):
    rng = Random(seed)
    a, b = chain(rng), chain(rng)
    times, more = rng.randint(1, 4), rng.randint(0, 5)
    both, top, share = combined(a, b, times), slower(a, b, more), scaled(a, 3, 7)
    for kv in range(90):
        assert both.at(kv) == a.at(kv) + times * b.at(kv)
        assert top.at(kv) == max(a.at(kv), b.at(kv)) + more
        assert abs(share.at(kv) - a.at(kv) * 3 / 7) <= 1 + kv
        outside = piece(a, kv).extrapolated or piece(b, kv).extrapolated
        assert piece(both, kv).extrapolated == piece(top, kv).extrapolated == outside
        assert piece(share, kv).extrapolated == piece(a, kv).extrapolated


def test_the_parts_stay_as_they_are():
    a, b = DecodePiece(5, 1, 10), DecodePiece(2, 2)
    a.next = DecodePiece(7, 0)
    slower(a, b)
    assert (a.kv_end, b.next) == (10, None)


def piece(first, kv):
    while first.next is not None and kv >= first.kv_end:
        first = first.next
    return first
