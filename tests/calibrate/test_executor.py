"""A real model behind the engine: what it emits does not depend on how the engine batches it."""

import numpy as np
import pytest
import torch

from calibrate.device import Device
from calibrate.executor import DeviceExecutor
from calibrate.model import Transformer
from calibrate.points import Point
from calibrate.runner import Chunk, Runner
from calibrate.weights import Constants
from policies.bucketserve import Bucketserve, BucketserveConfig
from policies.continuous import Continuous, ContinuousConfig
from policies.static import Static, StaticConfig
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.catalogue import Model
from sim.costs.simple import AffineCost
from sim.types import Trace

CPU = Device.open("cpu")
SPEC = Model(
    name="small", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, ffn=48, gated=True,
    vocab=101, max_length=128, norm="rmsnorm", positions="rope", qk_norm=False,
    tied_embeddings=False, bias="none", params_published=1,
)  # fmt: skip
BLOCK = 4
COST = AffineCost(prefill_base_s=0.01, decode_base_s=0.01)


@pytest.fixture(scope="module")
def model():
    generator = torch.Generator().manual_seed(3)

    def take(name, *shape):  # large enough that tokens depend on what they attend to
        return 0.3 * torch.randn(shape, generator=generator) + name.endswith("norm.weight")

    return Transformer(SPEC, Constants(), take)


def new_runner(model, blocks=400):
    return Runner(model, CPU, num_blocks=blocks, block_size=BLOCK, padded=False)


def alone(model, text, input_len):
    """Return the text of a request that has the model to itself."""
    runner = new_runner(model)
    made = list(text[:input_len])
    token = runner.step([Chunk(0, made)], [])[0][0]
    while True:
        made.append(token)
        if len(made) == len(text):
            return made
        token = runner.step([], [0])[0][0]


CASES = {
    "continuous v1, chunked": lambda: Continuous(
        ContinuousConfig(max_num_batched_tokens=16, max_num_seqs=8)
    ),
    "continuous v0": lambda: Continuous(ContinuousConfig(scheduler="v0")),
    "static, padded": lambda: Static(StaticConfig(max_batch_size=4)),
    "static, rows leave": lambda: Static(StaticConfig(max_batch_size=4, release="each")),
    "bucketserve": lambda: Bucketserve(BucketserveConfig(l_max=64)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("on_wall_clock", [True, False])
def test_every_request_gets_the_tokens_it_would_get_alone(model, name, on_wall_clock):
    policy = CASES[name]()
    rng = np.random.default_rng(0)
    n = 12
    requests = Trace(rng.integers(1, 40, n), rng.integers(1, 16, n), np.zeros(n))
    roles = ("prefill", "decode") if name == "bucketserve" else ("mixed",)
    # few blocks: continuous batching has to evict and recompute
    specs = [InstanceSpec(COST, 30, BLOCK, role=role, kv_token_bytes=1) for role in roles]
    runner = new_runner(model)
    executor = DeviceExecutor(runner, SPEC.vocab, on_wall_clock)
    how = Settings(fuse_steps=False, executor=executor)
    record = simulate(requests, policy, specs, how)
    assert set(record.requests["status"]) == {"finished"}
    for row in range(n):
        length = int(requests.input_len[row])
        text = executor.texts[row][: length + int(requests.output_len[row])]
        assert text == alone(model, text, length), row
    if name.startswith("continuous"):
        assert record.counters["preemptions_recompute"] > 0
    busy = record.steps["first_fs"].sum() / 1e15
    assert 0 < busy < 60
    executor.close()
    runner.hold(99, 128)  # all pages are back
    assert len(executor.engine_ms) == len(record.steps)


def test_the_wall_clock_holds_what_the_engine_does_beside_the_step(model):
    requests = Trace(np.array([5]), np.array([8]), np.array([0.0]))
    spec = InstanceSpec(COST, 30, BLOCK)
    executor = DeviceExecutor(new_runner(model), SPEC.vocab, True)
    simulate(
        requests,
        Continuous(ContinuousConfig()),
        [spec],
        Settings(fuse_steps=False, executor=executor),
    )
    assert min(executor.engine_ms) > 0
    points = [point for point, _ in executor.steps]
    assert points[0] == Point("prefill", False, ((5, 0),), ())
    assert [point.decodes for point in points[1:]] == [(cached,) for cached in range(5, 12)]
    assert all(0 < timing.device_ms <= timing.wall_ms for _, timing in executor.steps)
