"""A histogram of prompt lengths that forgets."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.types import N

RESCALE_AFTER: Final = 64.0
"""Half-lives after which weights are scaled down, far before a float overflows."""


class LengthHistogram:
    """Weights of length bins; an arrival counts half as much after every `half_life_s`.

    It is `due` for evaluation when a period has passed since the last one, and when as many
    requests have arrived since as had arrived before, so that the first ones are soon replaced.
    Both go by the latest arrival, so asking often or seldom makes no difference.

    Args:
        starts: shortest length of every bin, ascending from 0.
        period_s: seconds between evaluations.
        half_life_s: seconds after which an arrival counts half.
    """

    def __init__(self, starts: Sequence[N], period_s: float, half_life_s: float) -> None:
        self.starts = np.array(starts)
        self.prices: NDArray[np.float64] = np.empty(0)
        """Price of a row as long as a bin's longest prompt; whoever evaluates fills it in once."""
        self.period_s = period_s
        self.half_life_s = half_life_s
        self._lengths = array("q")
        """Of those in no bin yet."""
        self._times_s = array("d")
        """When they arrived."""
        self._weights = np.zeros(len(self.starts))
        self._origin_s = 0.0
        self._latest_s = 0.0
        self._next_s = 0.0
        self._arrivals: N = 0
        self._next_arrivals: N = 1

    def add(self, length: N, now_s: float) -> None:
        """Note a request that arrives now."""
        self._lengths.append(length)
        self._times_s.append(now_s)

    @property
    def due(self) -> bool:
        """Whether it is time for an evaluation."""
        arrivals = self._arrivals + len(self._times_s)
        if arrivals >= self._next_arrivals:
            return True
        latest_s = self._times_s[-1] if self._times_s else self._latest_s
        return arrivals > 0 and latest_s >= self._next_s

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight of every bin; only their proportions mean something."""
        self._count()
        return self._weights

    def settle(self) -> None:
        """Note that the weights have been evaluated."""
        self._count()
        self._next_s = self._latest_s + self.period_s
        self._next_arrivals = 2 * self._arrivals

    def _count(self) -> None:
        """Put into the bins what has arrived."""
        if not self._times_s:
            return
        lengths, times_s = np.array(self._lengths), np.array(self._times_s)
        del self._lengths[:], self._times_s[:]
        self._arrivals += len(times_s)
        self._latest_s = float(times_s[-1])
        age = (self._latest_s - self._origin_s) / self.half_life_s
        if age > RESCALE_AFTER:
            self._weights *= 2.0 ** -min(age, 1000.0)
            self._origin_s = self._latest_s
        counts = np.exp2((times_s - self._origin_s) / self.half_life_s)
        at = self.starts.searchsorted(lengths, "right") - 1
        self._weights += np.bincount(at, counts, len(self._weights))
