"""The figures of each class of requests: by source, task, priority and prompt length.

An attainment of 80 % can hide that every long request was dropped. Window, bounds and definitions
are those of the totals (`metrics`): the requests that arrive in the window, each judged
by the bounds of its own source (without one, whoever finishes meets it); one that did not finish
misses every bound. So the attainments of the classes, weighted by `arrived`, sum up to that of all.
Counts are of the requests that arrived in the window, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.study.statistics.moments import moments
from sim.study.statistics.runs import Floats

Bools = NDArray[np.bool_]
Columns = Mapping[str, NDArray[Any]]
ClassFigures = dict[str, dict[str, dict[str, Any]]]
"""Grouping -> class -> key -> figure."""

GROUPINGS = ("source", "task", "priority", "input_len")
LENGTH_EDGES = (128, 512, 2048, 8192)
"""Longest prompts of the bands, tokens: fixed, so that runs can be compared."""
BANDS = tuple(
    [f"{low + 1}-{high}" for low, high in zip((0, *LENGTH_EDGES), LENGTH_EDGES, strict=False)]
    + [f"{LENGTH_EDGES[-1] + 1}+"]
)
MAX_CLASSES = 32
"""A grouping into more (every request its own priority, say) is left out."""

STATUS_COUNTS = {"completed": "finished"} | {s: s for s in ("rejected", "unfinished", "aborted")}
"""Key of a count -> status of the requests counted."""


@dataclass(frozen=True)
class Outcomes:
    """What became of each request, shape (requests,).

    Attributes:
        arrived: whether it arrived in the window.
        finished: whether it got all its tokens.
        ttft_ms: time to first token.
        tpot_ms: time per further token; NaN where there is none.
        met: key of an attainment -> who met the bound; None: nobody has one.
    """

    arrived: Bools
    finished: Bools
    ttft_ms: Floats
    tpot_ms: Floats
    met: Mapping[str, Bools | None]


def class_figures(columns: Columns, outcomes: Outcomes) -> ClassFigures:
    """Return counts, attainments, TTFT and TPOT of every class, by grouping."""
    status = {key: columns["status"] == value for key, value in STATUS_COUNTS.items()}
    return {
        grouping: {
            name: _figures(outcomes, status, members)
            for name, members in _classes(columns[grouping], grouping, outcomes.arrived)
        }
        for grouping in GROUPINGS
    }


def _classes(column: NDArray[Any], grouping: str, arrived: Bools) -> Iterator[tuple[str, Bools]]:
    """Yield the name of each class and who of the window belongs to it; every band is there."""
    if grouping == "input_len":
        band = np.searchsorted(LENGTH_EDGES, column).astype(np.int8)
        for at, name in enumerate(BANDS):
            yield name, (band == at) & arrived
        return
    for value in _distinct(column[arrived]):
        yield str(value), (column == value) & arrived


def _distinct(values: NDArray[Any]) -> list[Any]:
    """Return the values there are, ascending; none if they are more than `MAX_CLASSES`.

    Sorting a million names would take longer than all the rest.
    """
    found: list[Any] = []
    while len(values):
        if len(found) == MAX_CLASSES:
            return []
        found.append(values[0])
        values = values[values != values[0]]
    return sorted(found)


def _figures(outcomes: Outcomes, status: Mapping[str, Bools], members: Bools) -> dict[str, Any]:
    arrived = int(np.count_nonzero(members))
    figures: dict[str, Any] = {"arrived": arrived}
    for key, has in status.items():
        figures[key] = int(np.count_nonzero(has & members))
    for key, met in outcomes.met.items():
        if met is None or not arrived:
            figures[key] = float("nan")
        else:
            figures[key] = int(np.count_nonzero(met & members)) / arrived
    served = outcomes.finished & members
    tpot_ms = outcomes.tpot_ms[served]
    figures |= moments("ttft", outcomes.ttft_ms[served])
    figures |= moments("tpot", tpot_ms[~np.isnan(tpot_ms)])
    return figures
