"""Steps that a real replay produces: what a cost model is fitted and judged on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.core.simulation import simulate
from sim.study.build import build, settings
from sim.study.config import Experiment, resolve
from sim.study.run import requests_of, saturation_rate
from sim.types import CostModel, DecodePiece, N, Plan, Policy, Preemption, View, WaitQueue
from sim.types.plans import Mixed, Prefill

Ints = NDArray[np.int64]

REQUESTS = 1000
"""Requests of one replay."""

LONGEST_TOKENS = 16_384
"""Longest prompt + output of a replay; attention tables end there."""

REPLAYS = (("v1", 0.5), ("v1", 0.9), ("v0", 0.9))
"""Scheduler of `continuous` (v0: prefill-only steps) and share of the saturation rate."""

GRID_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GRID_LENGTHS = (32, 128, 512, 2048)
"""Decode steps that a fit sees beside those of replays: batch sizes and tokens a sequence."""

Chunks = list[tuple[int, int]]


@dataclass(frozen=True)
class Steps:
    """Some steps; one array element a step, but for the last three: one a chunk.

    Attributes:
        chunks: number of prompt chunks n.
        new: sum of new tokens l over them.
        context: sum of l + p, p being the tokens cached before.
        quad: sum of l * (l + 2p).
        batch: decodes B.
        kv: tokens cached by them before the step, K.
        owner: step that a chunk belongs to.
        chunk_new: its l.
        chunk_cached: its p.
    """

    chunks: Ints
    new: Ints
    context: Ints
    quad: Ints
    batch: Ints
    kv: Ints
    owner: Ints
    chunk_new: Ints
    chunk_cached: Ints

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def tokens(self) -> Ints:
        """T, tokens that pass the dense layers."""
        return self.new + self.batch

    @property
    def rows(self) -> Ints:
        """S, rows that need logits."""
        return self.chunks + self.batch

    def where(self, kept: NDArray[np.bool_]) -> Steps:
        """Return the steps at which `kept` is true."""
        of_step = {
            field.name: getattr(self, field.name)[kept]
            for field in fields(self)
            if field.name not in ("owner", "chunk_new", "chunk_cached")
        }
        inside = kept[self.owner]
        number = np.cumsum(kept) - 1
        return Steps(
            **of_step,
            owner=number[self.owner[inside]],
            chunk_new=self.chunk_new[inside],
            chunk_cached=self.chunk_cached[inside],
        )

    def sample(self, count: int, rng: np.random.Generator) -> Steps:
        """Return at most `count` steps drawn at random, without repetition."""
        kept = np.zeros(len(self), dtype=bool)
        kept[rng.permutation(len(self))[:count]] = True
        return self.where(kept)


def steps_of(batches: Sequence[tuple[Chunks, int, int]]) -> Steps:
    """Return steps given as ([(l, p) of each chunk], B, K)."""
    owner = [at for at, (chunks, _, _) in enumerate(batches) for _ in chunks]
    pairs = np.array([pair for chunks, _, _ in batches for pair in chunks], dtype=np.int64)
    new, cached = pairs.reshape(-1, 2).T
    count = len(batches)

    def total(values: Ints) -> Ints:
        found = np.zeros(count, dtype=np.int64)
        np.add.at(found, owner, values)
        return found

    return Steps(
        chunks=total(np.ones_like(new)),
        new=total(new),
        context=total(new + cached),
        quad=total(new * (new + 2 * cached)),
        batch=np.array([batch for _, batch, _ in batches], dtype=np.int64),
        kv=np.array([kv for _, _, kv in batches], dtype=np.int64),
        owner=np.array(owner, dtype=np.int64),
        chunk_new=new,
        chunk_cached=cached,
    )


def joined(parts: Sequence[Steps]) -> Steps:
    """Return the steps of several collections, in order."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    merged: dict[str, Ints] = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Steps)
    }
    merged["owner"] = np.concatenate(
        [part.owner + start for part, start in zip(parts, starts, strict=False)]
    )
    return Steps(**merged)


