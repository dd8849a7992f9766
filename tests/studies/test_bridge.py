"""Prompts that wait for the decode side are pulled in the order in which they were prefilled."""

import numpy as np
import pytest

from policies.distserve import Distserve, DistserveConfig
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Trace


@pytest.mark.parametrize("fuse", [True, False])
def test_bridge_is_first_in_first_out(fuse):
    # Both prompts are prefilled in one batch until 1 s. The decode instance holds one of them: the
    # first is copied in 0.1 s and decodes until 3.1 s, then the second follows.
    cost = AffineCost(prefill_base_s=1.0, decode_base_s=1.0)
    prefill, decode = (
        InstanceSpec(cost, blocks, 1, role=role, kv_token_bytes=10_000_000)
        for role, blocks in (("prefill", 200), ("decode", 150))
    )
    trace = Trace(np.array([100, 100]), np.array([3, 3]), np.zeros(2))
    policy = Distserve(DistserveConfig(padded=False, ready_threshold=1.0))
    settings = Settings(fuse_steps=fuse, link_bytes_per_s=10e9)
    record = simulate(trace, policy, [prefill, decode], settings).requests
    np.testing.assert_allclose(record["transfer_start_s"], [1.0, 3.1], atol=1e-12)
    np.testing.assert_allclose(record["transfer_end_s"], [1.1, 3.2], atol=1e-12)
    np.testing.assert_allclose(record["finish_s"], [3.1, 5.2], atol=1e-12)
