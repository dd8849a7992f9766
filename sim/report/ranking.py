"""The ranking of a comparison in words: who beats whom, in how many seeds, by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

HEADLINES = {"request_goodput": "goodput", "mean_e2el_ms": "mean E2E"}
"""The first of these that is known is shown; `comparison.json` has more."""

SMALL_P = 0.001


def ranking_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Return a line for each pair of neighbours in the ranking by the headline figure."""
    rankings: Mapping[str, Any] = comparison.get("rankings", {})
    key = next((key for key in HEADLINES if key in rankings), None)
    if key is None or len(rankings[key]["order"]) < 2:
        return []
    ranking = rankings[key]
    order = ranking["order"]
    pairs = {(pair["better"], pair["worse"]): pair for pair in ranking["pairs"]}
    sign = ">" if ranking["higher_is_better"] else "<"
    lines = [_line(pairs[pair], sign) for pair in pairwise(order)]
    family = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    return [f"ranking by {HEADLINES[key]} (paired t tests, Holm over {family}):", *lines]


def _line(pair: Mapping[str, Any], sign: str) -> str:
    p = pair["p_holm"]
    tested = p is not None and not math.isnan(p)
    if tested and not pair["significant"]:
        sign = "~"
    text = f"  {pair['better']} {sign} {pair['worse']} in {pair['wins']} of {pair['n']} seeds"
    percent, low, high = (pair[key] for key in ("percent", "percent_ci_low", "percent_ci_high"))
    if percent is not None and not math.isnan(percent):
        text += f", {percent:+z.1f} %"
        if tested:
            text += f" [{low:z.1f}, {high:z.1f}]"
    if not tested:
        return text
    text += f", p < {SMALL_P}" if p < SMALL_P else f", p = {p:.3f}"
    return text if pair["significant"] else f"{text}: cannot be told apart"