def replayed(model: str, gpu: str, tp: int, max_length: int, source: str, seed: int) -> Steps:
    """Return the steps of replays of a built-in workload on one instance.

    The policy is `continuous`: chunked prefill at half and nine tenths of the saturation rate, and
    prefill-only steps at nine tenths. The steps are priced by the roofline, which any GPU and model
    have: only the batches count here, and those follow the load.

    Args:
        model: catalogue name.
        gpu: catalogue name.
        tp: tensor-parallel degree.
        max_length: longest prompt + output the model takes, tokens.
        source: workload.
        seed: of the requests.
    """
    length = min(max_length, LONGEST_TOKENS)
    probe = _experiment(model, gpu, tp, length, source, seed, "v1", 1.0)
    rate = saturation_rate(probe)
    parts = [
        _record(_experiment(model, gpu, tp, length, source, seed, scheduler, share * rate))
        for scheduler, share in REPLAYS
    ]
    return joined(parts)


def short_prompts(rng: np.random.Generator, count: int) -> Steps:
    """Return prefill-only steps of 8 to 256 prompts of 8 to 64 tokens."""
    batches: list[tuple[Chunks, int, int]] = []
    for _ in range(count):
        prompts = round(2 ** rng.uniform(3, 8))
        batches.append(([(int(n), 0) for n in rng.integers(8, 65, prompts)], 0, 0))
    return steps_of(batches)


def decode_grid(room_tokens: int) -> Steps:
    """Return decode steps of every batch size that fits, so that rare sizes are known as well."""
    sizes = ((batch, batch * length) for batch in GRID_BATCHES for length in GRID_LENGTHS)
    return steps_of([([], batch, kv) for batch, kv in sizes if kv <= room_tokens])


def _experiment(
    model: str, gpu: str, tp: int, length: int, source: str, seed: int, scheduler: str, rate: float
) -> Experiment:
    data: dict[str, Any] = {
        "cluster": {
            "gpu": gpu, "count": tp, "model": model, "profile": "roofline",
            "pools": [{"instances": 1, "tp": tp}],
        },
        "policy": {"name": "continuous", "scheduler": scheduler},
        "workload": {
            "source": source, "num_requests": REQUESTS, "max_model_len": length,
            "arrivals": {"process": "poisson", "rate": rate},
        },
        "run": {"seed": seed, "replications": 1},
    }  # fmt: skip
    return resolve(data, "calibrate/steps.py")


def _record(experiment: Experiment) -> Steps:
    """Run an experiment and return every step of it."""
    setup = build(experiment, experiment.policies[0])
    spec = copy(setup.specs[0])
    watch = _Watch(spec.cost)
    spec.cost = watch
    trace = requests_of(experiment, 0)
    policy = _Noting(setup.policy, watch)
    record = simulate(trace, policy, [spec], settings(experiment, setup.policy, trace, 0))
    rows = record.steps
    batches = list(watch.batches)
    plain = rows["prefill_requests"] == 0
    for batch, kv, count in zip(
        rows["decode_requests"][plain], rows["kv_tokens"][plain], rows["n_steps"][plain],
        strict=True,
    ):  # fmt: skip
        batches += [([], int(batch), int(kv + batch * done)) for done in range(int(count))]
    return steps_of(batches)


class _Watch(CostModel):
    """Prices steps as another cost model does, and keeps those with chunks."""

    def __init__(self, inner: CostModel) -> None:
        self._inner = inner
        self.planned: Chunks = []
        self.batches: list[tuple[Chunks, int, int]] = []

    def decode(self, batch: N) -> DecodePiece:
        return self._inner.decode(batch)

    def step(self, chunks: N, new: N, context: N, quad: N, batch: N, kv: N) -> int:
        if sum(tokens for tokens, _ in self.planned) == new:  # else cut to make room
            self.batches.append((self.planned, batch, kv))
        return self._inner.step(chunks, new, context, quad, batch, kv)

    def extrapolates(self, new: N, batch: N) -> bool:
        return self._inner.extrapolates(new, batch)


class _Noting(Policy):
    """Decides as another policy does, and tells a `_Watch` the chunks of every plan."""

    def __init__(self, inner: Policy, watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch

    def new_queue(self) -> WaitQueue:
        return self._inner.new_queue()

    def plan(self, view: View) -> Plan | None:
        plan = self._inner.plan(view)
        if isinstance(plan, Mixed):
            self._watch.planned = [(tokens, request.prefilled) for request, tokens in plan.chunks]
        elif isinstance(plan, Prefill):
            self._watch.planned = [(request.target_tokens, 0) for request in plan.requests]
        return plan

    def victim(self, view: View) -> Preemption:
        return self._inner.victim(view)
