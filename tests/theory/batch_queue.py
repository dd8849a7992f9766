"""The simulator as a batch-service queue: one-token prompts, no decode, an affine prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies import load
from policies.parts.smdp_model import ServiceLaw, law_of
from sim.core.records import STATIC_PREFILL
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

BASE_MS, REQUEST_MS = 1.0524, 0.3051
"""Service time of a batch of b: BASE_MS + REQUEST_MS * b."""
BASE_MJ, REQUEST_MJ = 19.60, 19.90
"""Energy of the same."""
MAX_BATCH = 32
SERVICE = {
    "base_ms": BASE_MS,
    "request_ms": REQUEST_MS,
    "base_w": BASE_MJ / BASE_MS,
    "request_w": REQUEST_MJ / REQUEST_MS,
}
EDGE = 0.1
"""Share of the arrivals left out at either end of a run."""


def paper_law(stages: int = 0) -> ServiceLaw:
    """Return the law of the paper's server."""
    return law_of(
        MAX_BATCH,
        lambda b: (BASE_MS + REQUEST_MS * b) / 1e3,
        lambda b: (BASE_MJ + REQUEST_MJ * b) / 1e3,
        stages,
    )


def rate_at(rho: float) -> float:
    """Return the arrivals per second at a load."""
    return rho * paper_law().most_per_s


@dataclass
class Measured:
    """What a run came to, in the middle of it."""

    response_ms: float
    power_w: float
    batches: NDArray[np.int64]

    def cost(self, weight_ms: float) -> float:
        """Return mean response + weight * mean power."""
        return self.response_ms + weight_ms * self.power_w


def measure(rho: float, seed: int, count: int, **config: Any) -> Measured:
    """Simulate `count` Poisson arrivals at a load; equal seeds give equal arrivals."""
    rate = rate_at(rho)
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    ones = np.ones(count, np.int64)
    cls = load("smdp")
    known = {"service": SERVICE, "mean_gap_s": 1 / rate, "max_wait_s": 1e6}
    made = cls.Config(**known | config)
    specs = [InstanceSpec(AffineCost(BASE_MS / 1e3, REQUEST_MS / 1e3), 10**6)]
    record = simulate(Trace(ones, ones, arrival_s), cls(made), specs, Settings())  # type: ignore[call-arg]
    first, last = int(EDGE * count), int((1 - EDGE) * count)
    response = record.requests["finish_s"] - record.requests["arrival_s"]
    steps = record.steps[record.steps["kind"] == STATIC_PREFILL]
    start, end = arrival_s[first], arrival_s[last]
    inside = steps[(steps["start_s"] >= start) & (steps["start_s"] < end)]
    batches = inside["prefill_requests"].astype(np.int64)
    energy_mj = BASE_MJ * len(batches) + REQUEST_MJ * batches.sum()
    return Measured(
        1e3 * float(response[first:last].mean()), energy_mj / 1e3 / float(end - start), batches
    )
