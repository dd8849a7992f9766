"""Replays a hand-worked trace, fused and step by step, and compares it with the hand's numbers.

Times in these tests are milliseconds, because that is how one works them out; the records hold
seconds. `PRICES` is the price list of most traces:

    a step with n prompt tokens           10 + n             ms
    a step with B decodes, K cached       20 + 2 B + K / 10  ms
    a step with both                      the sum of the two

Vocabulary of the comments: `cached` tokens are those whose keys and values are in memory. A prefill
of l tokens caches l and emits a token; a decode step caches one token more per request and emits
the next. A request takes a block at the start of the step whose token finds its blocks full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import policies
from sim.core.outages import Outages
from sim.core.records import KINDS, RunRecord
from sim.core.simulation import Simulation
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import FS_PER_S, CostModel, Policy, Trace, to_fs

MS = 1e-3
TOLERANCE_S = 1e-12

PRICES = AffineCost(
    prefill_base_s=0.010,
    prefill_token_s=0.001,
    decode_base_s=0.020,
    decode_seq_s=0.002,
    decode_kv_s=0.0001,
)
CONSTANT = AffineCost(prefill_base_s=0.010, prefill_token_s=0.001, decode_base_s=0.020)
"""As `PRICES`, but every decode step takes 20 ms."""

NEVER = float("nan")


class Killed(Outages):
    """Failures by hand: for each instance its (down, up) in ms."""

    def __init__(self, *plan: Sequence[tuple[float, float]]) -> None:
        self.plan = plan

    def of(self, engine: int) -> Iterator[tuple[int, int]]:
        """Yield the instance's list, in femtoseconds."""
        own = self.plan[engine] if engine < len(self.plan) else ()
        yield from ((to_fs(down * MS), to_fs(up * MS)) for down, up in own)


@dataclass(frozen=True)
class Row:
    """What the records must say about a request: times in ms, `NEVER` for what did not happen.

    With one pool and no transfer the first token leaves when the (first) prefill ends.
    """

    arrival: float
    start: float
    first: float
    finish: float
    tokens: int
    preemptions: int = 0
    retries: int = 0
    status: str = "finished"
    queued: float | None = None
    """When the scheduler saw it, if that is not its arrival."""


class Replay:
    """A trace that ran in both modes; `fused` is the record of the fused run."""

    def __init__(self, fused: RunRecord) -> None:
        self.fused = fused
        self.counters = fused.counters

    def check(self, *rows: Row) -> None:
        """Compare every time column, and the counts, with the hand's rows (in trace order)."""
        columns = self.fused.requests
        assert columns["request_id"].tolist() == list(range(len(rows)))
        for name, value in {
            "arrival_s": [r.arrival for r in rows],
            "queued_s": [r.arrival if r.queued is None else r.queued for r in rows],
            "prefill_start_s": [r.start for r in rows],
            "prefill_end_s": [r.first for r in rows],
            "transfer_start_s": [NEVER] * len(rows),
            "transfer_end_s": [NEVER] * len(rows),
            "first_token_s": [r.first for r in rows],
            "finish_s": [r.finish for r in rows],
        }.items():
            expected = np.array(value) * MS
            same = np.isclose(columns[name], expected, rtol=0, atol=TOLERANCE_S, equal_nan=True)
            assert same.all(), f"{name}: {columns[name].tolist()}, by hand {expected.tolist()}"
        assert columns["status"].tolist() == [r.status for r in rows]
        assert columns["emitted_tokens"].tolist() == [r.tokens for r in rows]
        assert columns["preemptions"].tolist() == [r.preemptions for r in rows]
        assert columns["retries"].tolist() == [r.retries for r in rows]

    def check_gaps(self, *gaps_ms: float) -> None:
        """Compare all inter-token gaps, in any order."""
        assert gaps_of(self.fused) == near(sorted(gaps_ms))

    def check_steps(self, *steps: tuple[Any, ...]) -> None:
        """Compare the steps: (start, duration, kind, prompt tokens, decodes, cached before)."""
        found = [step[1:] for step in steps_of(self.fused)]
        assert [s[2:] for s in found] == [s[2:] for s in steps]
        assert [s[0] for s in found] == near([s[0] for s in steps])
        assert [s[1] for s in found] == near([s[1] for s in steps])

    def check_outages(self, *outages: tuple[Any, ...]) -> None:
        """Compare the outages: (instance, down, up, lost in a step, requests put back)."""
        found = self.fused.outages
        assert [(o.instance, o.requests) for o in found] == [(o[0], o[4]) for o in outages]
        for at, name in enumerate(("start_s", "end_s", "lost_s"), 1):
            assert [getattr(o, name) / MS for o in found] == near([o[at] for o in outages])

    def check_swaps(self, *swaps: tuple[Any, ...]) -> None:
        """Compare the copies: (start, duration, request, blocks, direction)."""
        found = self.fused.swaps
        assert [s[3:] for s in found] == [s[2:] for s in swaps]
        assert [s[0] / MS for s in found] == near([s[0] for s in swaps])
        assert [s[1] / MS for s in found] == near([s[1] for s in swaps])


