"""Measure, fit and replay at full scale on an ideal GPU: what is lost beside the kernels.

The runner, its page table, its layouts and graphs' bookkeeping are real and take the time they take
here; a step itself lasts what a shipped H200 profile says and 1 % of noise, on a clock that is put
forward by as much. So nothing but the measurement, the form of the fit and the replay can miss the
bars that are set for a real one.
"""

from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpu_standins import Standin

from calibrate import device, executor, layout, replay, rig, runner
from calibrate.fit import fit_folder
from calibrate.graphs import Captured, DecodeGraphs
from calibrate.measure import measure
from calibrate.plan import Pace
from calibrate.points import Point, grid
from sim.costs.build import instance_cost
from sim.costs.catalogue import model_named
from sim.costs.model import FS_PER_MS

BUDGET_S = 230
NOISE = 0.01
MEMORY_BYTES = 150e9

MEDIAN_BAR = 0.03
"""Held-out error of a phase. A real GPU is to come to 2 % in the median, and so do all phases here
but one: of 13B's mixed steps, at tokens between those of prompts, g's waves leave 1.2 to 2.2 %."""


class IdealGpu(Standin):
    """Prices steps and puts the clock forward.

    A layer that no graph runs takes at least `launch_ms`: some 25 kernels are started.
    """

    def __init__(self, name, launch_ms):
        super().__init__()
        self.spec = model_named(name)
        self.cost = instance_cost(name, "h200", 1).cost
        self.launch_ms = launch_ms * self.spec.layers
        self.ahead_s = 0.0
        self.noise = np.random.default_rng(0)

    def now(self):
        return perf_counter() + self.ahead_s

    def memory_bytes(self):
        return int(MEMORY_BYTES - self.spec.weight_bytes("bf16")), int(MEMORY_BYTES)

    def launch(self, batch, cached, padded):
        """Stand for `Runner._launch`."""
        count = len(batch.sequences) - len(batch.decoding)
        chunks = tuple(zip(batch.new[:count], cached[:count], strict=True))
        point = Point("", padded, chunks, tuple(cached[count:]))
        if chunks:
            sums = (point.new_tokens, point.context_tokens, point.quad_tokens)
            price = self.cost.step(count, *sums, point.batch, point.kv_tokens) / FS_PER_MS
            price = max(price, self.launch_ms)
        else:
            piece = self.cost.decode(point.batch)
            price = (piece.base_fs + piece.slope_fs * point.kv_tokens) / FS_PER_MS
        self.ahead_s += price * (1 + NOISE * self.noise.standard_normal()) / 1e3
        return torch.zeros(len(batch.sequences), dtype=torch.long)

    def packed(self, cache, kernel, rows, cached, new):
        """Lay out prefixes in no time: the device does it, and it is a CPU here."""
        began = perf_counter()
        part = layout.packed(cache, kernel, rows, cached, new)
        if any(cached):
            self.ahead_s -= perf_counter() - began
        return part


def small_cache(spec, *arguments):
    """Return the page table of the whole cache, and next to no cache."""
    shape = SimpleNamespace(max_length=spec.max_length, layers=1, kv_heads=1, head_dim=1)
    return small_cache.build(shape, *arguments)


small_cache.build = runner.PagedCache


def blocks(gpu, model, dtype, _paths, _tokens):
    """Stand for `rig._blocks_that_fit`, 3 GB for a step."""
    free, total = gpu.memory_bytes()
    room = free - 0.1 * total - 3e9
    return total, int(room // (rig.BLOCK_SIZE * model.spec.kv_bytes_per_token(dtype))), "ideal"


def open_ideal(name, launch_ms, monkeypatch):
    """Return an ideal GPU and a rig on it."""
    gpu = IdealGpu(name, launch_ms)
    spec, at = gpu.spec, torch.device("cpu")
    weightless = SimpleNamespace(spec=spec, dtype=torch.bfloat16, device=at)
    for module in (device, executor, runner):
        monkeypatch.setattr(module, "perf_counter", gpu.now)
    monkeypatch.setattr(rig, "_blocks_that_fit", blocks)
    monkeypatch.setattr(runner, "PagedCache", small_cache)
    monkeypatch.setattr(runner, "packed", gpu.packed)
    monkeypatch.setattr(runner, "choose_packed", lambda *_: ("varlen", None, ""))
    monkeypatch.setattr(runner, "choose_paged", lambda *_: (object(), ""))
    graph = SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(
        DecodeGraphs,
        "_capture",
        lambda self, size: Captured(graph, self._spare.repeat(1, size), torch.zeros(size)),
    )
    monkeypatch.setattr(
        runner.Runner,
        "_launch",
        lambda self, batch: gpu.launch(
            batch, [self.cached(sequence) for sequence in batch.sequences], self.padded
        ),
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return gpu, rig.DeviceRig(
        gpu, rig.gpu_named("h200"), weightless, "bf16", (False, True), "random"
    )


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "launch_ms", "tail_bar", "steady"),
    [
        # Static batches of eight wait for one another: an arrival just before or after the end of
        # one moves mean TPOT by 9 %. Its figures are recorded only.
        ("llama-2-13b", 0.1, 0.05, ("continuous", "bucketserve")),
        # Little is known of what the launches hide: single mixed steps are missed by up to 17 %.
        # And bucketserve is overloaded, its batches have two ways to go on.
        ("llama-3.1-8b", 0.3, 0.3, ("continuous",)),
    ],
)
def test_an_ideal_gpu_meets_the_bars(
    name, launch_ms, tail_bar, steady, tmp_path, monkeypatch, record_property
):
    gpu, opened = open_ideal(name, launch_ms, monkeypatch)
    points = grid(opened.limits, (False, True), Pace(opened.setting).seconds)
    measure(opened, points, tmp_path, BUDGET_S, None, gpu.now)
    for report in fit_folder(tmp_path, None):
        phases = {kind: error for kind, error in report.held_out.items() if kind != "all"}
        assert phases.keys() == {"prefill", "decode", "mixed"}
        bound = launch_ms * gpu.spec.layers
        shows = bound > gpu.cost.step(1, 1, 1, 1, 0, 0) / FS_PER_MS
        wanted = pytest.approx(bound, rel=0.01) if shows else 0.0
        assert report.profile.terms.launch_ms == wanted
        for kind, error in phases.items():
            median, tail = error.median_abs_frac, error.p95_abs_frac
            figure = f"{report.file.stem}, {kind}, held out: median {median:.1%}, p95 {tail:.1%}"
            record_property("evidence", f"{figure} ({error.points} points)")
            assert median <= MEDIAN_BAR, figure
            assert tail <= tail_bar, figure

    monkeypatch.setattr(replay, "open_rig", lambda *_: opened)
    found = replay.replay_folder(tmp_path, "cuda", None, replay.CUDA, lambda _text: None)
    judged = [row for row in found if row.bar is not None]
    missed = [row for row in judged if abs(row.error) > row.bar]
    lines = [f"{row.policy} at {row.load:.0%}: {row.figure} {row.error:+.1%}" for row in missed]
    figure = f"{name}, replays: {len(judged) - len(missed)} of {len(judged)} bars met"
    record_property("evidence", f"{figure}; {'; '.join(lines) or 'all'}")
    # The tail of the first tokens hangs on single arrivals: recorded only.
    assert not [row for row in missed if row.policy in steady and "ttft" not in row.figure], lines
