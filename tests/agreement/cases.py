"""Random runs for `continuous` and the naive loops of `naive.py`, each a function of a seed.

Half of the seeds have round times, so that arrivals fall on the ends of steps; memory reaches from
little more than one request to ample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from naive import V0, V1, Row, Scheduler, Step

from policies.continuous import Continuous, ContinuousConfig
from sim.core.executor import Executor
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import FS_PER_S, Decode, Plan, Preemption, Trace, View

SCHEDULERS = ("v1", "v1-priority", "v0", "v0-swap", "v0-spare")
AHEAD = ("v1-ahead", "v1-whole", "v1-ahead-whole")
"""Asynchronous scheduling, and admission of whole sequences."""
LONGEST_PROMPT, LONGEST_OUTPUT = 60, 40


class Spare(Continuous):
    """V0 with vLLM's heuristic, which Vidur shares: a decode wants a free block, needed or not.

    Our engine evicts only when blocks are missing ; the heuristic evicts a step earlier, when
    the last free block is taken. Recompute only.
    """

    def plan(self, view: View) -> Plan | None:
        """Decide the next step, one at a time."""
        plan = super().plan(view)
        if not isinstance(plan, Decode):
            return plan
        left = [view.running[id] for id in sorted(view.running)]
        free, victims = view.free_blocks, []
        while left:
            request = left.pop(0)
            while not free:
                victims.append(left.pop() if left else request)
                free += victims[-1].blocks
                if victims[-1] is request:
                    break
            else:
                free -= (request.kv_offset + view.steps) % view.block_size == 0
        return Decode(max_steps=1, preempt=[Preemption(victim) for victim in victims])


@dataclass
class Case:
    """One run for both.

    Attributes:
        rows: the requests.
        cost: integer prices.
        blocks: KV blocks.
        size: tokens in one.
        config: of `continuous`.
        reference: the naive scheduler.
        policy: the class.
        engine: further settings.
    """

    rows: list[Row]
    cost: AffineCost
    blocks: int
    size: int
    config: dict[str, Any]
    reference: Scheduler
    policy: type[Continuous]
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def ahead(self) -> bool:
        """Whether steps are formed one ahead."""
        return bool(self.engine.get("async_scheduling"))

    def price(self, step: Step) -> int:
        """Price a step of the reference."""
        cost, total = self.cost, 0
        if step.chunks:
            total += cost.prefill_base_fs
            total += cost.prefill_token_fs * sum(tokens for _, tokens in step.chunks)
        if step.decodes:
            total += cost.decode_base_fs + cost.decode_seq_fs * len(step.decodes)
            total += cost.decode_kv_fs * step.kv
        return max(total, 1)


def case(seed: int, scheduler: str) -> Case:
    """Return the run of `seed` for one of `SCHEDULERS` or `AHEAD`."""
    rng = Random(f"{scheduler}/{seed}")
    round_times = seed % 2 == 0
    size = rng.choice([1, 4, 16])
    count = rng.choice([5, 20, 40])
    span_s = rng.choice([0, 20, 60, 200])
    times = sorted(
        rng.randint(0, span_s) if round_times else rng.random() * span_s for _ in range(count)
    )
    rows = []
    for at, time_s in enumerate(times):
        output = rng.choice([1, 2, *[rng.randint(3, LONGEST_OUTPUT)] * 2])
        rows.append(Row(at, round(time_s * FS_PER_S), rng.randint(1, LONGEST_PROMPT), output))
    unit_s = 0.25 if round_times else rng.random()
    cost = AffineCost(*[unit_s * part for part in (2, rng.choice([0, 0.25]), 1, 0.5, 0.0625)])
    largest = max(-(-(row.prompt + row.output) // size) for row in rows)
    blocks = rng.choice([largest, largest + 2, largest * 2, largest * 3, largest * 50]) + 1
    seats = rng.choice([2, 5, 16, 256])
    config: dict[str, Any] = {"max_num_seqs": seats}
    if scheduler.startswith("v1"):
        first = _v1(rng, config, blocks, size)
        if scheduler == "v1-priority":
            # An ample budget: what an evicted decode leaves of it goes to nobody here (runs.py).
            first.by_priority, first.stops = True, False
            config["max_num_batched_tokens"] = first.budget = 512
            config["long_prefill_token_threshold"] = first.threshold = 16
            config["order"] = "priority"
            for row in rows:
                row.priority = rng.randint(0, 2)
        engine = {}
        if "ahead" in scheduler:
            engine["async_scheduling"] = True
        if "whole" in scheduler:
            engine["reserve_full_isl"] = first.whole = True
        return Case(rows, cost, blocks, size, config, first, Continuous, engine)
    reference = _v0(rng, config, blocks, largest, size)
    reference.swap = scheduler == "v0-swap"
    reference.spare_block = scheduler == "v0-spare"
    config["preemption_mode"] = "swap" if reference.swap else "recompute"
    policy = Spare if reference.spare_block else Continuous
    return Case(rows, cost, blocks, size, config, reference, policy)


def _v1(rng: Random, config: dict[str, Any], blocks: int, size: int) -> V1:
    config["max_num_seqs"] = seats = min(config["max_num_seqs"], 16)
    config["max_num_batched_tokens"] = budget = rng.choice([seats, seats + 7, 64, 512])
    # Prompts unfinished side by side get less than decodes admitted after them only when the
    # budget runs out (see the policy's deviations): none here.
    if budget == 512 and rng.random() < 0.3:
        config["long_prefill_token_threshold"] = 16
    threshold = config.get("long_prefill_token_threshold", 0)
    return V1(blocks, size, seats, budget, threshold)


def _v0(rng: Random, config: dict[str, Any], blocks: int, largest: int, size: int) -> V0:
    budget = rng.choice([LONGEST_PROMPT + LONGEST_OUTPUT, 256, 4096])
    padded = rng.random() < 0.5
    share = rng.choice([0.0, 0.01, 0.1])
    if blocks - int(share * blocks) <= largest:
        share = 0.0
    config |= {
        "scheduler": "v0",
        "max_num_batched_tokens": budget,
        "token_count": "padded" if padded else "sum",
        "watermark": share,
    }
    kept = int(share * blocks)
    return V0(blocks, size, config["max_num_seqs"], budget, kept, padded)


class Noted(Executor):
    """Prices steps and notes who is in them."""

    def __init__(self, made: Case) -> None:
        self.made = made
        self.steps: list[tuple[list[tuple[int, int]], list[int], int]] = []

    def look(self) -> None:
        """Nothing to do."""

    def step(self, chunks, decodes, padded):
        """Return the price."""
        kv = sum(request.kv_offset + request.home.steps for request in decodes)
        named = [(request.id, tokens) for request, tokens in chunks]
        step = Step(named, sorted(request.id for request in decodes), kv)
        self.steps.append((step.chunks, step.decodes, kv))
        return self.made.price(step)


def ours(made: Case, fuse: bool, executor: Noted | None = None):
    """Run `continuous`."""
    trace = Trace(
        np.array([row.prompt for row in made.rows]),
        np.array([row.output for row in made.rows]),
        np.array([row.arrival / FS_PER_S for row in made.rows]),
        priority=np.array([row.priority for row in made.rows]),
    )
    spec = InstanceSpec(made.cost, made.blocks, made.size, total_swap_blocks=10**6)
    policy = made.policy(ContinuousConfig(**made.config))
    return simulate(
        trace, policy, [spec], Settings(fuse_steps=fuse, executor=executor, **made.engine)
    )
