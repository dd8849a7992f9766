"""Weighted statistics of arithmetic runs: what a step log is made of, never expanded.

A span of n decode steps lasts d, d+i, d+2i, … and holds K, K+B, K+2B, … cached tokens. Means are
closed sums; order statistics are found by halving (quickselect over runs), so that a hundred
million steps cost no more than the spans that describe them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXPAND_STEPS = 100_000
"""So few values left in a selection are written out and sorted."""

PIVOT_SAMPLE = 1001
"""Runs looked at to choose a pivot."""


@dataclass(frozen=True)
class Runs:
    """Values first + k*increment (increment >= 0), weighing weight + k*slope, for 0 <= k < count.

    All arrays have shape (runs,); the weights are not negative.
    """

    first: Floats
    increment: Floats
    count: Floats
    weight: Floats
    slope: Floats

    @classmethod
    def of(cls, first: Floats, weight: Floats | float = 1.0) -> Runs:
        """Return runs of one value each."""
        ones = np.ones(len(first))
        return cls(first, ones * 0, ones, ones * weight, ones * 0)

    @classmethod
    def joined(cls, parts: Sequence[Runs]) -> Runs:
        """Return the runs of all parts together, without the empty ones."""
        columns = [np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)]
        return cls(*columns).kept((columns[2] > 0) & ((columns[3] > 0) | (columns[4] > 0)))

    def kept(self, mask: NDArray[np.bool_]) -> Runs:
        """Return the runs marked in `mask`."""
        return self if mask.all() else Runs(*[getattr(self, f.name)[mask] for f in fields(self)])

    # -- sums -------------------------------------------------------------------------------

    def total(self) -> float:
        """Return the sum of all weights."""
        return float(np.sum(_weight_of(self.count, self.weight, self.slope)))

    def mean(self) -> float:
        """Return the weighted mean; NaN without values."""
        total = self.total()
        return self._moment(0.0, 1) / total if total else float("nan")

    def std(self) -> float:
        """Return the weighted standard deviation; NaN without values."""
        total = self.total()
        if not total:
            return float("nan")
        return float(max(self._moment(self.mean(), 2) / total, 0.0) ** 0.5)

    def _moment(self, centre: float, power: int) -> float:
        """Return sum(weight * (value - centre)**power) for a power of 1 or 2."""
        n, a, b = self.count, self.first - centre, self.increment
        s0, s1 = n, n * (n - 1) / 2  # s_j: sum of k**j
        s2, s3 = s1 * (2 * n - 1) / 3, s1 * s1
        if power == 1:
            sums = self.weight * (a * s0 + b * s1) + self.slope * (a * s1 + b * s2)
        else:
            plain = a * a * s0 + 2 * a * b * s1 + b * b * s2
            tilted = a * a * s1 + 2 * a * b * s2 + b * b * s3
            sums = self.weight * plain + self.slope * tilted
        return float(np.sum(sums))

    # -- order statistics -------------------------------------------------------------------

    def quantile(self, share: float) -> float:
        """Return the smallest value with at least `share` of the weight at or below it."""
        if not len(self.first):
            return float("nan")
        runs, target = self, share * self.total()
        while runs.count.sum() > EXPAND_STEPS:
            last = runs.first + (runs.count - 1) * runs.increment
            low, high = float(runs.first.min()), float(last.max())
            pivot = float(np.median(runs.first[:: 1 + len(last) // PIVOT_SAMPLE]))
            if pivot >= high:
                pivot = (low + high) / 2
            if not low <= pivot < high:
                return high
            below = np.minimum(runs._steps_up_to(pivot), runs.count - (last > pivot))
            weight = float(np.sum(_weight_of(below, runs.weight, runs.slope)))
            if weight >= target:
                runs = runs._cut(np.zeros(len(below)), below)
            else:
                target -= weight
                runs = runs._cut(below, runs.count)
        return runs._select(target)

    def _steps_up_to(self, value: float) -> Floats:
        """Return how many values of each run are at most `value`."""
        rising = self.increment > 0
        steps = np.where(value >= self.first, self.count, 0.0)
        step = np.divide(value - self.first, self.increment, out=np.zeros_like(steps), where=rising)
        return np.where(rising, np.clip(np.floor(step) + 1, 0, self.count), steps)

    def _cut(self, start: Floats, stop: Floats) -> Runs:
        """Return the values `start` to `stop` of each run."""
        cut = Runs(
            self.first + start * self.increment,
            self.increment,
            stop - start,
            self.weight + start * self.slope,
            self.slope,
        )
        return cut.kept(cut.count > 0)

    def _select(self, target: float) -> float:
        """Return the value where the cumulated weight reaches `target`, by sorting."""
        counts = self.count.astype(np.int64)
        run = np.repeat(np.arange(len(counts)), counts)
        step = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = self.first[run] + step * self.increment[run]
        order = np.argsort(values, kind="stable")
        cumulated = np.cumsum((self.weight[run] + step * self.slope[run])[order])
        wanted = max(target * (1 - 1e-12), np.nextafter(0, 1))  # a value of no weight is none
        at = int(np.searchsorted(cumulated, wanted))
        return float(values[order[min(at, len(values) - 1)]])


def _weight_of(count: Floats, weight: Floats, slope: Floats) -> Floats:
    """Return the weight of the first `count` values of each run."""
    return count * weight + slope * (count * (count - 1) / 2)
