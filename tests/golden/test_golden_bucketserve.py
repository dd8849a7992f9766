"""Six requests through bucketserve on one prefill and one decode instance, worked out by hand.

Prefill: 1 s + 0.01 s per (padded) token. Decode: 0.5 s + 0.1 s per request. KV moves at 100 tokens
a second over one link, shared equally. N_max is 2, l_max 64, memory is ample.

| request | arrives | prompt | output |
|---------|---------|--------|--------|
| 0       | 0.0     | 40     | 2      |
| 1       | 0.2     | 10     | 1      |
| 2       | 0.4     | 60     | 2      |
| 3       | 0.6     | 12     | 3      |
| 4       | 0.8     | 11     | 2      |
| 5       | 2.0     | 50     | 1      |
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policies import load
from sim.core.records import PREFILL, RunRecord
from sim.core.simulation import simulate
from sim.core.spec import InstanceSpec, Settings
from sim.costs.simple import AffineCost
from sim.types import Snapshot, Trace, View

TRACE = Trace(
    np.array([40, 10, 60, 12, 11, 50]),
    np.array([2, 1, 2, 3, 2, 1]),
    np.array([0.0, 0.2, 0.4, 0.6, 0.8, 2.0]),
)


def run(
    name: str = "bucketserve", trace: Trace = TRACE, fuse: bool = True, **config: Any
) -> RunRecord:
    cls = load(name)
    cost = AffineCost(1.0, 0.01, 0.5, 0.1)
    specs = [
        InstanceSpec(cost, 100, 16, role="prefill", kv_token_bytes=10),
        InstanceSpec(cost, 100, 16, role="decode", kv_token_bytes=10),
    ]
    settings = Settings(fuse_steps=fuse, link_bytes_per_s=1000.0)
    return simulate(trace, cls(cls.Config(**config)), specs, settings)


def times(record: RunRecord, column: str) -> list[float]:
    return [float(t) for t in record.requests[column]]


def expect(record: RunRecord, **columns: list[float | None]) -> None:
    for column, wanted in columns.items():
        there = [np.nan if t is None else t for t in wanted]
        assert times(record, column) == pytest.approx(there, abs=1e-12, nan_ok=True), column


def waste(record: RunRecord) -> list[float]:
    """padding_waste of every prefill batch: 1 - sum(S) / (B * S_max)."""
    prefills = record.steps[record.steps["kind"] == PREFILL]
    return [1 - float(s["prefill_tokens"]) / float(s["padded_tokens"]) for s in prefills]


@pytest.mark.parametrize("fuse", [True, False])
def test_padded(fuse: bool) -> None:
    record = run(fuse=fuse, nmax_length=2, l_max=64)
    # 0.0  1 waits, 1 < 2: one bucket. Prefill {0}: 1 + 0.4 = 1.4 -> 1.4.
    # 1.4  {1, 2, 3, 4} wait, 4 >= 2; the bucket holds 4 > 2, 3 of 4 are below 32: halved. 1 is the
    #      oldest, so its bucket: prefill {1, 3, 4}, 3 rows of 12 = 36 tokens: 1.36 -> 2.76.
    #      KV of 0: 40 tokens, 0.4 s -> 1.8; it decodes alone: 0.6 -> 2.4, done.
    # 2.76 1 is done with its only token. {2, 5} wait: 2 < 2 is false, no merge; [32, 64) holds 2,
    #      not more than 2. Prefill {2, 5}, 2 rows of 60 = 120 tokens: 2.2 -> 4.96.
    #      KV of 3 (0.12 s) and 4 (0.11 s) share the link: 4 has its 11 tokens after 0.22 s -> 2.98;
    #      then 1 token of 3 is left: 0.01 s -> 2.99.
    # 2.98 4 decodes alone: 0.6 -> 3.58, done. 3 joins then: 0.6 -> 4.18, 0.6 -> 4.78, done.
    # 4.96 5 is done. KV of 2: 0.6 s -> 5.56; it decodes: 0.6 -> 6.16, done.
    expect(
        record,
        prefill_start_s=[0.0, 1.4, 2.76, 1.4, 1.4, 2.76],
        prefill_end_s=[1.4, 2.76, 4.96, 2.76, 2.76, 4.96],
        first_token_s=[1.4, 2.76, 4.96, 2.76, 2.76, 4.96],
        transfer_start_s=[1.4, None, 4.96, 2.76, 2.76, None],
        transfer_end_s=[1.8, None, 5.56, 2.99, 2.98, None],
        finish_s=[2.4, 2.76, 6.16, 4.78, 3.58, 4.96],
    )
    assert waste(record) == pytest.approx([0.0, 1 - 33 / 36, 1 - 110 / 120])
    assert record.end_s == pytest.approx(6.16)


@pytest.mark.parametrize("fuse", [True, False])
def test_padding_free_in_one_bucket(fuse: bool) -> None:
    record = run(fuse=fuse, nmax_length=100, padded=False)
    # One bucket. 0.0 {0}: 1.4 -> 1.4. Then {1, 2, 3, 4}, 93 tokens: 1.93 -> 3.33. Then {5}: 1.5.
    expect(
        record,
        prefill_start_s=[0.0, 1.4, 1.4, 1.4, 1.4, 3.33],
        prefill_end_s=[1.4, 3.33, 3.33, 3.33, 3.33, 4.83],
    )
    assert waste(record) == [0.0, 0.0, 0.0]


def test_offline_longest_first() -> None:
    record = run(order="ljf", nmax_length=2, l_max=64)
    # 1.4  halved as above; the longest is 2, alone in [32, 64): 1.6 -> 3.0.
    # 3.0  {1, 3, 4, 5}: the longest is 5, alone there: 1.5 -> 4.5. [0, 32) holds 3 > 2, 3 of 3
    #      below 16: halved again, into [0, 16) and [16, 32).
    # 4.5  {3, 4, 1}: 3 > 2, none below 8: no split. Prefill in order of length: 1.36 -> 5.86.
    expect(
        record,
        prefill_start_s=[0.0, 4.5, 1.4, 4.5, 4.5, 3.0],
        prefill_end_s=[1.4, 5.86, 3.0, 5.86, 5.86, 4.5],
    )


@pytest.mark.parametrize("fuse", [True, False])
def test_optimal(fuse: bool) -> None:
    record = run("bucketserve-optimal", fuse=fuse, num_buckets=2, l_max=64)
    # Boundaries before each of the first batches (the number of arrivals doubles from 1 to 5):
    # 0.0  {0}: one length, one bucket -> 1.4.
    # 1.4  10, 11, 12 | 40, 60 is the cheapest pair: the oldest is 1, {1, 3, 4} 1.36 -> 2.76.
    # 2.76 {2, 5} 2.2 -> 4.96.
    expect(
        record,
        prefill_start_s=[0.0, 1.4, 2.76, 1.4, 1.4, 2.76],
        prefill_end_s=[1.4, 2.76, 4.96, 2.76, 2.76, 4.96],
    )


def test_back_pressure_of_a_full_decode_pool() -> None:
    # Decode holds 3 blocks of 16, prefill 6: a prompt of 30 (+ 3 outputs) takes 2 blocks, then 3.
    # Prefill {0}: 0.0 -> 1.3, pulled at once, 0.3 s -> 1.6. Its two decode steps: 2.2, 2.8.
    # Prefill {1} 1.3 -> 2.6: the decode pool has 1 block free, so it stays; at 2.8 it is pulled,
    # and decodes from 3.1 to 4.3. Prefill {2} (it arrives at 2.0) needs 2 of the 4 blocks that 1
    # leaves free on the prefill side: 2.6 -> 3.9; pulled at 4.3, decoded 4.6 -> 5.8.
    cls = load("bucketserve")
    cost = AffineCost(1.0, 0.01, 0.5, 0.1)
    specs = [
        InstanceSpec(cost, 6, 16, role="prefill", kv_token_bytes=10),
        InstanceSpec(cost, 3, 16, role="decode", kv_token_bytes=10),
    ]
    trace = Trace(np.array([30, 30, 30]), np.array([3, 3, 3]), np.array([0.0, 1.0, 2.0]))
    record = simulate(trace, cls(cls.Config()), specs, Settings(link_bytes_per_s=1000.0))
    expect(
        record,
        prefill_end_s=[1.3, 2.6, 3.9],
        transfer_start_s=[1.3, 2.8, 4.3],
        transfer_end_s=[1.6, 3.1, 4.6],
        finish_s=[2.8, 4.3, 5.8],
    )


def test_monitor_tells_after_its_delay() -> None:
    # Samples at 0, 1, 2 s arrive 0.5 s later. 40 arrives at 0, 20 at 0.75, 80 at 1.25.
    # Plans: 0.0 knows the queue only (40). Prefill {0} 0.0 -> 1.4; at 1.4 the sample of 0 s (40
    # tokens, one request) is known, that of 1 s is not: it arrives at 1.5. {1, 2} run to 4.0
    # (2 rows of 80). At 4.1 a last one arrives: the samples of 1, 2 and 3 s (20, 80, none) are
    # known: 140 / 3 tokens, with hardly any decay.
    cls = load("bucketserve")
    config = cls.Config(
        nmax_length="mean", monitor_period_s=1.0, monitor_delay_s=0.5, mean_half_life_s=1e9
    )
    policy = cls(config)
    heard: list[float] = []
    means: list[tuple[float, float]] = []
    plan, listen = policy.plan, policy.on_monitor

    def noting_plan(view: View) -> Any:
        if view.role == "prefill" and view.num_waiting:
            means.append((view.now_s, policy.mean_len(view.waiting)))
        return plan(view)

    def noting_listen(snapshot: Snapshot) -> None:
        heard.append(snapshot.time_s)
        listen(snapshot)

    policy.plan, policy.on_monitor = noting_plan, noting_listen
    cost = AffineCost(1.0, 0.01, 0.5, 0.1)
    specs = [
        InstanceSpec(cost, 100, 16, role="prefill"),
        InstanceSpec(cost, 100, 16, role="decode"),
    ]
    trace = Trace(
        np.array([40, 20, 80, 8]), np.array([1, 1, 1, 1]), np.array([0.0, 0.75, 1.25, 4.1])
    )
    simulate(trace, policy, specs, Settings())
    assert heard[:4] == [0.0, 1.0, 2.0, 3.0]
    assert [t for t, _ in means] == pytest.approx([0.0, 1.4, 4.1])
    assert [mean for _, mean in means] == pytest.approx([40.0, 40.0, 140 / 3])
