"""Mean, spread and percentiles under the keys of vLLM's benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.study.statistics.runs import Floats, Runs

PERCENTILES = (90, 95, 99)


def moments(name: str, values: Floats) -> dict[str, float]:
    """Return the figures of single values, in milliseconds; NaN without any."""
    if not len(values):
        values = np.array([np.nan])
    quantiles: Sequence[float] = np.percentile(values, [50, *PERCENTILES]).tolist()
    return _named(name, float(values.mean()), float(values.std()), quantiles)


def run_moments(name: str, runs: Runs) -> dict[str, float]:
    """Return the figures of arithmetic runs of values, in milliseconds."""
    quantiles = [runs.quantile(p / 100) for p in (50, *PERCENTILES)]
    return _named(name, runs.mean(), runs.std(), quantiles)


def _named(name: str, mean: float, std: float, quantiles: Sequence[float]) -> dict[str, float]:
    named = {f"mean_{name}_ms": mean, f"median_{name}_ms": quantiles[0], f"std_{name}_ms": std}
    for percent, value in zip(PERCENTILES, quantiles[1:], strict=True):
        named[f"p{percent}_{name}_ms"] = value
    return named
