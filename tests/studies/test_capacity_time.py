"""How long the capacities of five policies take."""

import time

import pytest

from sim.study.capacity.attainment import Target
from sim.study.capacity.search import capacities
from sim.study.config import resolve

CONFIG = {
    "cluster": {"gpu": "a100-40gb", "count": 4, "model": "llama-2-13b"},
    "policy": ["continuous", "orca", "sarathi", "distserve", "bucketserve"],
    "workload": {
        "source": "mixed",
        "mixture": {"alpaca": 0.8, "longbench": 0.2},
        "num_requests": 2000,
        "max_model_len": 4096,
        "arrivals": {"process": "poisson", "rate": 1},
    },
    "slo": {"ttft_ms": 1000, "tpot_ms": 100},
    "run": {"replications": 5},
}
MOST_S = 180.0


@pytest.mark.slow
@pytest.mark.alone
def test_five_policies_on_a_mixed_workload(record_property):
    began = time.perf_counter()
    found = capacities(resolve(CONFIG, "bar"), Target(0.9), jobs=2)
    wall_s = time.perf_counter() - began
    rates = ", ".join(
        f"{label} {p.rate_per_s.mean:.3g} [{p.rate_per_s.low:.3g}, {p.rate_per_s.high:.3g}]"
        for label, p in found.policies.items()
    )
    figure = f"{wall_s:.0f} s with 2 processes, 5 x 2,000 requests; req/s: {rates}"
    record_property("evidence", f"capacity, 5 policies, mixed workload, 4 GPUs: {figure}")
    assert all(p.rate_per_s.mean > 0 for p in found.policies.values())
    assert wall_s < MOST_S
