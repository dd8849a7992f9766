"""Which section of a config a key belongs to, for those who typed it in another."""

from __future__ import annotations

from pydantic import BaseModel

import policies
from sim.study.config import (
    ClusterConfig,
    EngineConfig,
    LinkConfig,
    PoolConfig,
    RunConfig,
    SloConfig,
)
from workloads import WorkloadConfig
from workloads.arrivals import Poisson

SECTIONS: dict[str, type[BaseModel]] = {
    "cluster": ClusterConfig,
    "cluster.pools": PoolConfig,
    "cluster.link": LinkConfig,
    "workload": WorkloadConfig,
    "workload.arrivals": Poisson,
    "slo": SloConfig,
    "engine": EngineConfig,
    "run": RunConfig,
}


def home(key: str) -> str | None:
    """Return the first key that has the last name of a dotted key, if it is another one."""
    name = key.rpartition(".")[2]
    for section, model in SECTIONS.items():
        if name in model.model_fields:
            found = section if model is PoolConfig else f"{section}.{name}"
            return None if key.startswith(found) else found
    known = any(name in policies.load(p).Config.model_fields for p in policies.names())
    return f"policy.{name}" if known and not key.startswith("policy.") else None
