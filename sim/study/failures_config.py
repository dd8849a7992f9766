"""The `engine.failures` section of a config: instances that fail and are repaired."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from sim.core.outages import ExponentialOutages, Outages

LEAST_S, MOST_S = 1e-3, 1e9
"""Means outside are mistakes: below a step, or thirty years."""


class FailuresConfig(BaseModel):
    """Every instance fails on its own; both times are exponential."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mtbf_s: float = Field(
        ge=LEAST_S, le=MOST_S, description="mean time from repair to failure of an instance, s"
    )
    repair_s: float = Field(
        ge=LEAST_S, le=MOST_S, description="mean time an instance is down, restart included, s"
    )


def outages(config: FailuresConfig | None, seed: int | None) -> Outages | None:
    """Return the failures of a run; None without the section or without a seed."""
    if config is None or seed is None:
        return None
    return ExponentialOutages(config.mtbf_s, config.repair_s, seed)
