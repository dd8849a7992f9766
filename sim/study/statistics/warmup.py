"""Where a run's warm-up ends, by MSER-5 (White, Cobb and Spratt 2000, doi:10.1109/WSC.2000.899139).

A run starts empty: its first requests are served sooner than later ones. Values in the order of
arrival are averaged by five; the cut is where the means that remain have the smallest squared
standard error, sum((y - mean)**2) / m**2 over m means. It is looked for in TTFT, which follows the
queue, and in TPOT, which follows the batch; the later of the two counts. The last five means are
never the start of what remains; a best cut in the second half of the run says that no steady state
was found (there is none, or few values scatter too much to show it), and half is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BATCH = 5
"""Values averaged before the search, and means that always remain: the 5 of MSER-5."""

ROUNDING = 1e-9
"""Values that differ relatively by less are equal."""


@dataclass(frozen=True)
class Warmup:
    """Where a warm-up ends.

    Attributes:
        end_s: requests that arrive earlier do not count, seconds.
        settled: whether a steady state was found in the first half of the run.
    """

    end_s: float
    settled: bool = True


def warmup_of(requests: Mapping[str, NDArray[Any]]) -> Warmup:
    """Return the warm-up of a run, from the columns of its finished requests."""
    done = np.flatnonzero(requests["status"] == "finished")
    done = done[np.argsort(requests["arrival_s"][done], kind="stable")]
    arrival, first, finish, emitted = (
        requests[key][done] for key in ("arrival_s", "first_token_s", "finish_s", "emitted_tokens")
    )
    several = emitted > 1
    tpot = (finish - first)[several] / (emitted[several] - 1)
    found = [_warmup(arrival, first - arrival), _warmup(arrival[several], tpot)]
    return Warmup(max(w.end_s for w in found), all(w.settled for w in found))


def mser5(values: Floats) -> tuple[int, bool]:
    """Return how many values to cut, at most half, and whether the best cut is among those."""
    means = values[: len(values) // BATCH * BATCH].reshape(-1, BATCH).mean(axis=1)
    if len(means) <= 2 * BATCH or np.ptp(means) <= ROUNDING * abs(means).max():
        return 0, True
    centred = means - means.mean()
    left = np.arange(len(means), 0, -1)
    sums, squares = (np.cumsum(c[::-1])[::-1] for c in (centred, centred**2))
    error = (squares - sums**2 / left) / left**2
    half = len(means) // 2
    settled = int(error[:-BATCH].argmin()) <= half
    return (int(error[: half + 1].argmin()) if settled else half) * BATCH, settled


def _warmup(arrival: Floats, values: Floats) -> Warmup:
    count, settled = mser5(values)
    return Warmup(float(arrival[count]) if count else 0.0, settled)
