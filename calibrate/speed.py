"""Times on a machine whose speed changes while it is measured.

A shared processor runs the same step 1.3 to 2 times as fast now and then, for moments that no
grid of points can be measured in. The fastest run of a point says whether such a moment met it
rather than what it costs, and two points are compared across different speeds.

So points are visited in turns, and a visit's time is taken as *time of the point x speed of the
moment*. All points share the moments: the speed around a visit is what most of its neighbours, of
whatever points, took beyond their own usual time. The time of a point is then the median of its
visits, each at the speed the machine mostly had. Logarithms make it a sum, which is solved by
taking medians in turns (as in Tukey's median polish); a few odd visits move neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEIGHBOURS = 8
"""Visits before, and after, one that tell the speed around it."""

ROUNDS = 8
"""Turns of medians; the figures move by less than a percent after three."""


def usual_ms(points: Sequence[int], times_ms: Sequence[float]) -> tuple[Floats, Floats]:
    """Return what each point takes at the speed the machine mostly has.

    Args:
        points: whose visit it was, numbers from 0 without a gap; one a visit, in order of time.
        times_ms: what each visit took, milliseconds, > 0.

    Returns:
        Milliseconds by number of the point, and how slow the machine was at each visit (1: as
        mostly, 2: everything takes twice as long).
    """
    if not len(points):
        return np.empty(0), np.empty(0)
    of = np.asarray(points, dtype=np.int64)
    logs = np.log(np.asarray(times_ms, dtype=np.float64))
    visits = [np.flatnonzero(of == point) for point in range(int(of.max()) + 1)]
    slow = np.zeros(len(of))
    own = _medians(logs, visits)
    for _ in range(ROUNDS):
        slow = _around(logs - own[of])
        slow -= np.median(slow)
        own = _medians(logs - slow, visits)
    return np.exp(own), np.exp(slow)


def _medians(values: Floats, groups: Sequence[NDArray[np.int64]]) -> Floats:
    return np.array([np.median(values[group]) for group in groups], dtype=np.float64)


def _around(values: Floats) -> Floats:
    """Return the median of each value and its `NEIGHBOURS` on both sides."""
    edge = np.full(NEIGHBOURS, np.nan)
    padded = np.concatenate([edge, values, edge])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
    medians: Floats = np.nanmedian(windows, axis=1)
    return medians
