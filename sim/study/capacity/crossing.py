"""Where a noisy step function of the rate falls: bracketing, bisection, neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LARGEST_STEP = 2.0
"""Of the bracketing, as a factor on the rate."""
NEIGHBOURS = 2
"""Widths between an end of the bisection and its neighbour."""


@dataclass(frozen=True)
class Span:
    """Where to search.

    Attributes:
        start_per_s: first rate tried, requests per second.
        step: factor from it to the second; it grows to `LARGEST_STEP`.
        least_per_s: lowest rate tried.
        most_per_s: highest rate tried.
        width: the ends of the bisection are so close, relative to the upper.
        neighbours: whether a rate beyond each end is tried, too.
    """

    start_per_s: float
    step: float
    least_per_s: float
    most_per_s: float
    width: float
    neighbours: bool = True


@dataclass(frozen=True)
class Crossing:
    """What a search found.

    Attributes:
        low_per_s: lower end of the bisection, a rate that reaches the target; 0: none does.
        high_per_s: upper end, a rate that misses it; infinite: none tried does.
        tried: every rate that was run, and whether it reaches the target.
    """

    low_per_s: float
    high_per_s: float
    tried: tuple[tuple[float, bool], ...]

    @property
    def rate_per_s(self) -> float:
        """The middle of the ends; 0 where no rate reaches the target."""
        if not self.low_per_s or self.open:
            return self.low_per_s
        return (self.low_per_s + self.high_per_s) / 2

    @property
    def open(self) -> bool:
        """Whether even the highest rate tried reaches the target."""
        return math.isinf(self.high_per_s)

    @property
    def monotone(self) -> bool:
        """Whether no rate tried reaches the target above one that misses it."""
        misses = [rate for rate, reached in self.tried if not reached]
        reaches = [rate for rate, reached in self.tried if reached]
        return max(reaches, default=0.0) < min(misses, default=math.inf)


def crossing(reached: Callable[[float], bool], span: Span) -> Crossing:
    """Return where `reached` turns from true to false.

    Both ends have been tried and, if asked for, a neighbour beyond each. Where the function is not
    monotone there are several such places; this is one of them.
    """
    tried: dict[float, bool] = {}

    def attempt(rate: float) -> bool:
        tried[rate] = reached(rate)
        return tried[rate]

    low, high = _bracket(attempt, span)
    if low and not math.isinf(high):
        while high - low > span.width * high:
            middle = (low + high) / 2
            if attempt(middle):
                low = middle
            else:
                high = middle
        beyond = NEIGHBOURS * span.width
        for rate in (low * (1 - beyond), high * (1 + beyond)):
            if rate > 0 and span.neighbours:
                attempt(rate)
    return Crossing(low, high, tuple(sorted(tried.items())))


def _bracket(attempt: Callable[[float], bool], span: Span) -> tuple[float, float]:
    """Return a rate that reaches the target (0: none) and one above that misses it (or inf)."""
    low, high = 0.0, math.inf
    rate, step = span.start_per_s, span.step
    while True:
        if attempt(rate):
            low = rate
            if math.isfinite(high) or rate >= span.most_per_s:
                return low, high
            rate = min(rate * step, span.most_per_s)
        else:
            high = rate
            if low or rate <= span.least_per_s:
                return low, high
            rate = max(rate / step, span.least_per_s)
        step = min(step * step, LARGEST_STEP)
