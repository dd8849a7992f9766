"""The `engine.failures` section: instances that fail and are repaired."""

from __future__ import annotations

from pydantic import Field

from sim.study.config.section import Section

LEAST_S, MOST_S = 1e-3, 1e9
"""Means outside are mistakes: below a step, or thirty years."""


class FailuresConfig(Section):
    """Every instance fails on its own; both times are exponential."""

    mtbf_s: float = Field(
        ge=LEAST_S, le=MOST_S, description="mean time from repair to failure of an instance, s"
    )
    repair_s: float = Field(
        ge=LEAST_S, le=MOST_S, description="mean time an instance is down, restart included, s"
    )
