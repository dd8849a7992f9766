"""A histogram of prompt lengths that forgets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.types import N

RESCALE_AFTER: float = 64.0
"""Half-lives after which weights are scaled down, far before a float overflows."""


class LengthHistogram:
    """Weights of length bins; an arrival counts half as much after every `half_life_s`.

    It is `due` for evaluation when a period has passed since the last one, and when as many
    requests have arrived since as had arrived before, so that the first ones are soon replaced.
    Both are decided at arrivals, so asking often or seldom makes no difference.

    Args:
        bins: number of bins.
        period_s: seconds between evaluations.
        half_life_s: seconds after which an arrival counts half.
    """

    def __init__(self, bins: N, period_s: float, half_life_s: float) -> None:
        self.weights: list[float] = [0.0] * bins
        self.prices: NDArray[np.float64] = np.empty(0)
        """Price of a row as long as a bin's longest prompt; whoever evaluates fills it in once."""
        self.period_s = period_s
        self.half_life_s = half_life_s
        self.due = False
        self._origin_s = 0.0
        self._latest_s = 0.0
        self._next_s = 0.0
        self._arrivals: N = 0
        self._next_arrivals: N = 0

    def add(self, at: N, now_s: float) -> None:
        """Note a request of bin `at` that arrives now."""
        age = (now_s - self._origin_s) / self.half_life_s
        if age > RESCALE_AFTER:
            faded = 2.0 ** -min(age, 1000.0)
            self.weights = [w * faded for w in self.weights]
            self._origin_s, age = now_s, 0.0
        self.weights[at] += 2.0**age
        self._latest_s = now_s
        self._arrivals += 1
        if now_s >= self._next_s or self._arrivals >= self._next_arrivals:
            self.due = True

    def settle(self) -> None:
        """Note that the weights have been evaluated."""
        self.due = False
        self._next_s = self._latest_s + self.period_s
        self._next_arrivals = 2 * self._arrivals
