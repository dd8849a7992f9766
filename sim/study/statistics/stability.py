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
of a study is that of most of them. Near saturation a queue wanders for so long that a whole run
sees few independent states of it: its means are skewed, and their intervals are too narrow. So a
stable study is still `backlogged` when its runs are worth fewer than 130 independent requests, and
requests are correlated: five or more tell as much about TTFT as one independent one would.
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

BATCHES = 20
"""Parts of a run whose mean TTFTs are compared."""
LEAST_IN_BATCH = 5
"""Requests in each, at least."""
LEAST_EFFECTIVE = 130
"""Independent requests below which a run's mean is too skewed for Student's interval (our choice:
those of M/M/1 and M/D/1 cover 92-93 % below it, see tests/theory/test_coverage.py)."""
CORRELATED = 5
"""Requests that count as one, from which on requests are called correlated."""


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


def effective_requests(ttft_ms: NDArray[Any]) -> float:
    """Return how many independent requests the mean TTFT of a run is worth; NaN for short runs.

    It is the variance of single values over that of the run's mean, the latter from the means of
    twenty parts: at least about 20, and good to a third.

    Args:
        ttft_ms: of the counted requests, in the order of arrival.
    """
    length = len(ttft_ms) // BATCHES
    if length < LEAST_IN_BATCH:
        return float("nan")
    parts = ttft_ms[len(ttft_ms) - BATCHES * length :].reshape(BATCHES, length)
    of_means = float(parts.mean(axis=1).var(ddof=1))
    requests = float(parts.size)
    return min(BATCHES * float(parts.var()) / of_means, requests) if of_means else requests


def of_study(replications: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdict of a study from the `saturation` and `effective_requests` of its runs."""
    found = overall([r["saturation"] for r in replications])
    effective = [r.get("effective_requests", float("nan")) for r in replications]
    if found != STABLE or not np.isfinite(effective).all():
        return found
    worth = float(np.mean(effective))
    correlated = float(np.mean([r["completed"] for r in replications])) / worth
    return BACKLOGGED if worth < LEAST_EFFECTIVE and correlated >= CORRELATED else STABLE


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
