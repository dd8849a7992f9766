"""The `run` section: how often, how long, what is left out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sim.study.config.section import Section


class RunConfig(Section):
    """How often and how long."""

    seed: int = Field(0, ge=0, description="root of all random streams")
    replications: int = Field(5, ge=1, le=10_000, description="independent repetitions")
    stop: Literal["drain", "horizon"] = Field(
        "drain", description="end when all requests have left, or at horizon_s"
    )
    horizon_s: float | None = Field(None, gt=0, description="simulated end (stop: horizon), s")
    warmup_s: float = Field(0.0, ge=0, description="requests arriving earlier are not counted, s")
    warmup: Literal["fixed", "mser5"] = Field(
        "fixed", description="end of the warm-up: warmup_s, or found in each replication by MSER-5"
    )
    steps: bool = Field(False, description="write steps.parquet")

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if (self.stop == "horizon") != (self.horizon_s is not None):
            raise ValueError(
                f"stop: horizon and horizon_s go together, got stop: {self.stop} and "
                f"horizon_s: {self.horizon_s}"
            )
        if self.horizon_s is not None and self.warmup_s >= self.horizon_s:
            raise ValueError(f"warmup_s {self.warmup_s} is not below horizon_s {self.horizon_s}")
        if self.warmup == "mser5" and self.warmup_s:
            raise ValueError(f"warmup: mser5 and warmup_s {self.warmup_s} exclude each other")
        return self
