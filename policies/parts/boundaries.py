"""Where to cut a length histogram into buckets: an exact dynamic programme, and Eq. 4."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sim.types import CostModel, N


def geometric_starts(l_max: N, bins: N) -> list[N]:
    """Return the shortest length of at most `bins` bins up to `l_max`, equally wide in ratio.

    Short bins are one token wide; integers let fewer than `bins` remain.
    """
    edges = {round(l_max ** (at / bins)) for at in range(bins)}
    return [0, *sorted(edge for edge in edges if 1 < edge < l_max)]


def row_prices(cost: CostModel, uppers: Sequence[N], rows: Sequence[N]) -> NDArray[np.float64]:
    """Return the price of one row of a full padded batch, in femtoseconds, for each bucket end.

    Args:
        cost: prices the batch.
        uppers: length every row of the batch is padded to.
        rows: requests in the batch.
    """
    prices = [
        cost.step(n, n * upper, n * upper, n * upper * upper, 0, 0) / n
        for upper, n in zip(uppers, rows, strict=True)
    ]
    return np.array(prices)


@lru_cache(maxsize=4)
def _wall(size: N) -> NDArray[np.float64]:
    """Return 0 where a run's first element (column) is not after its last (row), else infinity."""
    return np.where(np.tri(size, dtype=bool), 0.0, np.inf)


def best_partition(costs: NDArray[np.float64], max_groups: N) -> list[N]:
    """Cut 0..m-1 into at most `max_groups` runs of least total cost; the fewest among equals.

    Dynamic programme over (number of groups, last element): O(max_groups * m^2).

    Args:
        costs: costs[j, i] of the run i..j, infinite for i > j.
        max_groups: groups at most, >= 1.

    Returns:
        The first element of every group.
    """
    size = len(costs)
    # A row for each last element: the least over all first ones is found in one run of memory.
    totals = np.empty_like(costs)
    rows = np.arange(size)
    best = costs[:, 0]
    least = [best[-1]]
    froms: list[NDArray[np.intp]] = []
    before = np.full(size, np.inf)
    for _ in range(1, min(max_groups, size)):
        before[1:] = best[:-1]
        np.add(costs, before, out=totals)
        froms.append(totals.argmin(axis=1))
        best = totals[rows, froms[-1]]
        least.append(best[-1])
    starts: list[N] = []
    last = size - 1
    for first in reversed(froms[: int(np.argmin(least))]):
        starts.append(int(first[last]))
        last = starts[-1] - 1
    return [0, *reversed(starts)]


def cheapest_cuts(
    weights: NDArray[np.float64], prices: NDArray[np.float64], max_buckets: N
) -> list[N]:
    """Return the first bin of every bucket that makes padded batches cheapest.

    A bucket costs its weight times the price of a row as long as its longest bin in use.

    Args:
        weights: requests in every bin.
        prices: price of a row as long as the bin's longest.
        max_buckets: buckets at most.
    """
    used = np.flatnonzero(weights > 0)
    if not len(used):
        return [0]
    sums = np.concatenate(([0.0], np.cumsum(weights[used])))
    ends = prices[used]
    costs = sums[1:, None] - sums[None, :-1]
    costs *= ends[:, None]
    costs += _wall(len(used))
    groups = best_partition(costs, max_buckets)
    return [0, *(int(used[group - 1]) + 1 for group in groups[1:])]


def centroid_cuts(weights: Sequence[float], lengths: Sequence[float], max_buckets: N) -> list[N]:
    """Return the first bin of every bucket by the paper's Eq. 4, U_b = E[S | S in bucket b].

    The buckets on the right are `max_buckets` equally heavy ones; the last keeps its upper end. To
    repeat it would shrink every bucket to nothing, for a mean is no upper bound.

    Args:
        weights: requests in every bin.
        lengths: middle length of every bin.
        max_buckets: buckets at most.
    """
    total = sum(weights)
    cuts = [0]
    share = mass = moment = 0.0
    groups = 1
    for at, weight in enumerate(weights):
        share += weight
        mass += weight
        moment += weight * lengths[at]
        if share * max_buckets >= groups * total and mass > 0 and groups < max_buckets:
            cut = bisect_left(lengths, moment / mass) + 1
            if cuts[-1] < cut < len(weights):
                cuts.append(cut)
            mass = moment = 0.0
            groups = int(share * max_buckets / total) + 1
    return cuts
