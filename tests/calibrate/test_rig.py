"""How many KV blocks a GPU takes, found on the CPU under a GPU's name."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from calibrate import rig, runner
from calibrate.device import Device
from calibrate.model import Transformer
from sim.costs.catalogue import model_named
from sim.types import BadInput

SPEC = model_named("tiny-llama")
GPU_BYTES = 1 << 30
STEP_BYTES = 100 << 20
STEP_TOKENS = 256


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Return (device, caches alive when torch was told to give its memory back)."""
    caches, alive = weakref.WeakSet(), []
    build = runner.PagedCache

    def noted(*arguments):
        cache = build(*arguments)
        caches.add(cache)
        return cache

    def kernel(q, *_):
        return q

    monkeypatch.setattr(runner, "PagedCache", noted)
    monkeypatch.setattr(runner, "choose_paged", lambda *_: (kernel, ""))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 7)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(len(caches)))
    device = Device.open("cpu")
    device.memory_bytes = lambda: (GPU_BYTES - 7, GPU_BYTES)
    device.peak_bytes = lambda: 7 + STEP_BYTES
    gc.disable()
    yield SimpleNamespace(device=device, alive=alive)
    gc.enable()


def fit(at, model):
    return rig._blocks_that_fit(at.device, model, "fp32", (False, True), STEP_TOKENS)


def test_the_small_cache_is_gone_before_the_real_one_is_made(on_a_gpu):
    model = Transformer.random(SPEC, "fp32", torch.device("cpu"))
    free, blocks, how = fit(on_a_gpu, model)
    assert on_a_gpu.alive == [0]
    assert free == GPU_BYTES
    room = 0.9 * GPU_BYTES - 7 - STEP_BYTES
    assert blocks == room // (rig.BLOCK_SIZE * SPEC.kv_bytes_per_token("fp32"))
    assert "0.9 of the memory" in how


def test_a_gpu_that_others_fill(on_a_gpu):
    model = Transformer.random(SPEC, "fp32", torch.device("cpu"))
    on_a_gpu.device.memory_bytes = lambda: (STEP_BYTES, GPU_BYTES)
    with pytest.raises(BadInput, match="leaves no room for a KV cache"):
        fit(on_a_gpu, model)
