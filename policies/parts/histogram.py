"""A histogram of prompt lengths that forgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.types import N

RESCALE_AFTER: Final = 64.0
"""Half-lives after which weights are scaled down, far before a float overflows."""
COUNT_AFTER: Final = 1000
"""Arrivals that are kept until they are put into their bins all at once."""


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
        self._new: list[tuple[N, float]] = []
        """(length, arrival) of those in no bin yet."""
        self._weights = np.zeros(len(self.starts))
        self._origin_s = 0.0
        self._latest_s = 0.0
        self._next_s = 0.0
        self._arrivals: N = 0
        self._next_arrivals: N = 1

    def add(self, length: N, now_s: float) -> None:
        """Note a request that arrives now."""
        self._new.append((length, now_s))
        if len(self._new) == COUNT_AFTER:
            self._count()

    @property
    def due(self) -> bool:
        """Whether it is time for an evaluation."""
        self._count()
        return self._arrivals >= self._next_arrivals or (
            self._latest_s >= self._next_s and self._arrivals > 0
        )

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
        if not self._new:
            return
        lengths, times_s = zip(*self._new, strict=True)
        self._arrivals += len(self._new)
        self._new.clear()
        self._latest_s = times_s[-1]
        age = (self._latest_s - self._origin_s) / self.half_life_s
        if age > RESCALE_AFTER:
            self._weights *= 2.0 ** -min(age, 1000.0)
            self._origin_s = self._latest_s
        counts = 2.0 ** ((np.array(times_s) - self._origin_s) / self.half_life_s)
        at = self.starts.searchsorted(lengths, "right") - 1
        self._weights += np.bincount(at, counts, len(self._weights))
