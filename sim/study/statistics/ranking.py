"""Which policy is better: paired tests on the same requests, with Holm's correction.

For each figure every pair of policies is compared replication by replication: Student's t on the
differences, two-sided. The p-values of one figure's pairs are one family, corrected by Holm's
method, so that the chance of any false finding in that figure's ranking is 5 %. Intervals are 95 %
each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sim.study.statistics.stats import ALPHA, difference, paired_p

Summary = Mapping[str, Any]

HIGHER_IS_BETTER = {
    "request_goodput": True,
    "slo_attainment": True,
    "steady_request_throughput": True,
    "steady_output_throughput": True,
    "mean_ttft_ms": False,
    "p99_ttft_ms": False,
    "mean_tpot_ms": False,
    "p99_tpot_ms": False,
    "mean_e2el_ms": False,
}
"""The figures that policies are ranked by."""


def rankings(policies: Mapping[str, Sequence[Summary]]) -> dict[str, dict[str, Any]]:
    """Return figure -> ranking, for the figures that every replication of every policy has.

    Args:
        policies: label -> figures of its replications, the same requests at the same place.

    Returns:
        For each figure `higher_is_better`, `order` (labels, best mean first) and `pairs` (better
        first: `better worse wins n p p_holm significant` and the keys of
        `sim.study.statistics.stats.difference`).
    """
    return {
        key: _ranking({label: [s[key] for s in done] for label, done in policies.items()}, higher)
        for key, higher in HIGHER_IS_BETTER.items()
        if all(math.isfinite(s.get(key, math.nan)) for done in policies.values() for s in done)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[at]))
        corrected[at] = largest
    return corrected


def _ranking(values: Mapping[str, Sequence[float]], higher: bool) -> dict[str, Any]:
    sign = -1 if higher else 1
    order = sorted(values, key=lambda label: sign * math.fsum(values[label]))
    pairs = [_pair(values, *pair, higher) for pair in combinations(order, 2)]
    if all(math.isfinite(pair["p"]) for pair in pairs):
        for pair, p in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
            pair |= {"p_holm": p, "significant": p < ALPHA}
    return {"higher_is_better": higher, "order": order, "pairs": pairs}


def _pair(
    values: Mapping[str, Sequence[float]], better: str, worse: str, higher: bool
) -> dict[str, Any]:
    both = list(zip(values[better], values[worse], strict=True))
    return {
        "better": better,
        "worse": worse,
        "wins": sum(a > b if higher else a < b for a, b in both),
        **difference(both),
        "p": paired_p(both),
        "p_holm": math.nan,
        "significant": False,
    }
