"""Means over replications with Student-t intervals and paired differences; n is always carried.

Percentiles, too, are taken in each replication and averaged; their intervals are Student's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from sim.study.statistics.stability import of_study

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
"""Significance level of tests."""

PAIRED_OF_CLASSES = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms")
"""What is compared of a class, and its attainments."""

Pairs = Sequence[tuple[float, float]]
"""The same figure of two policies, in each replication."""


@dataclass(frozen=True)
class Interval:
    """A mean over replications.

    Attributes:
        mean: of the values.
        low: lower end of the 95 % interval; NaN with one replication.
        high: upper end.
        n: replications.
    """

    mean: float
    low: float
    high: float
    n: int


def student_t(values: Sequence[float]) -> Interval:
    """Return mean and interval of independent replications.

    A value that is undefined (NaN) in one replication makes the result undefined.
    """
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = _t_quantile(n) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


def aggregate(replications: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a study from those of its replications.

    Numbers become means with `{key}_ci_low` and `{key}_ci_high`, the stability verdict that of most
    replications. In nested figures, what a replication lacks (a class without a request) counts 0
    there, or is undefined.
    """
    summary = {"n_replications": len(replications)} | _means(replications)
    if "saturation" in replications[0]:
        summary["saturation"] = of_study(replications)
    return summary


def _means(replications: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for r in replications for key in r):
        value = next(r[key] for r in replications if key in r)
        values = [r[key] if key in r else _nothing(value) for r in replications]
        if isinstance(value, Mapping):
            summary[key] = _means(values)
            continue
        if not isinstance(value, Real):
            continue
        interval = student_t(values)
        whole = all(isinstance(v, int) for v in values) and interval.mean.is_integer()
        summary[key] = int(interval.mean) if whole else interval.mean
        summary[f"{key}_ci_low"] = interval.low
        summary[f"{key}_ci_high"] = interval.high
    return summary


def _nothing(like: Any) -> Any:
    """Return what a replication has of a figure that only others have."""
    if isinstance(like, Mapping):
        return {key: _nothing(value) for key, value in like.items()}
    return 0 if isinstance(like, int) else math.nan


def difference(pairs: Pairs) -> dict[str, float]:
    """Return the paired difference of the first to the second: absolute and in percent of that."""
    absolute = student_t([mine - base for mine, base in pairs])
    percent = student_t([(mine - base) / base * 100 if base else math.nan for mine, base in pairs])
    return {
        "diff": absolute.mean,
        "ci_low": absolute.low,
        "ci_high": absolute.high,
        "percent": percent.mean,
        "percent_ci_low": percent.low,
        "percent_ci_high": percent.high,
        "n": absolute.n,
    }


def paired_p(pairs: Pairs) -> float:
    """Return the two-sided p-value of Student's t test that the differences are 0 on average."""
    from scipy.special import stdtr

    interval = student_t([mine - base for mine, base in pairs])
    if not math.isfinite(interval.low):
        return math.nan
    if interval.low == interval.high:  # the same difference in every pair
        return 0.0 if interval.mean else 1.0
    error = (interval.high - interval.mean) / _t_quantile(interval.n)
    return float(2 * stdtr(interval.n - 1, -abs(interval.mean / error)))


def differences(
    replications: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return, for each numeric key, the paired difference to the baseline (see `difference`).

    Differences are formed replication by replication. Under `classes` they are those of each class
    that has requests in every replication.
    """
    found: dict[str, Any] = {}
    for key, value in replications[0].items():
        if isinstance(value, Real):
            found[key] = difference(
                [(r[key], b[key]) for r, b in zip(replications, baseline, strict=True)]
            )
    every = [*replications, *baseline]
    if all("classes" in r for r in every):
        found["classes"] = _class_differences(replications, baseline)
    return found


def _class_differences(
    replications: Sequence[Mapping[str, Any]], baseline: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for grouping, classes in replications[0]["classes"].items():
        found[grouping] = {}
        for name, figures in classes.items():
            every = [r["classes"].get(grouping, {}).get(name) for r in (*replications, *baseline)]
            if not all(f and f["arrived"] for f in every):
                continue
            mine, base = every[: len(replications)], every[len(replications) :]
            compared = [k for k in figures if k in PAIRED_OF_CLASSES or k.startswith("slo_")]
            found[grouping][name] = {
                key: difference([(m[key], b[key]) for m, b in zip(mine, base, strict=True)])
                for key in compared
            }
    return found


def _t_quantile(n: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
