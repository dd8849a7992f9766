"""Scenarios made from others: everything twice as slow, other ids."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
from knotted import ScaledCost
from planned import PlannedOutages
from pydantic import BaseModel
from scenarios import DUMMY_LEN, Scenario

from sim.core.spec import InstanceSpec
from sim.types import Trace

ROUTERS_BY_STATE = ("shortest-queue", "shortest-queue-tokens", "least-loaded")
"""They count no calls and draw nothing, so a rejected request leaves no trace in them."""


def doubled(case: Scenario) -> Scenario:
    """Return `case` with every cost and every time constant doubled."""
    trace = case.trace
    if trace.arrival_s is not None:
        trace = replace(trace, arrival_s=2 * trace.arrival_s)
    options = {k: _doubled_option(k, v) for k, v in case.options.items()}
    specs = [_doubled_spec(spec) for spec in case.specs]
    return case.but(config=_doubled_config(case.config), trace=trace, specs=specs, options=options)


def _doubled_option(key: str, value: Any) -> Any:
    if key == "link_bytes_per_s":
        return value / 2
    if isinstance(value, PlannedOutages):
        return value.doubled()
    if isinstance(value, list):
        return [2 * each for each in value]
    return 2 * value if _is_time(key, value) else value


def _is_time(key: str, value: object) -> bool:
    return key.endswith(("_s", "_ms", "_us_per_op")) and isinstance(value, int | float)


def _doubled_config(config: BaseModel) -> BaseModel:
    values: dict[str, Any] = {}
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, BaseModel):
            value = _doubled_config(value)
        values[key] = 2 * value if _is_time(key, value) else value
    return config.model_copy(update=values)


def _doubled_spec(spec: InstanceSpec) -> InstanceSpec:
    values = dict(vars(spec))
    values["cost"] = ScaledCost(spec.cost, 2)
    values["swap_s_per_block"] = 2 * spec.swap_s_per_block
    return InstanceSpec(**values)


def with_strangers(case: Scenario, seed: int) -> tuple[Scenario, np.ndarray]:
    """Return `case` with rows that no instance takes put between its own, and its new row numbers.

    The order of the rows stays, so ties go the same way.
    """
    rng = Random(seed)
    source: list[int] = []  # the row it copies, or the next one's arrival for a stranger
    strange: list[bool] = []
    for row in range(len(case.trace)):
        for _ in range(rng.choice([0, 0, 1, 3])):
            source.append(row)
            strange.append(True)
        source.append(row)
        strange.append(False)
    mask = np.array(strange)
    columns: dict[str, Any] = {}
    for name in ("input_len", "output_len", "arrival_s", "priority", "task"):
        values = getattr(case.trace, name)
        columns[name] = None if values is None else values[np.array(source)]
    if case.trace.prefix_group is not None:
        columns["prefix_group"] = np.where(mask, -1, case.trace.prefix_group[np.array(source)])
        columns["prefix_len"] = case.trace.prefix_len[np.array(source)]
    if case.trace.block_hashes is not None:
        lists = case.trace.block_hashes
        columns["block_hashes"] = tuple(
            () if strange[at] else lists[row] for at, row in enumerate(source)
        )
    columns["input_len"] = np.where(mask, DUMMY_LEN, columns["input_len"])
    trace: Trace = replace(case.trace, **columns)
    return case.but(trace=trace), np.flatnonzero(~mask)
