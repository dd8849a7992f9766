"""Intervals from one long run: means of batches of successive values, in place of replications.

Successive requests meet the same queue, so their values are correlated; means of long batches
hardly are. Of 40, 20 and 10 batches the most are taken whose means show no correlation from one to
the next (lag-1 correlation within the one-sided 95 % bound of independent means); where even ten
do, their interval is given and said to be too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.statistics.stats import Interval, student_t

Floats = NDArray[np.float64]

BATCHES = (40, 20, 10)
"""Numbers of batches tried."""
LEAST_VALUES = 10
"""Values in a batch, at least."""
LAG1_BOUND = 1.645
"""Times 1/sqrt(batches): what the lag-1 correlation of independent means exceeds once in twenty."""


@dataclass(frozen=True)
class BatchMeans:
    """The mean of one run.

    Attributes:
        interval: mean of the batches and Student t over them; `n` is the number of batches.
        lag1: correlation of the means of neighbouring batches.
        independent: whether that may be chance.
    """

    interval: Interval
    lag1: float
    independent: bool


def batch_means(values: Floats) -> BatchMeans | None:
    """Return the interval of the mean of successive values; None for too few of them."""
    found: BatchMeans | None = None
    for batches in BATCHES:
        length = len(values) // batches
        if length < LEAST_VALUES:
            continue
        # What is left over is dropped at the start, where a warm-up would be.
        means = values[len(values) - batches * length :].reshape(batches, length).mean(axis=1)
        lag1 = _lag1(means)
        independent = lag1 <= LAG1_BOUND / math.sqrt(batches)
        found = BatchMeans(student_t(means.tolist()), lag1, independent)
        if independent:
            break
    return found


def with_batch_means(summary: Mapping[str, Any], series: Mapping[str, Floats]) -> dict[str, Any]:
    """Return the summary of one run with intervals from batches.

    Args:
        summary: of a study of one replication (`sim.study.statistics.stats.aggregate`).
        series: key -> the values that its figure is the mean of, in order.

    Returns:
        The summary, where `{key}_ci_low` and `{key}_ci_high` are set, and `batch_means` tells for
        each key the number of batches, their lag-1 correlation, and if they pass as independent.
    """
    filled = dict(summary)
    told: dict[str, Any] = {}
    for key, values in series.items():
        found = batch_means(values)
        if found is None or not math.isfinite(found.interval.mean):
            continue
        half = (found.interval.high - found.interval.low) / 2
        filled[f"{key}_ci_low"] = summary[key] - half
        filled[f"{key}_ci_high"] = summary[key] + half
        told[key] = {
            "batches": found.interval.n,
            "lag1": found.lag1,
            "independent": found.independent,
        }
    return filled | {"batch_means": told}


def _lag1(means: Floats) -> float:
    centred = means - means.mean()
    square = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum()) / square if square else 0.0
