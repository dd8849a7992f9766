"""Whether a run kept up with its arrivals.

The evidence is the number of requests that wait for their first admission, averaged over slices of
the window. A queue in equilibrium wanders; in an overloaded system it grows by the excess of
arrivals over completions for as long as they come.

* `overloaded`: over the last two thirds of the window the queue grows, by least squares, by more
  than 4 % of the arrivals (load above about 1.04) plus 1.5 standard deviations of a Poisson count.
* `backlogged`: it grows by more than those standard deviations, or more than a tenth of what the
  window admitted still waits at its end, or all requests arrive at once.
* `stable`: neither.

One short run near capacity cannot be told from one a little above it: use replications, the verdict
of a study is that of most of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STABLE, BACKLOGGED, OVERLOADED = "stable", "backlogged", "overloaded"
SEVERITY = (STABLE, BACKLOGGED, OVERLOADED)

SLICES = 60
"""Slices of the window: twenty in each third."""
EXCESS = 0.04
"""Growth of the queue over arrivals above which the load is called more than the system takes."""
SPREAD = 1.5
"""Standard deviations of the number of arrivals that may be chance."""
FEW = 10
"""A queue of so few requests is nothing to worry about."""
LATE_SHARE = 0.1
"""Final queue over admissions in the window."""


def verdict(
    requests: Mapping[str, NDArray[Any]],
    start_s: float,
    end_s: float,
    abort_after_s: float | None = None,
) -> str:
    """Return `stable`, `backlogged` or `overloaded` for the window from start to end."""
    served = requests["status"] != "rejected"
    arrival = requests["arrival_s"][served]
    admitted = np.where(
        np.isnan(requests["prefill_start_s"][served]), np.inf, requests["prefill_start_s"][served]
    )
    if abort_after_s is not None:
        admitted = np.minimum(admitted, arrival + abort_after_s)
    if len(arrival) < 2 or arrival[0] == arrival[-1]:
        return BACKLOGGED if (admitted > arrival).any() else STABLE
    edges = np.linspace(start_s, end_s, SLICES + 1)
    waiting = _mean_waiting(arrival, np.sort(admitted), edges)
    final = int((arrival <= end_s).sum() - (admitted <= end_s).sum())
    if final <= FEW:
        return STABLE
    late = waiting[SLICES // 3 :]
    slope = float(np.polyfit(np.arange(len(late)), late, 1)[0])
    arrived = int(((arrival >= edges[SLICES // 3]) & (arrival <= end_s)).sum())
    excess = slope * len(late) - SPREAD * arrived**0.5
    if excess > EXCESS * arrived:
        return OVERLOADED
    admissions = ((admitted > start_s) & (admitted <= end_s)).sum()
    return BACKLOGGED if excess > 0 or final > LATE_SHARE * admissions else STABLE


def overall(verdicts: Sequence[str]) -> str:
    """Return the verdict of most replications; of two equally frequent the worse."""
    counts = Counter(verdicts)
    return max(counts, key=lambda v: (counts[v], SEVERITY.index(v)))


def _mean_waiting(
    arrival: NDArray[Any], admitted: NDArray[Any], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean number of waiting requests in each slice between `edges`."""

    def waited_until(t: NDArray[np.float64]) -> NDArray[np.float64]:
        # Integral of the queue up to t: each request adds min(t, admitted) - min(t, arrival).
        return _integral(arrival, t) - _integral(admitted, t)

    means: NDArray[np.float64] = np.diff(waited_until(edges)) / np.diff(edges)
    return means


def _integral(times: NDArray[Any], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sum(max(t - time, 0)) over the sorted `times`."""
    finite = times[np.isfinite(times)]
    sums = np.concatenate([[0.0], np.cumsum(finite)])
    n = np.searchsorted(finite, t, side="right")
    integral: NDArray[np.float64] = n * t - sums[n]
    return integral
