"""A device behind the engine: told every step once, with the right rows, and obeyed in time."""

import numpy as np
import pytest

from policies.continuous import Continuous, ContinuousConfig
from policies.distserve import Distserve, DistserveConfig
from policies.static import Static, StaticConfig
from sim.core.executor import Executor
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace

COST = AffineCost(
    prefill_base_s=1.0, prefill_token_s=0.01, decode_base_s=0.5, decode_seq_s=0.1, decode_kv_s=0.001
)


class Priced(Executor):
    """Takes as long as the cost model says, from the requests it is given."""

    def __init__(self):
        self.cached = {}
        self.looks = 0
        self.steps = []

    def look(self):
        self.looks += 1

    def step(self, chunks, decodes, padded):
        for request, tokens in chunks:
            assert self.cached.get(request.id, 0) == request.prefilled or request.prefilled == 0
            self.cached[request.id] = request.prefilled + tokens
        lens = [tokens for _, tokens in chunks]
        context = [request.prefilled + tokens for request, tokens in chunks]
        quad = [n * (n + 2 * r.prefilled) for r, n in chunks]
        kv = [self.cached[r.id] for r in decodes]
        if padded:
            lens = context = [max(context, default=0)] * len(lens)
            quad = [n * n for n in lens]
            kv = [max(kv, default=0)] * len(kv)
        for request in decodes:
            self.cached[request.id] += 1
        self.steps.append((len(lens), len(kv)))
        if not lens:
            piece = COST.decode(len(kv))
            return piece.base_fs + piece.slope_fs * sum(kv)
        return COST.step(len(lens), sum(lens), sum(context), sum(quad), len(kv), sum(kv))


POLICIES = {
    "continuous v1": (
        lambda: Continuous(ContinuousConfig(max_num_batched_tokens=64, max_num_seqs=8)),
        ("mixed",),
    ),
    "continuous v0": (lambda: Continuous(ContinuousConfig(scheduler="v0")), ("mixed",)),
    "static": (lambda: Static(StaticConfig(max_batch_size=4, padded=True)), ("mixed",)),
    "distserve": (lambda: Distserve(DistserveConfig(padded=True)), ("prefill", "decode")),
}


@pytest.mark.parametrize("name", POLICIES)
def test_an_executor_that_obeys_the_prices_changes_nothing(name):
    make, roles = POLICIES[name]
    rng = np.random.default_rng(0)
    requests = Trace(
        rng.integers(1, 80, 40), rng.integers(1, 20, 40), np.sort(rng.uniform(0, 60, 40))
    )
    specs = [InstanceSpec(COST, 60, 16, role=role, kv_token_bytes=1000) for role in roles]
    priced = simulate(requests, make(), specs, Settings(fuse_steps=False))
    executor = Priced()
    run = simulate(requests, make(), specs, Settings(fuse_steps=False, executor=executor))
    for column, values in priced.requests.items():
        np.testing.assert_array_equal(values, run.requests[column], err_msg=column)
    np.testing.assert_array_equal(priced.steps["first_fs"], run.steps["first_fs"])
    assert len(executor.steps) == len(priced.steps)
    assert executor.looks >= len(executor.steps)


def test_an_executor_runs_step_by_step():
    with pytest.raises(ValueError, match="step by step"):
        Settings(executor=Priced())
