"""Means over replications with Student-t intervals; n is always carried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from sim.study.stability import overall

CONFIDENCE = 0.95


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
    from scipy.special import stdtrit

    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, n)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


def aggregate(replications: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a study from those of its replications.

    Numbers become means with `{key}_ci_low` and `{key}_ci_high`, the stability verdict that of most
    replications. In nested figures, what a replication lacks (a class without a request) counts 0
    there, or is undefined.
    """
    return {"n_replications": len(replications)} | _means(replications)


def _means(replications: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for r in replications for key in r):
        value = next(r[key] for r in replications if key in r)
        values = [r[key] if key in r else _nothing(value) for r in replications]
        if isinstance(value, Mapping):
            summary[key] = _means(values)
            continue
        if not isinstance(value, Real):
            summary[key] = overall(values)
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


def differences(
    replications: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return, for each numeric key, the paired difference to the baseline.

    Differences are formed replication by replication: absolute (`diff`, `ci_low`, `ci_high`) and in
    percent of the baseline's value in that replication.
    """
    found: dict[str, dict[str, float]] = {}
    for key, value in replications[0].items():
        if not isinstance(value, Real):
            continue
        pairs = [(r[key], b[key]) for r, b in zip(replications, baseline, strict=True)]
        absolute = student_t([mine - base for mine, base in pairs])
        percent = student_t(
            [(mine - base) / base * 100 if base else math.nan for mine, base in pairs]
        )
        found[key] = {
            "diff": absolute.mean,
            "ci_low": absolute.low,
            "ci_high": absolute.high,
            "percent": percent.mean,
            "percent_ci_low": percent.low,
            "percent_ci_high": percent.high,
            "n": absolute.n,
        }
    return found
