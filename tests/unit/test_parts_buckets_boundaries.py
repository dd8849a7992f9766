"""Computed boundaries: the dynamic programme against brute force, Eq. 4, the histogram."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import numpy as np
import pytest

from policies.parts.boundaries import (
    best_partition,
    centroid_cuts,
    cheapest_cuts,
    geometric_starts,
    row_prices,
)
from policies.parts.histogram import LengthHistogram
from sim.costs.simple import AffineCost
from sim.types import CostModel, DecodePiece


class Quadratic(CostModel):
    """1000 + 10 * tokens + sum of squares, femtoseconds."""

    def decode(self, batch: int) -> DecodePiece:
        return DecodePiece(1, 0)

    def step(self, chunks: int, new: int, context: int, quad: int, batch: int, kv: int) -> int:
        return 1000 + 10 * new + quad

    def extrapolates(self, new: int, batch: int) -> bool:
        return False


def price_of(cuts: list[int], weights: list[int], prices: list[float]) -> float:
    """A bucket costs its weight times the price of its longest bin in use."""
    total = 0.0
    for begin, end in zip(cuts, [*cuts[1:], len(weights)], strict=True):
        used = [at for at in range(begin, end) if weights[at]]
        if used:
            total += sum(weights[begin:end]) * prices[used[-1]]
    return total


def all_cuts(bins: int, max_buckets: int) -> list[list[int]]:
    return [
        [0, *rest] for inner in range(max_buckets) for rest in combinations(range(1, bins), inner)
    ]


@pytest.mark.parametrize("seed", range(200))
def test_programme_equals_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    bins, max_buckets = draw.randint(1, 9), draw.randint(1, 5)
    uppers = sorted(draw.sample(range(1, 200), bins))
    cost = draw.choice([Quadratic(), AffineCost(0.01, 0.001)])
    rows = [max(1, 256 // upper) for upper in uppers]
    prices = row_prices(cost, uppers, rows)
    weights = [draw.choice([0, draw.randint(1, 40)]) for _ in range(bins)]
    cuts = cheapest_cuts(np.array(weights, float), prices, max_buckets)
    assert cuts[0] == 0
    assert len(cuts) <= max_buckets
    assert cuts == sorted(set(cuts))
    best = min(price_of(c, weights, prices) for c in all_cuts(bins, max_buckets))
    assert price_of(cuts, weights, prices) == pytest.approx(best, rel=1e-12)


def test_partition_of_any_costs_equals_brute_force() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        size, groups = int(draw.integers(1, 8)), int(draw.integers(1, 6))
        costs = draw.integers(0, 20, (size, size)).astype(float)

        def total(cuts: list[int], costs: np.ndarray = costs, size: int = size) -> float:
            ends = [*cuts[1:], size]
            return sum(costs[i, j - 1] for i, j in zip(cuts, ends, strict=True))

        found = best_partition(np.where(np.tri(size, dtype=bool), costs.T, np.inf), groups)
        every = all_cuts(size, groups)
        least = min(total(c) for c in every)
        assert total(found) == least
        assert len(found) == min(len(c) for c in every if total(c) == least)


def test_price_of_a_row_by_hand() -> None:
    # 4 rows of 10: 1000 + 400 + 4 * 100 = 1800, 450 a row. 2 rows of 20: 1000 + 400 + 800 = 2200.
    assert row_prices(Quadratic(), [10, 20], [4, 2]).tolist() == [450.0, 1100.0]


def test_cheapest_cuts_by_hand() -> None:
    prices = np.array([1.0, 2.0, 3.0, 10.0, 11.0])
    # Two buckets: 0-2 at 3 (6 requests, 18) and 3-4 at 11 (2 requests, 22).
    assert cheapest_cuts(np.array([2, 2, 2, 1, 1]), prices, 2) == [0, 3]
    # Bin 2 is empty: the first bucket ends at its longest prompt, bin 1.
    assert cheapest_cuts(np.array([2, 2, 0, 1, 1]), prices, 2) == [0, 2]
    assert cheapest_cuts(np.array([2, 2, 0, 1, 1]), prices, 1) == [0]
    assert cheapest_cuts(np.array([2, 2, 0, 1, 1]), prices, 9) == [0, 1, 2, 4]
    assert cheapest_cuts(np.array([0, 0, 0, 0, 0]), prices, 3) == [0]


def test_centroids_by_hand() -> None:
    lengths = [10.0, 20.0, 30.0, 40.0, 50.0]
    # Halves of equal weight: bins 0-1 (2 + 2) and the rest; the mean of the first is 15, so it ends
    # with the bin that holds 15 or more: 20.
    assert centroid_cuts([2, 2, 2, 1, 1], lengths, 2) == [0, 2]
    assert centroid_cuts([4, 0, 2, 1, 1], lengths, 2) == [0, 1]
    assert centroid_cuts([0, 0, 0, 0, 3], lengths, 4) == [0]
    assert centroid_cuts([1, 1, 1, 1, 1], lengths, 1) == [0]


def test_geometric_bins() -> None:
    starts = geometric_starts(4096, 128)
    assert starts[:10] == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert starts == sorted(set(starts))
    assert starts[-1] < 4096
    assert len(starts) <= 128
    assert geometric_starts(1, 8) == geometric_starts(2, 8) == [0]
    assert max(b / a for a, b in pairwise(starts[20:])) < 1.1


def test_histogram_forgets_and_falls_due() -> None:
    histogram = LengthHistogram([0, 10], period_s=10.0, half_life_s=5.0)
    assert not histogram.due
    histogram.add(0, 0.0)
    assert histogram.due  # the first arrival
    histogram.settle()
    histogram.add(12, 5.0)
    assert histogram.weights[1] == 2 * histogram.weights[0]
    assert histogram.due  # one arrival before, one since
    histogram.settle()
    histogram.add(12, 6.0)
    assert not histogram.due
    histogram.add(12, 15.0)
    assert histogram.due  # the period has passed (and the number has doubled)


def test_histogram_rescales_before_it_overflows() -> None:
    histogram = LengthHistogram([0, 10], period_s=1.0, half_life_s=1.0)
    for second in range(5000):
        histogram.add(10 * (second % 2), float(second))
        if histogram.due:
            histogram.settle()
    assert sum(histogram.weights) < 2.0**80
    assert histogram.weights[1] == pytest.approx(2 * histogram.weights[0])
