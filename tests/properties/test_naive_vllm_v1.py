"""The engine against an independent loop with vLLM V1's order of events."""

import numpy as np
import pytest
from naive_vllm_v1 import NaiveEngine

from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import resolve
from sim.types import FS_PER_S, Trace

CLUSTER = {"gpu": "a100-80gb", "count": 1, "model": "llama-2-7b"}


def random_trace(rng, n):
    """Arrivals in clumps, prompts of one block to a few chunks, a third in groups."""
    gaps = rng.exponential(0.08, n) * rng.choice([0.05, 1, 3], n)
    prompts = rng.integers(16, 900, n)
    groups = rng.integers(0, 4, n)
    hashes = []
    for at, (length, group) in enumerate(zip(prompts, groups, strict=True)):
        shared = int(rng.integers(0, length // 16 + 1)) if group < 2 else 0
        own = range(10_000 * (at + 1), 10_000 * (at + 1) + length // 16 - shared)
        hashes.append((*(1000 * int(group) + i for i in range(shared)), *own))
    return Trace(prompts, rng.integers(1, 80, n), np.cumsum(gaps), block_hashes=tuple(hashes))


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_engine_is_the_naive_loop(seed, ahead):
    rng = np.random.default_rng(seed)
    trace = random_trace(rng, 80)
    seats, budget = int(rng.integers(4, 40)), int(rng.choice([128, 256, 1024]))
    prefix = bool(seed % 2)
    engine = {
        "async_scheduling": ahead,
        "enable_prefix_caching": prefix,
        "host_step_ms": 1.0,
        "ttft_clock": "engine",
    }
    policy = {"name": "continuous", "max_num_seqs": seats, "max_num_batched_tokens": budget}
    experiment = resolve(
        {"cluster": CLUSTER, "policy": policy, "workload": {}, "engine": engine}, "test"
    )
    setup = build(experiment, experiment.policies[0])
    how = settings(experiment, setup.policy, trace, 0)
    record = simulate(trace, setup.policy, setup.specs, how).requests
    cost = setup.specs[0].cost

    def price(*batch):
        return cost.step(*map(int, batch)) / FS_PER_S

    seen, first, finish = NaiveEngine(trace, price, seats, budget, ahead, prefix).run()
    assert record["finish_s"] == pytest.approx(finish, abs=1e-9)
    assert record["first_token_s"] == pytest.approx(first, abs=1e-9)
    assert record["queued_s"] == pytest.approx(seen, abs=1e-9)
