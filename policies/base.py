"""What a policy file needs: the contract, the config model and the registration mark."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from sim.types import (
    Cluster,
    ClusterInfo,
    Decode,
    Fifo,
    Mixed,
    N,
    Plan,
    Policy,
    Pool,
    Preemption,
    Prefill,
    Request,
    RunToCompletion,
    View,
    Wait,
    WaitQueue,
)

__all__ = [
    "Cluster",
    "ClusterInfo",
    "Config",
    "Decode",
    "Field",
    "Fifo",
    "Mixed",
    "N",
    "Plan",
    "Policy",
    "Pool",
    "Preemption",
    "Prefill",
    "Request",
    "RunToCompletion",
    "View",
    "Wait",
    "WaitQueue",
    "policy",
]

P = TypeVar("P", bound=type[Policy])


class Config(BaseModel):
    """Base of policy configs: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def policy(name: str) -> Callable[[P], P]:
    """Mark a class as the policy `name`; a dash in the name is an underscore in the file name."""

    def mark(cls: P) -> P:
        cls.name = name
        return cls

    return mark