def near(values_ms: Sequence[float]) -> Any:
    """Equal to 1e-12 s."""
    return pytest.approx(values_ms, rel=0, abs=TOLERANCE_S / MS)


def policy(name: str, **config: Any) -> Policy:
    """Return a policy by name."""
    cls: Any = policies.load(name)
    made: Policy = cls(cls.Config(**config))
    return made


def replay(
    requests: Sequence[tuple[float, int, int]],
    scheduler: Policy,
    cost: CostModel = PRICES,
    blocks: int = 1000,
    block_size: int = 4,
    instances: int = 1,
    spec: dict[str, Any] | None = None,
    prefixes: Sequence[tuple[int, int]] | None = None,
    **settings: Any,
) -> Replay:
    """Run (arrival in ms, input_len, output_len) rows fused and step by step.

    `prefixes` are (group, shared tokens) of each row, and switch prefix caching on. Both runs must
    agree in everything, and a drained run must leave nothing behind.
    """
    trace = Trace(
        np.array([r[1] for r in requests]),
        np.array([r[2] for r in requests]),
        np.array([r[0] * MS for r in requests]),
    )
    if prefixes is not None:
        group, length = np.array(prefixes).T
        trace = replace(trace, prefix_group=group, prefix_len=length)
        settings["enable_prefix_caching"] = True
    specs = [InstanceSpec(cost, blocks, block_size, **(spec or {})) for _ in range(instances)]
    records = []
    for fuse in (True, False):
        sim = Simulation(trace, scheduler, specs, Settings(fuse_steps=fuse, **settings))
        records.append(sim.run())
        if settings.get("horizon_s") is None:
            check_empty(sim)
    fused, stepped = records
    check_equal(fused, stepped)
    emitted = fused.requests["emitted_tokens"]
    assert len(gaps_of(fused)) == emitted.sum() - (emitted > 0).sum()
    return Replay(fused)


def check_empty(sim: Simulation) -> None:
    """Assert that every seat, block and token has been given back."""
    for instance in sim.instances:
        assert instance.free_blocks == instance.total_blocks
        assert instance.free_swap_blocks == instance.total_swap_blocks
        assert (instance.num_waiting, len(instance.waiting), instance.waiting.tokens) == (0, 0, 0)
        for held in (instance.running, instance.prefilling, instance.swapped, instance.paused):
            assert not held
        assert (instance.num_decoding, instance.kv_tokens, instance.partial_tokens) == (0, 0, 0)
        assert set(instance.phases) == {0}
        assert (instance.outstanding, instance.outstanding_tokens) == (0, 0)


def check_equal(fused: RunRecord, stepped: RunRecord) -> None:
    """Assert that both modes recorded the same, bit by bit where spans do not matter."""
    for name, column in fused.requests.items():
        nan = column.dtype.kind == "f"
        assert np.array_equal(column, stepped.requests[name], equal_nan=nan), name
    assert fused.counters == stepped.counters
    assert fused.swaps == stepped.swaps
    assert fused.outages == stepped.outages
    assert gaps_of(fused) == near(gaps_of(stepped))
    a, b = steps_of(fused), steps_of(stepped)
    assert [s[:1] + s[3:] for s in a] == [s[:1] + s[3:] for s in b]
    assert [s[1] for s in a] == near([s[1] for s in b])
    assert [s[2] for s in a] == near([s[2] for s in b])


def steps_of(record: RunRecord) -> list[tuple[Any, ...]]:
    """Expand the log: (instance, start ms, duration ms, kind, prompt tokens, decodes, cached)."""
    steps = []
    for row in record.steps:
        start_fs = round(float(row["start_s"]) * FS_PER_S)
        for k in range(int(row["n_steps"])):
            duration_fs = int(row["first_fs"]) + k * int(row["increment_fs"])
            decodes = int(row["decode_requests"])
            steps.append(
                (
                    int(row["instance"]),
                    start_fs / FS_PER_S / MS,
                    duration_fs / FS_PER_S / MS,
                    KINDS[row["kind"]],
                    int(row["prefill_tokens"]),
                    decodes,
                    int(row["kv_tokens"]) + k * decodes,
                )
            )
            start_fs += duration_fs
    return sorted(steps)


def gaps_of(record: RunRecord) -> list[float]:
    """Expand all inter-token gaps in ms, sorted, as `STEP_DTYPE` defines them.

    Spans that emit nothing say nothing about gaps, whatever stands in `lead_fs` and `veterans`.
    """
    gaps_fs = [round(gap * FS_PER_S) for gap in record.gaps_s.tolist()]
    for row in record.steps:
        emitting, veterans, odd = (int(row[n]) for n in ("emitting", "veterans", "odd"))
        if not emitting:
            continue
        assert veterans + odd <= emitting
        first_fs, increment_fs = int(row["first_fs"]), int(row["increment_fs"])
        gaps_fs += [first_fs + int(row["lead_fs"])] * veterans
        gaps_fs += [first_fs] * (emitting - veterans - odd)
        for k in range(1, int(row["n_steps"])):
            gaps_fs += [first_fs + k * increment_fs] * emitting
    return [gap / FS_PER_S / MS for gap in sorted(gaps_fs)]
